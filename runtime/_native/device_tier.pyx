"""Rows of a table on a device; ``device_tier.pxd`` is the contract."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from libcpp.algorithm cimport binary_search, sort
from libcpp.vector cimport vector

from intentpm.foundation.errors import DeviceError, MemoryBudgetError
from intentpm.runtime.device_layout import device_layout, step_numbers

from intentpm.foundation.primitives cimport load_relaxed_i32
from intentpm.gpu.caller_stream cimport CallerStream
from intentpm.gpu.device cimport Device, RowBatch
from intentpm.gpu.device_rows cimport DeviceRows
from intentpm.gpu.exchanges cimport Exchange, rows_in, shorten, slots_in
from intentpm.runtime._native.mutations cimport MUTATION_EXCHANGE_NOT_AWAITED, is_planted
from intentpm.runtime._native.replicas cimport add_pending, set_pending
from intentpm.runtime._native.rows cimport (
    enter_if_here, enter_row, leave_written, pull_row_atomic, push_row_atomic, set_row_atomic,
)
from intentpm.runtime._native.slabs cimport give_back_rows
from intentpm.runtime._native.state cimport (
    STATE_ABSENT, STATE_REPLICA, WORD_HERE, KeyPlace, KeyState, read_unlocked, state_of,
    unlock_unchanged,
)
from intentpm.runtime._native.steps cimport pull_stored_atomic, set_stored_atomic, step_row_atomic
from intentpm.runtime._native.store cimport Table
from intentpm.runtime._native.table_state cimport (
    ACCESS_ROW_PULL, ACCESS_ROW_PULL_STORED, ACCESS_ROW_PUSH, ACCESS_ROW_SET_STORED, ACCESS_ROW_STEP, ROW_AWAY,
    ROW_ON_DEVICE, RowAccess, TableState, row_of,
)

cdef enum:
    RUN_BYTES = 16 << 20         # of rows, that pinned memory is taken for at once
    RUN_KEYS = 1 << 16           # that are looked up with the lock held, of rows on the device
    NOT_TAKEN = -1
    MOST_RETIRED = 64            # pieces of memory that calls of the host leave to workers of the device


cdef inline bint _is_stored(RowAccess kind) noexcept nogil:
    return kind == ACCESS_ROW_PULL_STORED or kind == ACCESS_ROW_SET_STORED


cdef class DeviceTier:
    """Makes ``device`` the place of a table's rows. Before the table is known to anybody else.

    Attributes: ``rows``, of the device. Raises MemoryBudgetError, DeviceError.
    """

    def __init__(self, Table table not None, Device device not None):
        self._attach(table, device)
        self._send_all()

    cdef _attach(self, Table table, Device device):
        cdef TableState* state = table.state
        numbers = step_numbers(table.optimizer) if table.optimizer is not None else {}
        self.table = state
        self.rows = DeviceRows(device, device_layout(
            table.dtype, state.row_items, state.stride_bytes, table.stored_dtype, table.optimizer), **numbers)
        self.tier.where = <uint8_t*>calloc(state.num_keys, 1)
        self.batch_of = <uint32_t*>calloc(state.num_keys, sizeof(uint32_t))
        if self.tier.where == NULL or self.batch_of == NULL:
            raise MemoryBudgetError("out of memory")
        self.tier.context = <void*>self
        self.tier.bring_home = _bring_home
        self.tier.access = _access
        state.tier = &self.tier
        table.tier = self

    def __dealloc__(self):
        free(self.tier.where)
        free(self.batch_of)

    def _send_all(self):
        """The rows that the table has; ``rows`` then needs no memory for them."""
        cdef int64_t count = self.table.slots_touched
        cdef int64_t most = max(<int64_t>1, RUN_BYTES // <int64_t>max(self.table.stored_bytes, <size_t>1))
        cdef int64_t first = 0, i
        cdef bint done = True
        cdef Run run
        if count == 0:
            return
        with nogil:
            self.rows.lock.lock()
            while done and first < count:
                memset(&run, 0, sizeof(run))
                run.count = min(most, count - first)
                for i in range(run.count):
                    done = done and self._send(&run, <int32_t>(first + i))
                done = done and self._enqueue(&run)
                self._close(&run)
                first += run.count
            if done:
                memset(self.tier.where, ROW_AWAY | ROW_ON_DEVICE, count)
                give_back_rows(self.table)
            self.rows.lock.unlock()
        if not done:
            raise MemoryBudgetError(
                f"{self.rows.device.name}: {self.rows.device.failure or 'no memory is left'}, for {count} rows of "
                f"{self.table.stride_bytes} bytes: use more ranks, or storage='host'")

    @property
    def is_fetching(self) -> bool:
        """Rows are brought to the device before windows start."""
        return self.tier.fetch != NULL

    def counts(self) -> dict:
        """``sent_rows`` to the device and ``brought_rows`` back, since the table was made. Any thread."""
        return {"sent_rows": self.sent_rows, "brought_rows": self.brought_rows}

    def check(self) -> None:
        """Raises DeviceError when the device has failed: what its rows are is not known."""
        if self.tier.failed:
            raise DeviceError(f"{self.rows.device.name}: {self.rows.device.failure or 'no memory is left'}")

    # -- a run of a batch ------------------------------------------------------------------------------------------------------

    cdef bint _open(self, Run* run, size_t row_bytes) noexcept nogil:
        """Where there is no memory, what is no longer needed is given back: without the lock, for that waits for all that the
        device has to do."""
        if not self._take_room(run, row_bytes):
            self.rows.lock.unlock()
            self.rows.device.free_retired()
            self.rows.lock.lock()
            self._take_room(run, row_bytes)
        return run.exchange != NULL

    cdef bint _take_room(self, Run* run, size_t row_bytes) noexcept nogil:
        cdef bint sums = not reads_rows(run.kind) and (run.kind != ACCESS_ROW_PUSH or not self.rows.added_by_memory)
        if run.exchange == NULL:
            run.exchange = self.rows.open(run.count, row_bytes)
        return run.exchange != NULL and self._make_room() and (not sums or self.rows._reserve_scratch(run.count))

    cdef int64_t _look_up(
            self, Run* run, vector[int32_t]& misses, vector[int32_t]& for_home, uint64_t* served) noexcept nogil:
        """Fills the run's slots. Returns how many keys are done: fewer than it has, where steps come twice, or a slot that has
        another row by now: what is in ``rows`` since the run took the slot up goes to the device after the run."""
        cdef int32_t* slots = slots_in(run.exchange)
        cdef KeyPlace* place
        cdef uint32_t seen
        cdef int64_t i
        cdef TakeUp outcome
        self.batches += 1
        self._begin_run()
        for i in range(run.count):
            place = &self.table.places[run.keys[run.first + i]]
            slots[i] = NOT_TAKEN
            outcome = TAKE_AGAIN
            while outcome == TAKE_AGAIN and read_unlocked(&place.word) & WORD_HERE:
                if enter_row(place, &seen):
                    outcome = self._take_up(run, i, seen)
            if outcome == TAKEN:
                served[state_of(seen) == STATE_REPLICA] += 1
            elif outcome == TAKE_HOME:
                for_home.push_back(<int32_t>i)
            elif outcome == TAKE_AGAIN:
                misses.push_back(<int32_t>(run.first + i))
            else:
                return i if outcome == TAKE_LATER else <int64_t>NOT_TAKEN
        return run.count

    cdef void _begin_run(self) noexcept nogil:
        pass

    cdef TakeUp _take_up(self, Run* run, int64_t i, uint32_t seen) noexcept nogil:
        """A key that is entered: notes what is going to happen to its row, and leaves it."""
        cdef KeyPlace* place = &self.table.places[run.keys[run.first + i]]
        cdef uint8_t* where = &self.tier.where[place.slot]
        cdef bint done = True
        if not run.sums and self.batch_of[place.slot] == self.batches and (
                run.kind == ACCESS_ROW_STEP or not where[0] & ROW_ON_DEVICE):
            unlock_unchanged(&place.word, seen)
            return TAKE_LATER
        if is_for_home(self.table, run, seen):
            unlock_unchanged(&place.word, seen)
            return TAKE_HOME
        if not where[0] & ROW_ON_DEVICE:
            done = self._send(run, place.slot)
            where[0] |= ROW_ON_DEVICE
        self._leave_taken(run, i, seen)
        return TAKEN if done else TAKE_FAILED

    cdef void _leave_taken(self, Run* run, int64_t i, uint32_t seen) noexcept nogil:
        """Of a key that is entered, whose row the device has."""
        cdef int64_t key = run.keys[run.first + i]
        cdef KeyPlace* place = &self.table.places[key]
        cdef const char* row = run.rows + i * run.row_bytes
        slots_in(run.exchange)[i] = self._seat(place.slot)
        self.batch_of[place.slot] = self.batches
        run.taken_up += 1
        if reads_rows(run.kind):
            unlock_unchanged(&place.word, seen)
            return
        self.tier.where[place.slot] |= ROW_AWAY
        if state_of(seen) == STATE_REPLICA and run.kind == ACCESS_ROW_PUSH:
            add_pending(self.table, &self.table.replicas[place.slot], row)
        elif state_of(seen) == STATE_REPLICA:
            set_pending(self.table, &self.table.replicas[place.slot], row)
        leave_written(self.table, key, seen)

    cdef int32_t _seat(self, int32_t slot) noexcept nogil:
        """Which row of the device a slot has."""
        return slot

    cdef bint _make_room(self) noexcept nogil:
        return self.rows.reserve(self.table.slots_touched)

    cdef bint _send(self, Run* run, int32_t slot) noexcept nogil:
        """Copies a row that is in ``rows``, to go to the device before the run."""
        cdef int64_t most = max(<int64_t>1, RUN_BYTES // <int64_t>max(self.table.stored_bytes, <size_t>1))
        if run.sent != NULL and run.sent_count == run.sent.count and not self._send_off(run):
            return False
        if run.sent == NULL:
            run.sent = self.rows.open(min(run.count, most), self.table.stored_bytes)
            if run.sent == NULL:
                return False
        slots_in(run.sent)[run.sent_count] = slot
        memcpy(rows_in(run.sent) + run.sent_count * self.table.stored_bytes, row_of(self.table, slot), self.table.stored_bytes)
        run.sent_count += 1
        self.sent_rows += 1
        return True

    cdef bint _send_off(self, Run* run) noexcept nogil:
        """Rows that were copied, to their slots on the device."""
        cdef bint done
        run.sent.count = run.sent_count
        done = (self._make_room() and self.rows.bring(run.sent, True)
                and self.rows.put(run.sent, True))
        self.rows.close(run.sent)
        run.sent = NULL
        run.sent_count = 0
        return done

    cdef bint _enqueue(self, Run* run) noexcept nogil:
        if not self._make_room() or (run.sent != NULL and not self._send_off(run)):
            return False
        if run.exchange == NULL:
            return True
        if run.device_rows != NULL:
            return self._enqueue_on_device(run)
        if reads_rows(run.kind):
            return (self.rows.bring(run.exchange, False)
                    and self.rows.gather(run.exchange, _is_stored(run.kind))
                    and self.rows.fetch(run.exchange))
        if not self.rows.bring(run.exchange, True):
            return False
        if run.kind == ACCESS_ROW_PUSH:
            return self.rows.add(run.exchange)
        if run.kind == ACCESS_ROW_STEP:
            return self.rows.step(run.exchange, run.lr)
        return self.rows.put(run.exchange, _is_stored(run.kind))

    cdef bint _enqueue_on_device(self, Run* run) noexcept nogil:
        cdef RowBatch batch = self.rows._batch(
            <const int*>run.exchange.device, run.exchange.count, run.device_rows, run.row_bytes)
        if not self.rows.bring(run.exchange, False):
            return False
        if reads_rows(run.kind):
            return self.rows._gather(&batch, False)
        if run.kind == ACCESS_ROW_PUSH:
            return self.rows._add(&batch)
        if run.kind == ACCESS_ROW_STEP:
            return self.rows._step(&batch, run.lr)
        return self.rows._put(&batch, False)

    cdef void _close(self, Run* run) noexcept nogil:
        if run.sent != NULL:
            self.rows.close(run.sent)
        if run.exchange != NULL:
            self.rows.close(run.exchange)

    cdef void _fail(self) noexcept nogil:
        self.tier.failed = True
        if self.tier.job_fails != NULL:
            self.tier.job_fails[0] = True

    # -- rows that are on the device -------------------------------------------------------------------------------------------

    cdef bint serve_on_device(
            self, RowAccess kind, const int64_t* keys, int64_t count, char* device_rows, double lr, bint sums,
            CallerStream caller, bint rows_wait, vector[int32_t]& left, uint64_t* served) noexcept nogil:
        cdef size_t row_bytes = self.table.row_bytes
        # A sum is one step, so all of its gradients are in one run.
        cdef int64_t most = count if sums else max(
            <int64_t>1, min(<int64_t>RUN_KEYS, RUN_BYTES // <int64_t>max(row_bytes, <size_t>1)))
        cdef int64_t first = 0, taken = 0
        cdef Run run
        if rows_wait and not caller.mark():
            return False                 # the caller's own fault, if it is no stream
        self.rows.lock.lock()
        if rows_wait and not caller.before_marked(self.rows.stream):
            taken = NOT_TAKEN
        while taken != NOT_TAKEN and first < count:
            memset(&run, 0, sizeof(run))
            run.kind = kind
            run.keys = keys
            run.device_rows = device_rows + first * row_bytes
            run.sums = sums
            run.first = first
            run.count = min(most, count - first)
            run.row_bytes = row_bytes
            run.lr = lr
            taken = self._serve_run(&run, left, served)
            first += taken
            if not sums and taken != NOT_TAKEN and first < count:    # whoever needs a row has its turn
                self.rows.lock.unlock()
                self.rows.lock.lock()
        if taken != NOT_TAKEN and not caller.mark_own(self.rows.stream):
            taken = NOT_TAKEN
        if taken == NOT_TAKEN:
            self._fail()
        self.rows.lock.unlock()
        sort(left.begin(), left.end())
        return taken != NOT_TAKEN and caller.after_marked()

    cdef int64_t _serve_run(self, Run* run, vector[int32_t]& left, uint64_t* served) noexcept nogil:
        """Returns how many keys are done, or NOT_TAKEN."""
        cdef vector[int32_t] for_home
        cdef int64_t done = NOT_TAKEN
        cdef size_t n, first_left = left.size()
        if self._open(run, 0):
            done = self._look_up(run, left, for_home, served)
        if done != NOT_TAKEN:
            if run.sums:
                self._leave_whole(run, done, first_left, left, for_home, served)
            shorten(run.exchange, done)
            # What was sent is the row by now, though nothing be done with it.
            if (run.taken_up > 0 or run.sent != NULL) and not self._enqueue(run):
                done = NOT_TAKEN
        self._close(run)
        for n in range(for_home.size()):
            left.push_back(<int32_t>(run.first + for_home[n]))
        return done

    cdef void _leave_whole(
            self, Run* run, int64_t done, size_t first_left, vector[int32_t]& left, const vector[int32_t]& for_home,
            uint64_t* served) noexcept nogil:
        """Of steps with sums: a key that was left at one position and taken at another, for it has come in between, is left at
        all of them: its sum is one step."""
        cdef int32_t* slots = slots_in(run.exchange)
        cdef vector[int64_t] came
        cdef int64_t i
        cdef size_t n
        for n in range(first_left, left.size()):
            if self._may_be_taken(run, run.keys[left[n]]):
                came.push_back(run.keys[left[n]])
        for n in range(for_home.size()):
            if self._may_be_taken(run, run.keys[run.first + for_home[n]]):
                came.push_back(run.keys[run.first + for_home[n]])
        if came.empty():
            return
        sort(came.begin(), came.end())
        for i in range(done):
            if slots[i] >= 0 and binary_search(came.begin(), came.end(), run.keys[run.first + i]):
                slots[i] = NOT_TAKEN
                left.push_back(<int32_t>(run.first + i))
                run.taken_up -= 1
                served[0] -= 1           # of replicas no step is taken here

    cdef bint _may_be_taken(self, const Run* run, int64_t key) noexcept nogil:
        """By a step of this run. A key that was is still here: its row is on the device alone, and who wants it waits for the
        lock."""
        cdef KeyPlace* place = &self.table.places[key]
        cdef uint32_t seen = read_unlocked(&place.word)
        cdef int32_t slot = load_relaxed_i32(&place.slot)
        return (seen & WORD_HERE and slot >= 0 and self.tier.where[slot] & ROW_AWAY
                and not is_for_home(self.table, run, seen))

    # -- coming back -----------------------------------------------------------------------------------------------------------

    cdef void _bring(self, int64_t key, int32_t slot) noexcept nogil:
        cdef KeyPlace* place = &self.table.places[key]
        cdef Exchange* exchange = self.rows.open(1, self.table.stored_bytes)
        cdef uint32_t seen
        cdef bint done = False
        if exchange != NULL:
            slots_in(exchange)[0] = self._seat(slot)
            done = (self.rows.bring(exchange, False) and self.rows.gather(exchange, True)
                    and self.rows.fetch(exchange) and self.rows.finish(exchange))
        if not done:
            self._fail()                 # whoever waits for the row goes on, with any: the job ends
        if enter_if_here(place, &seen):
            if place.slot == slot and self.tier.where[slot] & ROW_AWAY:
                if done:
                    memcpy(row_of(self.table, slot), rows_in(exchange), self.table.stored_bytes)
                self.tier.where[slot] &= ~<uint8_t>ROW_AWAY
            unlock_unchanged(&place.word, seen)
        self.brought_rows += 1
        if exchange != NULL:
            self.rows.close(exchange)


cdef void _bring_home(TableState* table, int64_t key) noexcept nogil:
    _bring_with(<DeviceTier>table.tier.context, table, key)


cdef void _bring_with(DeviceTier tier, TableState* table, int64_t key) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef int32_t slot
    tier.rows.lock.lock()
    # Nobody writes rows on the device meanwhile. The key may leave, its slot become another's: ``_bring`` looks again.
    if read_unlocked(&place.word) & WORD_HERE:
        slot = place.slot
        if tier.tier.where[slot] & ROW_AWAY:
            tier._bring(key, slot)
    tier.rows.lock.unlock()


cdef void _access(
        TableState* table, RowAccess kind, const int64_t* keys, int64_t count, char* rows, double lr, vector[int32_t]& misses,
        uint64_t* served) noexcept nogil:
    cdef size_t row_bytes = table.stored_bytes if _is_stored(kind) else table.row_bytes
    cdef int64_t most = max(<int64_t>1, RUN_BYTES // <int64_t>max(row_bytes, <size_t>1))
    cdef int64_t first = 0
    cdef Run run
    while first < count:
        memset(&run, 0, sizeof(run))
        run.kind = kind
        run.keys = keys
        run.first = first
        run.count = min(most, count - first)
        run.rows = rows + first * row_bytes
        run.row_bytes = row_bytes
        run.lr = lr
        first += _serve(<DeviceTier>table.tier.context, &run, misses, served)
    _give_back((<DeviceTier>table.tier.context).rows.device)


cdef void _give_back(Device device) noexcept nogil:
    if device.has_retired(MOST_RETIRED if device.open_workers > 0 else 0):
        device.free_retired()


cdef int64_t _serve(DeviceTier tier, Run* run, vector[int32_t]& misses, uint64_t* served) noexcept nogil:
    """Returns how many keys of the run are done: all where the device fails."""
    cdef vector[int32_t] for_home
    cdef int64_t done = NOT_TAKEN
    cdef bint enqueued = False
    cdef size_t n
    tier.rows.lock.lock()
    if tier._open(run, run.row_bytes):
        done = tier._look_up(run, misses, for_home, served)
    if done != NOT_TAKEN:
        memset(slots_in(run.exchange) + done, 0xff, (run.count - done) * sizeof(int32_t))
        run.exchange.count = done
        if run.taken_up > 0 and not reads_rows(run.kind):
            memcpy(rows_in(run.exchange), run.rows, done * run.row_bytes)
        enqueued = run.taken_up == 0 or tier._enqueue(run)
    if not enqueued:
        tier._fail()
    if enqueued and run.taken_up > 0 and reads_rows(run.kind):
        tier.rows.lock.unlock()
        enqueued = _hand_out(tier.rows, run)
        tier.rows.lock.lock()
        if not enqueued:
            tier._fail()
    tier._close(run)
    tier.rows.lock.unlock()
    for n in range(for_home.size()):
        _serve_home(tier.table, run, for_home[n], misses, served)
    if not for_home.empty():
        sort(misses.begin(), misses.end())
    return done if enqueued else run.count


cdef void _serve_home(
        TableState* table, const Run* run, int64_t i, vector[int32_t]& misses, uint64_t* served) noexcept nogil:
    cdef int64_t key = run.keys[run.first + i]
    cdef char* row = run.rows + i * run.row_bytes
    cdef KeyState state
    if run.kind == ACCESS_ROW_PULL:
        state = pull_row_atomic(table, key, row)
    elif run.kind == ACCESS_ROW_PULL_STORED:
        state = pull_stored_atomic(table, key, row)
    elif run.kind == ACCESS_ROW_PUSH:
        state = push_row_atomic(table, key, row)
    elif run.kind == ACCESS_ROW_STEP:
        state = step_row_atomic(table, key, row, run.lr)
    elif run.kind == ACCESS_ROW_SET_STORED:
        state = set_stored_atomic(table, key, row)
    else:
        state = set_row_atomic(table, key, row)
    if state == STATE_ABSENT:
        misses.push_back(<int32_t>(run.first + i))
    else:
        served[state == STATE_REPLICA] += 1


cdef bint _hand_out(DeviceRows rows, Run* run) noexcept nogil:
    """Rows that were read, to where the caller wants them. False: the device has failed."""
    cdef const int32_t* slots = slots_in(run.exchange)
    cdef int64_t i
    if not is_planted(MUTATION_EXCHANGE_NOT_AWAITED) and not rows.finish(run.exchange):
        return False
    for i in range(run.count):
        if slots[i] >= 0:
            memcpy(run.rows + i * run.row_bytes, rows_in(run.exchange) + i * run.row_bytes, run.row_bytes)
    return True
