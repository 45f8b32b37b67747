"""Worker: a training thread's handle to the parameter manager. Step (1) of the data path.

Every access: check the arguments, serve what is local straight from the store, ask the owners for the rest.

Guarantees
    * Arguments are checked before anything is applied.
    * A worker reads its own writes (DESIGN section 3): a call that touches a key of an unacknowledged asynchronous write of
      this worker waits for the acknowledgement first.
Assumption: one thread at a time uses a worker (checked).
"""

from libc.stdint cimport int64_t, uint32_t

cimport numpy as cnp

import numpy as np

from intentpm.foundation.errors import ClosedError, Error, RankLost, ShapeError, WindowError
from intentpm.foundation.handles import refuse_to_cross

from intentpm.foundation.deadlines cimport FOREVER_NS
from intentpm.foundation.primitives cimport (
    exchange_acquire, fence_seq_cst, load_acquire, load_relaxed, load_relaxed_i64, load_relaxed_u64,
)
from intentpm.runtime._native.batches cimport (
    AccessCounts, pull_rows, pull_stored_rows, push_rows, set_rows, set_stored_rows, step_rows,
)
from intentpm.runtime._native.coverage cimport sample_coverage
from intentpm.runtime._native.dirty_stack cimport is_dirty
from intentpm.runtime._native.duplicates cimport Duplicates
from intentpm.runtime._native.engine cimport Engine
from intentpm.runtime._native.intents cimport NEVER, NO_ATTENTION, URGENT, Attention, IntentQueue
from intentpm.runtime._native.key_filter cimport forget_keys, mark_keys, may_have
from intentpm.runtime._native.messages cimport (
    ACCESS_PULL, ACCESS_PULL_STORED, ACCESS_PUSH, ACCESS_SET, ACCESS_SET_STORED, ACCESS_STEP, is_read,
)
from intentpm.runtime._native.mutations cimport MUTATION_WRITES_NOT_SETTLED, is_planted
from intentpm.runtime._native.remote cimport Submission
from intentpm.runtime._native.requests cimport Operation, begin_operation, end_here, end_operation
from intentpm.runtime._native.store cimport Table
from intentpm.runtime._native.table_state cimport TableState
from intentpm.runtime.call_arguments cimport (
    check_step, clock_of, keys_of, learning_rate, rate_of_call, rows_for, steps_of, values_for,
)
from intentpm.runtime.futures cimport Future, OpenWrites
from intentpm.runtime.workers_of_rank cimport CountedWorker, WorkersOfRank

cnp.import_array()

cdef enum:
    GIL_KEYS = 32                # below, releasing the GIL costs more than the rows


