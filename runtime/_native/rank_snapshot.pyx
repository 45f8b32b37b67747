"""This rank's side of making a checkpoint, as Python drives it (runtime/saving.py): the cut, the rows, what ranks tell each
other.

Guarantee: nothing here waits holding the engine's lock, and every wait has a deadline or ends with the job.
One thread at a time calls ``cut``; one, maybe another, the rest.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libcpp.string cimport string
from libcpp.vector cimport vector

from intentpm.foundation.deadlines import wait_ns
from intentpm.foundation.errors import MemoryBudgetError, RankLost, save_interrupted

from intentpm.foundation.deadlines cimport FOREVER_NS
from intentpm.foundation.primitives cimport load_acquire, load_relaxed, load_relaxed_u64
from intentpm.runtime._native.apart cimport (
    SlotCursor, all_left_taken, begin_slots, give_back_snapshots, skip_unchanged, skip_unchanged_left, take_changed,
    take_left_rows, take_rows,
)
from intentpm.runtime._native.calls cimport Calls
from intentpm.runtime._native.cuts cimport Cuts
from intentpm.runtime._native.engine cimport Engine
from intentpm.runtime._native.membership cimport ENGINE_FORMING
from intentpm.runtime._native.monitor cimport Monitor
from intentpm.runtime._native.requests cimport Operation, begin_operation
from intentpm.runtime._native.rounds cimport Rounds
from intentpm.runtime._native.side_exchange cimport SideExchange
from intentpm.runtime._native.snapshot cimport Snapshot
from intentpm.runtime._native.store cimport Table
from intentpm.runtime._native.turns cimport Turns, is_over


cdef enum:
    SLOTS_AT_ONCE = 65536
    COPIES_AT_ONCE = 4096        # holding the engine's lock

cdef struct Answered:
    void* exchange
    uint64_t number


cdef bint _is_answered(void* turns, void* argument) noexcept nogil:
    cdef Answered* asked = <Answered*>argument
    return (is_over(<Turns>turns) or asked.number < (<SideExchange>asked.exchange).first
            or (<SideExchange>asked.exchange).is_answered(asked.number))


cdef class RankSnapshot:
    cdef Engine engine
    cdef Calls calls
    cdef Cuts cuts
    cdef SideExchange exchange
    cdef Monitor monitor
    cdef Rounds rounds
    cdef Turns turns
    cdef uint32_t formed         # Membership.formed, when the cut to come was begun

    def __init__(self, Engine engine not None, bytes for_the_left not None):
        """Before the engine runs. for_the_left: what ranks that have closed contribute to exchanges."""
        self.engine = engine
        self.calls = engine.calls
        self.cuts = engine.remote.cuts
        self.exchange = engine.dispatch.side
        self.monitor = engine.monitor
        self.rounds = engine.rounds
        self.turns = engine.turns
        self.exchange.for_the_left = for_the_left

    # -- the cut ---------------------------------------------------------------------------------------------------------

    def settle_replicas(self, timeout_s=None, bint cutting=False) -> None:
        """Waits until the owners have acknowledged all that this rank's replicas have for them now, and answered all that was
        asked of them. cutting: no worker writes, and ``cut`` follows.

        Raises PeerLostError, WaitTimeoutError.
        """
        cdef Operation operation
        cdef int64_t limit_ns = FOREVER_NS if timeout_s is None else wait_ns(timeout_s)
        self._check()
        begin_operation(&operation, NULL, 0, NULL, NULL)
        with nogil:
            if cutting:
                self.monitor.acquire()
                self.rounds.holder.cutting = True
                self.monitor.release()
            self.calls.sync(&operation, True)
        try:
            self.calls.wait_operation(
                &operation, limit_ns, "the owners of replicas here to take what was written to them", cutting)
        except BaseException:
            self.end_cutting()
            raise

    def await_cut(self, uint32_t formed) -> None:
        """``settle_replicas`` and ``cut`` follow. formed: when it was asked for: it is void once ranks have formed anew."""
        self.formed = formed
        self._check()

    def end_cutting(self) -> None:
        with nogil:
            self.monitor.acquire()
            self.rounds.holder.cutting = False
            self.monitor.release()

    def cut(self, list tables not None) -> int:
        """This rank's cut through ``tables``, and the end of cutting. Returns its number. Raises MemoryBudgetError;
        SaveInterruptedError where a rank was lost since the cut was begun: it is void.
        """
        cdef Table table
        cdef Snapshot* retired
        cdef uint32_t number = load_relaxed(&self.cuts.made) + 1
        cdef bint chosen, done = True, is_void = False
        for table in self.engine.tables:
            chosen = table in tables
            with nogil:
                self.monitor.acquire()
                is_void = is_void or self._is_void()
                if is_void:
                    pass
                elif chosen:
                    done = self.cuts.cut(table.state, number) and done
                else:
                    self.cuts.end(table.state, number)
                retired = table.state.retired
                self.monitor.release()
                give_back_snapshots(retired)
        with nogil:
            self.monitor.acquire()
            is_void = is_void or self._is_void()
            if not is_void:
                self.cuts.count()
            self.rounds.holder.cutting = False
            self.monitor.release()
        if is_void:
            raise save_interrupted()
        if not done:
            raise MemoryBudgetError("the system refused address space for a snapshot: raise `ulimit -v`")
        return number

    cdef bint _is_void(self) noexcept nogil:
        return self.engine.membership.state == ENGINE_FORMING or self.engine.membership.formed != self.formed

    def seal(self, list tables not None) -> None:
        """Every rank has made the cut."""
        cdef Table table
        for table in tables:
            with nogil:
                self.monitor.acquire()
                if table.state.snapshot != NULL:
                    table.state.snapshot.sealed = True
                self.monitor.release()

    def end(self, list tables not None, uint32_t number) -> None:
        """The checkpoint of that cut is made, or given up."""
        cdef Table table
        cdef Snapshot* retired
        for table in tables:
            with nogil:
                self.monitor.acquire()
                self.cuts.end(table.state, number)
                retired = table.state.retired
                self.monitor.release()
                give_back_snapshots(retired)

    # -- rows ------------------------------------------------------------------------------------------------------------

    def rows(self, Table table not None) -> int:
        """How many rows of the table this rank has to write. All ranks are sealed, and what it had asked for is answered."""
        cdef int64_t count = 0
        with nogil:
            self.monitor.acquire()
            if table.state.snapshot != NULL:
                table.state.snapshot.is_final = True
                count = table.state.snapshot.rows
            self.monitor.release()
        return count

    def take(self, Table table not None, int32_t[::1] keys, unsigned char[::1] rows, uint32_t[::1] seen=None) -> int:
        """Puts the next rows into ``keys`` [K] and ``rows`` (K stored rows); returns how many. 0: there are no more.

        seen: of each key, 1 + the version of the row that was taken last (apart.pxd); it is updated.
        """
        cdef int64_t taken
        cdef int64_t most = keys.shape[0]
        cdef bint all_taken = False
        cdef uint32_t* versions = NULL
        if seen is not None:
            versions = &seen[0]
        _check_room(table, most, rows.shape[0], -1 if seen is None else seen.shape[0])
        with nogil:
            taken = take_rows(table.state, most, &keys[0], <char*>&rows[0], versions)
            while taken == 0 and not all_taken:
                self.monitor.acquire()
                taken = take_left_rows(table.state, most, &keys[0], <char*>&rows[0], versions)
                all_taken = all_left_taken(table.state)
                self.monitor.release()
        self._check_whole(table)
        return taken

    cdef int _check_whole(self, Table table) except -1:
        if self.engine.membership.state == ENGINE_FORMING:
            raise save_interrupted()       # its end is waited for
        if load_acquire(&table.state.snapshot.broken):
            raise MemoryBudgetError(
                f"table {table.name!r} was written to faster than its rows could be saved: "
                f"{self.engine.budget.copies.held_bytes} bytes of rows were set apart meanwhile, for which this rank's "
                f"memory_budget of {self.engine.budget.limit_bytes} has no more room: raise it (init(memory_budget=...), "
                "INTENTPM_MEMORY_BUDGET)")
        return 0

    def skip_unchanged(self, Table table not None, const uint32_t[::1] seen) -> None:
        """Before ``take``: rows that are as they were when ``seen`` was updated are not to be written."""
        cdef int64_t first = 0, end = 1, skipped
        _check_room(table, 1, table.state.stored_bytes, seen.shape[0])
        with nogil:
            while first < table.state.slots_touched:
                end = first + SLOTS_AT_ONCE
                skipped = skip_unchanged(table.state, first, end, &seen[0])
                first = end
                self.monitor.acquire()
                table.state.snapshot.rows -= skipped
                self.monitor.release()
            first = 0
            while first < <int64_t>load_acquire(&table.state.snapshot.copies_touched):
                self.monitor.acquire()
                table.state.snapshot.rows -= skip_unchanged_left(
                    table.state, <uint32_t>first, <uint32_t>(first + COPIES_AT_ONCE), &seen[0])
                self.monitor.release()
                first += COPIES_AT_ONCE
        self._check_whole(table)

    def take_changed(
            self, Table table not None, tuple begun, int64_t[::1] keys, unsigned char[::1] rows,
            uint32_t[::1] seen) -> tuple:
        """Rows owned here that have changed since ``seen`` was updated, without a snapshot: (how many, how far it has got).

        begun: how far it had got; None: it begins. Fewer than there are ``keys``: there are no more.
        """
        cdef int64_t taken
        cdef SlotCursor at
        cdef int64_t most = keys.shape[0]
        _check_room(table, most, rows.shape[0], seen.shape[0])
        if begun is None:
            begin_slots(table.state, &at)
        else:
            at.slot, at.times_packed = begun
        with nogil:
            taken = take_changed(table.state, &at, most, &keys[0], <char*>&rows[0], &seen[0])
        return taken, (at.slot, at.times_packed)

    # -- telling ---------------------------------------------------------------------------------------------------------

    def contribute(self, uint64_t number, bytes payload not None) -> None:
        """This rank's part of exchange ``number``. Does not wait."""
        cdef const char* data = payload
        cdef size_t size_bytes = len(payload)
        with nogil:
            self.monitor.acquire()
            if not is_over(self.turns):
                self.exchange.contribute(number, data, size_bytes)
                self.turns.wake_finished()
                self.turns.wake_waiters()
                self.monitor.arm_sleeper()
            self.monitor.release()

    def call(self, uint64_t number) -> None:
        """Of rank 0: has the other ranks hear that ``number`` is due. Does not wait."""
        with nogil:
            self.monitor.acquire()
            if not is_over(self.turns):
                self.exchange.call(number)
                self.monitor.arm_sleeper()
            self.monitor.release()

    def called(self) -> int:
        """The newest number that rank 0 has called for; 0: none. Cheap enough to poll."""
        return load_relaxed_u64(&self.exchange.called)

    def made(self) -> int:
        """How many cuts this rank has made."""
        return load_relaxed(&self.cuts.made)

    def answers(self, uint64_t number, what: str, timeout_s=None) -> list:
        """The parts of all ranks, in rank order, when they have come. Raises PeerLostError, ClosedError, WaitTimeoutError."""
        cdef Answered asked
        cdef bint is_answered
        cdef string raw
        cdef int64_t limit_ns = FOREVER_NS if timeout_s is None else wait_ns(timeout_s)
        asked.exchange = <void*>self.exchange
        asked.number = number
        try:
            self.calls.wait(_is_answered, &asked, limit_ns, lambda: f"{what}{self._absent(number)}")
        except RankLost as loss:
            raise save_interrupted() from loss
        with nogil:
            self.monitor.acquire()
            # Where ranks form anew, too: others may have the answer, and what comes of it must be the same on all.
            is_answered = self.exchange.is_answered(number)
            if is_answered:
                self.exchange.take(number, raw)
            self.monitor.release()
        if not is_answered:
            self._check()
            raise save_interrupted()
        return _payloads(raw)

    def exchanges_held(self) -> int:
        """Of how many exchanges something is kept here."""
        cdef size_t held
        with nogil:
            self.monitor.acquire()
            held = self.exchange.held()
            self.monitor.release()
        return held

    def _check(self):
        """Raises what keeps the rank from working. Does not wait for ranks that form anew: they wait for the end of saves."""
        if self.engine.membership.state == ENGINE_FORMING:
            raise save_interrupted()
        self.calls.raise_state()

    def _absent(self, uint64_t number):
        cdef vector[uint32_t] ranks
        with nogil:
            self.monitor.acquire()
            self.exchange.absent(number, ranks)
            self.monitor.release()
        return f": ranks {list(ranks)} have not come" if ranks.size() else ""


cdef int _check_room(Table table, int64_t keys, int64_t rows_bytes, int64_t seen) except -1:
    if keys < 1 or rows_bytes < keys * <int64_t>table.state.stored_bytes or (seen != -1 and seen < table.num_keys):
        raise ValueError("an array is too small")
    return 0


cdef list _payloads(bytes raw):
    cdef int size = memoryview(raw)[:4].cast("I")[0]
    lengths = memoryview(raw)[4:4 + 4 * size].cast("I").tolist()
    payloads = []
    at = 4 + 4 * size
    for length in lengths:
        payloads.append(raw[at:at + length])
        at += length
    return payloads