cdef class Worker(CountedWorker):
    """A training thread's handle to the tables; ``worker.clock`` starts at 0. Made by ``ParameterManager.worker()``.

    Shapes: ``K`` keys in a call. ``keys`` is an int64 array [K] (any integer array, tensor or sequence is converted),
    duplicates allowed.
    All calls release the GIL while they copy more than a few rows or wait for other ranks.
    Threads: one at a time uses a worker (checked); any may look at ``clock`` and ``access_counts``.
    Attributes: ``manager``, the ParameterManager; ``worker_id``, from 0 on in the order the rank made its workers.
    """

    def __cinit__(self):
        self.duplicates = Duplicates()
        self.steps = {}
        self.open_writes = OpenWrites()
        self.use = WORKER_CLOSED

    def __init__(self, manager, Engine engine not None, WorkersOfRank workers not None, worker_id: int):
        self.manager = manager
        self.exact = manager.exact_clocks
        if self.exact is not None:
            self.steps = self.exact.steps
        self.engine = engine
        self.worker_id = worker_id
        self.intents = IntentQueue(manager.config.timing == "immediate", worker_id, manager.size - 1)
        self.managed = engine.rounds.uses_intents()
        self.workers = workers
        self.join(engine.membership, manager)
        engine.add_worker(self.intents)
        self.use = WORKER_IDLE
        self.is_counted = True
        workers.members.add(self)

    def __del__(self):
        """Nobody can use it any more: its intents end. Its writes are under way, and are not waited for."""
        self._end()

    # -- public: rows ----------------------------------------------------------------------------------------------------

    def pull(self, Table table not None, keys, out=None):
        """Reads the rows of ``keys``.

        Parameters
            keys: int64 [K].
            out: array or torch tensor (in host memory) [K, *row_shape] of the table's dtype, C-contiguous and writable,
                to read into. Default: a new array.
        Returns the rows, ``out`` or ndarray [K, *row_shape]: each row as some write left it, never torn.
        Raises KeyRangeError, ShapeError, DtypeError (nothing read), PeerLostError (``out`` is undefined), ClosedError.
        """
        cdef Operation operation
        cdef cnp.ndarray wanted = self._begin(table, keys)
        cdef cnp.ndarray rows
        try:
            rows = rows_for(table, wanted, out)
            self._access_local(table, ACCESS_PULL, wanted, <char*>cnp.PyArray_DATA(rows))
            if not self.misses.empty():
                self._access_remote(&operation, table, ACCESS_PULL, wanted, rows)
            return rows if out is None else out
        finally:
            self.use = WORKER_IDLE

    def push(self, Table table not None, keys, deltas):
        """Adds to rows: ``row += delta``; deltas of duplicate keys accumulate. Integers wrap, as in numpy.

        Parameters
            keys: int64 [K].
            deltas: [K, *row_shape] of the table's dtype: an array, a torch tensor in host memory, or nested lists of
                numbers that the dtype can hold.
        Returns when applied here or acknowledged by the owners.
        Raises KeyRangeError, ShapeError, DtypeError (nothing applied), PeerLostError, ClosedError.
        """
        self._write(table, ACCESS_PUSH, keys, deltas)

    def set(self, Table table not None, keys, values):
        """Overwrites rows. Of duplicate keys any one of the values may win. Otherwise as ``push``."""
        self._write(table, ACCESS_SET, keys, values)

    def pull_async(self, Table table not None, keys, out=None):
        """As ``pull``, but returns a Future at once; its ``result()`` is the rows.

        The rows reflect this worker's writes issued before the call, and may reflect later ones.
        """
        cdef cnp.ndarray wanted = self._begin(table, keys)
        cdef cnp.ndarray rows
        cdef Future future
        try:
            rows = rows_for(table, wanted, out)
            future = self._new_future(table, ACCESS_PULL, rows)
            future.answer = rows if out is None else out
            self._access_local(table, ACCESS_PULL, wanted, <char*>cnp.PyArray_DATA(rows))
            self._submit(&future.operation, wanted, <char*>cnp.PyArray_DATA(rows), False)
            return future
        finally:
            self.use = WORKER_IDLE

    def push_async(self, Table table not None, keys, deltas):
        """As ``push``, but returns a Future at once; ``keys`` and ``deltas`` may be reused right away.

        Waits only for memory: when too many requests to one rank are unanswered.
        """
        return self._write_async(table, ACCESS_PUSH, keys, deltas)

    def set_async(self, Table table not None, keys, values):
        """As ``set``, but returns a Future at once; ``keys`` and ``values`` may be reused right away."""
        return self._write_async(table, ACCESS_SET, keys, values)

    # -- public: gradients of tables with an optimizer -------------------------------------------------------------------

    def push_grad(self, Table table not None, keys, gradients, lr=None, duplicates="sum"):
        """Takes one step of the table's optimizer on each row. Only tables made with ``create_table(optimizer=...)``.

        Each step is atomic and is taken once. On a replica it shows at once, and is kept for the row's owner
        (docs/optimisers.md says what is exact then). With ``init(sync="exact")`` nothing shows before the clock advances.

        Parameters
            keys: int64 [K].
            gradients: [K, *row_shape] of the table's dtype.
            lr: learning rate of this call, >= 0; default: the optimizer's.
            duplicates: "sum": gradients of a key that comes several times are summed, then it is stepped once. "each": it is
                stepped once for each, in the order of the batch where the row is on this rank, in any order where it is not.
        Returns when applied here or acknowledged by the owners.
        Raises OptimizerError, KeyRangeError, ShapeError, DtypeError (nothing applied), PeerLostError, ClosedError.
        """
        if self.exact is None:
            self.take_step(table, keys, gradients, lr, duplicates)
        else:
            self.push_grad_async(table, keys, gradients, lr, duplicates)

    def take_step(self, Table table not None, keys, gradients, lr=None, duplicates="sum"):
        """``push_grad``, at once in any case."""
        cdef Operation operation
        cdef cnp.ndarray wanted
        cdef cnp.ndarray rows
        check_step(table, duplicates)
        wanted = self._begin(table, keys)
        try:
            self._pass_gate()
            self.lr = learning_rate(table, lr)
            wanted, rows = steps_of(table, self.duplicates, wanted, gradients, duplicates)
            self.lr = rate_of_call(table, self.steps, self.lr)
            self._access_local(table, ACCESS_STEP, wanted, <char*>cnp.PyArray_DATA(rows))
            if not self.misses.empty():
                self._access_remote(&operation, table, ACCESS_STEP, wanted, rows)
        finally:
            self._end_write()

    def push_grad_async(self, Table table not None, keys, gradients, lr=None, duplicates="sum"):
        """As ``push_grad``, but returns a Future at once; ``keys`` and ``gradients`` may be reused right away."""
        cdef cnp.ndarray wanted
        cdef cnp.ndarray rows
        check_step(table, duplicates)
        wanted = self._begin(table, keys)
        try:
            self._pass_gate()
            self.lr = learning_rate(table, lr)
            if self.exact is not None:
                rows = values_for(table, wanted, gradients)
                self.exact.keep(self, table, wanted, rows, self.lr, duplicates)
                return self._begin_write(table, ACCESS_STEP, wanted[:0], rows[:0])
            wanted, rows = steps_of(table, self.duplicates, wanted, gradients, duplicates)
            self.lr = rate_of_call(table, self.steps, self.lr)
            return self._begin_write(table, ACCESS_STEP, wanted, rows)
        finally:
            self._end_write()

    def pull_state(self, Table table not None, keys) -> dict:
        """Reads what the table's optimizer keeps of rows, as of one moment per row.

        keys: int64 [K].
        Returns arrays by name: what the optimizer's class lists, and "rounding" where weights are rounded at random;
        [K, *row_shape], or [K] for one number per row; none for SGD that rounds to nearest. float64 of a float64 table, else
        float32; "step" and "rounding" are uint32.
        Raises OptimizerError, KeyRangeError, ShapeError, DtypeError, PeerLostError, ClosedError.
        """
        cdef Operation operation
        cdef cnp.ndarray wanted
        cdef cnp.ndarray rows
        check_step(table, "sum")
        wanted = self._begin(table, keys)
        try:
            rows = np.empty(cnp.PyArray_DIM(wanted, 0), table.stored_dtype)
            self._access_local(table, ACCESS_PULL_STORED, wanted, <char*>cnp.PyArray_DATA(rows))
            if not self.misses.empty():
                self._access_remote(&operation, table, ACCESS_PULL_STORED, wanted, rows)
            return {name: np.ascontiguousarray(rows[name]) for name in table.stored_dtype.names[1:]}
        finally:
            self.use = WORKER_IDLE

    def set_stored(self, Table table not None, keys, rows):
        """Overwrites whole rows, the optimizer's state included; what loading a checkpoint does.

        rows: [K] of ``table.stored_dtype``, C-contiguous; of a table without an optimizer as the values of ``set``.
        Otherwise as ``set``.
        """
        cdef Operation operation
        cdef cnp.ndarray wanted
        cdef cnp.ndarray stored
        if table.stored_dtype is None:
            self._write(table, ACCESS_SET, keys, rows)
            return
        wanted = self._begin(table, keys)
        try:
            self._pass_gate()
            given = np.ascontiguousarray(rows)
            if given.dtype != table.stored_dtype or given.shape != (len(wanted),):
                raise ShapeError(f"rows of {given.dtype}{given.shape}: table {table.name!r} stores {table.stored_dtype}")
            stored = given
            self._access_local(table, ACCESS_SET_STORED, wanted, <char*>cnp.PyArray_DATA(stored))
            if not self.misses.empty():
                self._access_remote(&operation, table, ACCESS_SET_STORED, wanted, stored)
        finally:
            self._end_write()

    # -- public: samples -------------------------------------------------------------------------------------------------

    def prepare_sample(self, source, n, start, end=None):
        """Announces that this worker will pull ``n`` keys of the manager's choice while its clock is in [start, end).

        source: a Table, whose last declared sampling is used, or a Sampling (``ParameterManager.create_sampling``).
        end: default start + 1.
        Returns a Sample for ``pull_sample``; one that is never pulled needs no clean-up.
        Raises SampleError, WindowError; as ``intent`` where the scheme signals one.
        """
        if self.use != WORKER_IDLE:
            self._refuse()
        sampling = self.manager.sampling(source) if isinstance(source, Table) else source
        return sampling.prepare(self, n, start, end)

    def pull_sample(self, sample, n=None) -> tuple:
        """The next ``n`` keys of a prepared sample and their rows: (int64 [n], ndarray [n, *row_shape]).

        n: default: all keys left.
        Raises SampleError (fewer left, or another worker's sample), and as ``pull``.
        """
        if self.use != WORKER_IDLE:
            self._refuse()
        keys = sample.sampling.take(sample, self, n)
        return keys, self.pull(sample.sampling.table, keys)

    # -- public: intent and time -----------------------------------------------------------------------------------------

    def intent(self, Table table not None, keys, start, end=None) -> None:
        """Says that this worker will access ``keys`` while its clock is in [start, end); ``end`` defaults to start + 1.

        start, end: whole numbers; those beyond 2^63 count as never.
        Returns at once. A window that is already over is a no-op.
        Raises WindowError (end not after start), KeyRangeError, ShapeError, DtypeError.
        """
        cdef int64_t first = min(clock_of(start, "start"), <int64_t>NEVER - 1)
        cdef int64_t last = first + 1 if end is None else clock_of(end, "end")
        cdef cnp.ndarray wanted
        if last <= first:
            raise WindowError(f"intent window [{first}, {last}) is empty: end must be after start")
        wanted = self._check_call(table, keys)
        if last > self.intents.clock and (self.managed or (table.state.tier != NULL and table.state.tier.fetch != NULL)):
            self._signal(table, wanted, first, last)

    def advance_clock(self) -> int:
        """Adds one to this worker's clock; returns the new clock.

        With ``init(sync="exact")`` collective: the step of this clock's gradients is taken on all ranks first. Raises then
        CollectiveMismatchError (another rank makes another call, or is at another clock), WaitTimeoutError (it makes none,
        within ``clock_timeout``; call it again to wait on), OptimizerError (ranks have different ``lr``), PeerLostError.
        The clock has not advanced then; but for WaitTimeoutError its gradients are forgotten.
        """
        cdef Attention attention
        if self.use == WORKER_CLOSED:
            self._refuse()
        if self.exact is not None:
            self.exact.end_clock(self)
        attention = self.intents.advance()
        if attention != NO_ATTENTION:
            self._kick(attention == URGENT)
        return load_relaxed_i64(&self.intents.clock)

    @property
    def clock(self) -> int:
        """This worker's logical time: how often ``advance_clock`` was called. Any thread may look."""
        return load_relaxed_i64(&self.intents.clock)

    def wait_sync(self, timeout=None) -> None:
        """Waits until this worker's earlier writes are at the owners, its due intents are acted on, and this rank's replicas
        hold what the owners had when it was called.

        timeout: seconds; None waits as long as the owners are alive. Raises PeerLostError, WaitTimeoutError.
        """
        self._wait_synced(False, timeout)

    def wait_intents(self, timeout=None) -> None:
        """Waits until this worker's earlier writes are at the owners, and its due intents are acted on: their keys are here, or
        stay where they are. Unlike ``wait_sync`` it has no replica refreshed.

        timeout: seconds; None waits as long as the owners are alive. Raises PeerLostError, WaitTimeoutError.
        """
        self._wait_synced(True, timeout)

    def wait_sync_async(self):
        """As ``wait_sync``, but returns a Future at once (after this worker's asynchronous writes are acknowledged)."""
        return self._sync(False)

    cdef _wait_synced(self, bint settles, object timeout):
        try:
            self._sync(settles).wait(timeout)
        except RankLost:
            self.check_state(self.engine, self.manager)
            raise

    cdef Future _sync(self, bint settles):
        cdef Future future
        self.check_state(self.engine, self.manager)
        if self.use != WORKER_IDLE:
            self._refuse()
        self._settle_writes(None)
        future = self._new_future(None, ACCESS_PULL, None)
        with nogil:
            self.engine.calls.sync(&future.operation, settles)
        return future

    def close(self) -> None:
        """Waits for this worker's asynchronous writes, ends its intents, and gives its memory back; its counts stay in
        ``pm.stats()``. Idempotent. Any thread, while no other call of the worker is in progress. Futures go on.

        The end of the last reference to a worker does the same without waiting; so does the end of the manager's with
        block for all of them. ``with pm.worker() as worker:`` closes at the end of the block.
        Raises PeerLostError; Error when another thread uses the worker; it is not closed then.
        """
        if self.use == WORKER_CLOSED:
            return
        if self.use == WORKER_BUSY:
            self._refuse()
        self.use = WORKER_BUSY
        try:
            self._settle_writes(None)
        except RankLost:
            pass                         # there is nobody left to go on
        finally:
            self.use = WORKER_IDLE
        self._end()

    def access_counts(self, table_id: int) -> tuple:
        """(local, replica, remote) keys accessed in a table since the worker was made. Any thread."""
        cdef AccessCounts* counts = &self.counts[table_id]
        return (load_relaxed_u64(&counts.local), load_relaxed_u64(&counts.replica), load_relaxed_u64(&counts.remote))

    def settle(self) -> None:
        """Waits for this worker's asynchronous writes."""
        self._settle_writes(None)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.close()

    cdef _end(self):
        if self.use != WORKER_CLOSED:
            self.use = WORKER_CLOSED
            if self.exact is not None:
                self.exact.release(self)
            self.workers.take(self, self.engine.remote.table_count)
            self.engine.remove_worker(self.intents)

    cdef _refuse(self):
        self.engine.calls.raise_state()
        if self.use == WORKER_CLOSED:
            raise ClosedError(f"{self!r} is closed: make another (pm.worker())")
        raise Error("two threads use one worker at the same time: make one worker per thread (pm.worker())")

    # -- arguments -------------------------------------------------------------------------------------------------------

    cdef cnp.ndarray _begin(self, Table table, object keys):
        cdef cnp.ndarray wanted = self._check_call(table, keys)
        if self.open_keys.any:
            self._settle_own_writes(wanted)
        if self.use != WORKER_IDLE:          # another thread came while keys were converted, or writes settled
            self._refuse()
        self.use = WORKER_BUSY
        return wanted

    cdef int _pass_gate(self) except -1:
        self.workers.pass_gate(self.engine)
        self.writes_now = True
        return 0

    cdef int _end_write(self) except -1:
        self.use = WORKER_IDLE
        if self.writes_now:
            self.writes_now = False
            self.workers.leave_gate(self.engine)
        return 0

    cdef cnp.ndarray _check_call(self, Table table, object keys):
        """Checks state, table and keys; returns the keys as int64 [K], contiguous."""
        if self.is_watched or load_acquire(&self.engine.membership.state):
            self.check_state(self.engine, self.manager)
        if self.engine.remote.tables[table.table_id] != table.state:
            raise Error(f"{table!r} belongs to another parameter manager")
        if self.use != WORKER_IDLE:
            self._refuse()
        return keys_of(table, keys)

    cdef _signal(self, Table table, cnp.ndarray keys, int64_t start, int64_t end):
        cdef Attention attention = NO_ATTENTION
        cdef const int64_t* wanted = <const int64_t*>cnp.PyArray_DATA(keys)
        cdef uint32_t count = <uint32_t>cnp.PyArray_DIM(keys, 0)
        if not self.intents.signal(table.table_id, wanted, count, start, end, &attention):
            raise Error(
                "more than 2^28 keys are intended by this worker and not over yet (or memory ran out): signal intents "
                "later, with shorter windows, or advance the clock")
        if attention != NO_ATTENTION:
            self._kick(attention == URGENT)

    cdef void _kick(self, bint urgent) noexcept:
        if self.engine.turns.kick(urgent):
            with nogil:
                self.engine.turns.help()

    # -- local, then remote ----------------------------------------------------------------------------------------------

    cdef _access_local(self, Table table, int kind, cnp.ndarray keys, char* rows):
        cdef const int64_t* wanted = <const int64_t*>cnp.PyArray_DATA(keys)
        cdef int64_t count = cnp.PyArray_DIM(keys, 0)
        self.misses.clear()
        if count < GIL_KEYS and table.state.tier == NULL:
            self._access_rows(table, kind, wanted, count, rows)
        else:
            with nogil:
                self._access_rows(table, kind, wanted, count, rows)
        if not is_read(kind) and is_dirty(table.state):
            self._note_dirt()
        if table.state.tier != NULL and load_relaxed(&table.state.tier.lacking) and (
                exchange_acquire(&table.state.tier.lacking, 0)):
            self._kick(False)
        if table.state.tier != NULL and table.state.tier.failed:
            self.engine.look_now()       # the others are told before this rank's program ends
            table.tier.check()

    cdef void _note_dirt(self) noexcept:
        """Tells the engine that there is something to synchronise, once until it has collected it."""
        fence_seq_cst()                  # see rank_writes.pxd
        if load_relaxed(&self.engine.rounds.writes.noted) == 0 and exchange_acquire(&self.engine.rounds.writes.noted, 1) == 0:
            self._kick(False)

    cdef void _access_rows(
            self, Table table, int kind, const int64_t* keys, int64_t count, char* rows) noexcept nogil:
        if kind == ACCESS_PULL:
            pull_rows(table.state, keys, count, rows, self.misses, &self.counts[table.table_id])
        elif kind == ACCESS_PUSH:
            push_rows(table.state, keys, count, rows, self.misses, &self.counts[table.table_id])
        elif kind == ACCESS_STEP:
            step_rows(table.state, keys, count, rows, self.lr, self.misses, &self.counts[table.table_id])
        elif kind == ACCESS_PULL_STORED:
            pull_stored_rows(table.state, keys, count, rows, self.misses, &self.counts[table.table_id])
        elif kind == ACCESS_SET_STORED:
            set_stored_rows(table.state, keys, count, rows, self.misses, &self.counts[table.table_id])
        else:
            set_rows(table.state, keys, count, rows, self.misses, &self.counts[table.table_id])
        if self.managed:
            sample_coverage(
                table.state, keys, count, self.misses, &self.counts[table.table_id], is_read(kind), self.engine.transport,
                &self.intents.clocks.clock_ns)

    cdef _access_remote(self, Operation* operation, Table table, int kind, cnp.ndarray keys, cnp.ndarray rows):
        cdef char* data = <char*>cnp.PyArray_DATA(rows)
        begin_operation(operation, table.state, kind, data, NULL)
        try:
            self._submit(operation, keys, data, True)
            self.engine.calls.wait_operation(operation, FOREVER_NS, "an access to remote keys")
        except RankLost:
            self.check_state(self.engine, self.manager)          # tells all that this worker was not told
            raise
        finally:
            end_operation(operation)

    cdef _submit(self, Operation* operation, cnp.ndarray keys, char* rows, bint will_wait):
        cdef Submission submission
        if self.misses.empty():              # nobody is asked, so the engine, which may be busy with large rows, need not know
            end_here(operation)
            return
        submission.keys = <const int64_t*>cnp.PyArray_DATA(keys)
        submission.rows = rows
        submission.lr = self.lr
        submission.at = 0
        submission.count = <uint32_t>self.misses.size()
        with nogil:
            self.engine.calls.submit(operation, &submission, <const uint32_t*>self.misses.data(), will_wait)

    cdef _write(self, Table table, int kind, object keys, object values):
        cdef Operation operation
        cdef cnp.ndarray wanted = self._begin(table, keys)
        cdef cnp.ndarray rows
        try:
            self._pass_gate()
            rows = values_for(table, wanted, values)
            self._access_local(table, kind, wanted, <char*>cnp.PyArray_DATA(rows))
            if not self.misses.empty():
                self._access_remote(&operation, table, kind, wanted, rows)
        finally:
            self._end_write()

    cdef Future _write_async(self, Table table, int kind, object keys, object values):
        cdef cnp.ndarray wanted = self._begin(table, keys)
        cdef cnp.ndarray rows
        try:
            self._pass_gate()
            rows = values_for(table, wanted, values)
            return self._begin_write(table, kind, wanted, rows)
        finally:
            self._end_write()

    cdef Future _begin_write(self, Table table, int kind, cnp.ndarray keys, cnp.ndarray rows):
        cdef Future future
        self._access_local(table, kind, keys, <char*>cnp.PyArray_DATA(rows))
        future = self._new_future(table, kind, None)
        if not self.misses.empty():
            mark_keys(&self.open_keys, <const int64_t*>cnp.PyArray_DATA(keys), self.misses)
            self.writes.append(future)
        self._submit(&future.operation, keys, <char*>cnp.PyArray_DATA(rows), False)
        return future

    cdef Future _new_future(self, Table table, int kind, object rows):
        cdef Future future = Future.__new__(Future)
        cdef char* data = <char*>NULL if rows is None else <char*>cnp.PyArray_DATA(<cnp.ndarray>rows)
        cdef uint32_t* open_writes = NULL
        cdef TableState* state = <TableState*>NULL if table is None else table.state
        if not is_read(kind):
            open_writes = &self.open_writes.count
            future.open_writes = self.open_writes
        future.engine = self.engine
        future.table = table
        future.rows = rows
        begin_operation(&future.operation, state, kind, data, open_writes)
        return future

    # -- a worker reads its own writes -----------------------------------------------------------------------------------

    cdef _settle_own_writes(self, cnp.ndarray keys):
        """Waits for the asynchronous writes when one of ``keys`` may be among theirs (a filter: false alarms cost time)."""
        if is_planted(MUTATION_WRITES_NOT_SETTLED):
            return
        if load_acquire(&self.open_writes.count) == 0 or may_have(
                &self.open_keys, <const int64_t*>cnp.PyArray_DATA(keys), cnp.PyArray_DIM(keys, 0)):
            self._settle_writes(None)

    cdef _settle_writes(self, object timeout):
        cdef list writes = self.writes
        cdef bint is_lost = False
        for future in writes:
            try:
                future.wait(timeout)
            except RankLost:
                is_lost = True
        self.writes = []
        forget_keys(&self.open_keys)
        if is_lost:
            self.check_state(self.engine, self.manager)

    def __reduce_ex__(self, protocol):
        refuse_to_cross(self, "make accesses here, in a thread with a worker of its own, and pass keys and rows on")

    def __repr__(self):
        return f"<intentpm.Worker {self.worker_id} of rank {self.engine.transport.rank}, clock {self.clock}>"
