"""The workers of a rank; ``workers_of_rank.pxd`` is the contract."""

import weakref
from contextlib import suppress

from libc.stdint cimport int64_t, uint32_t
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdlib cimport calloc, free

from intentpm.foundation.deadlines import wait_ns
from intentpm.foundation.errors import RankLost

from intentpm.foundation.deadlines cimport FOREVER_NS
from intentpm.foundation.primitives cimport load_acquire, load_relaxed, load_relaxed_i64, load_relaxed_u64
from intentpm.runtime._native.batches cimport AGES, AccessCounts
from intentpm.runtime._native.budget cimport Budget, copies_waiting
from intentpm.runtime._native.engine cimport Engine
from intentpm.runtime._native.membership cimport Membership
from intentpm.runtime._native.remote cimport MAX_TABLES
from intentpm.runtime._native.requests cimport Operation
from intentpm.runtime._native.turns cimport Turns, is_over
from intentpm.runtime.futures cimport Future


cdef enum:
    CATCH_UP_NS = 5_000_000      # that a write waits at most while a checkpoint is behind


cdef bint _is_open(void* turns, void* gate) noexcept nogil:
    return load_relaxed(<uint32_t*>gate) == 0


cdef bint _is_done(void* turns, void* operation) noexcept nogil:
    return load_acquire(&(<Operation*>operation).done) != 0


cdef bint _has_caught_up(void* turns, void* budget) noexcept nogil:
    return is_over(<Turns>turns) or copies_waiting(<Budget>budget) <= (<Budget>budget).copies.most_bytes // 2


cdef bint _nobody_writes(void* turns, void* writing) noexcept nogil:
    return load_relaxed(<uint32_t*>writing) == 0


cdef class CountedWorker:
    def __cinit__(self):
        self.counts = <AccessCounts*>calloc(MAX_TABLES, sizeof(AccessCounts))
        if self.counts == NULL:
            raise MemoryError
        self.writes = []

    def __dealloc__(self):
        free(self.counts)

    # -- ranks that are lost -----------------------------------------------------------------------------------------------

    cdef join(self, Membership membership, manager):
        self.membership = membership
        self.told = 0 if manager.going_on is None else manager.going_on.told
        self.is_watched = membership.continues

    cdef int check_state(self, Engine engine, manager) except -1:
        cdef uint32_t told
        self.thread_id = PyThread_get_thread_ident()
        if load_acquire(&self.membership.state):
            engine.calls.raise_state()
        told = self.take_told()
        if told != self.told:
            manager.going_on.note_told()
            raise manager.going_on.loss_between(told, self.told)
        return 0

    def is_told(self) -> bool:
        """Of all ranks that were lost."""
        return self.told == self.membership.formed

    def is_of_this_thread(self) -> bool:
        """The calling thread used it last."""
        return self.thread_id == PyThread_get_thread_ident()

    cpdef uint32_t take_told(self):
        """It counts as told from now on; returns of how many times it was, before."""
        cdef uint32_t told = self.told
        self.told = self.membership.formed
        return told


cdef class WorkersOfRank:
    def __cinit__(self):
        self.members = weakref.WeakSet()
        self.writes = []
        self.past = <AccessCounts*>calloc(MAX_TABLES, sizeof(AccessCounts))
        if self.past == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.past)

    def settle(self) -> None:
        """Waits for the asynchronous writes of all workers."""
        for worker in list(self.members):
            with suppress(RankLost):
                worker.settle()
        for write in self.writes:
            with suppress(RankLost):
                write.wait()

    def close_gate(self, Engine engine not None, timeout_s=None) -> None:
        """Waits until no write of this rank's workers is under way, and lets none begin until ``open_gate``."""
        cdef bint limited = timeout_s is not None
        cdef int64_t limit_ns = wait_ns(timeout_s) if limited else FOREVER_NS
        cdef int64_t end_ns = engine.transport.now_ns() + limit_ns if limited else 0
        self.gate = 1
        engine.calls.wait(_nobody_writes, &self.writing, limit_ns, "writes of this rank's workers to end")
        # Whoever began them owns the waits: here they are looked at alone, and not given up when the time is over.
        for write in [write for worker in list(self.members) for write in (<CountedWorker>worker).writes] + self.writes:
            engine.calls.wait(
                _is_done, &(<Future>write).operation, max(0, end_ns - engine.transport.now_ns()) if limited else FOREVER_NS,
                "asynchronous writes of this rank's workers to end")
        engine.calls.raise_state()

    def open_gate(self, Engine engine not None) -> None:
        self.gate = 0
        _wake_waiters(engine)

    cdef int pass_gate(self, Engine engine) except -1:
        if engine.budget.limit_bytes and engine.budget.copies.held_bytes:
            _let_save_catch_up(engine)
        while self.gate:
            with suppress(RankLost):     # of which the worker hears in its next call
                engine.calls.wait(_is_open, &self.gate, FOREVER_NS, "a checkpoint's cut")
            engine.calls.raise_state()
        self.writing += 1        # nothing since the look at the gate gives the GIL up
        return 0

    cdef int leave_gate(self, Engine engine) except -1:
        self.writing -= 1
        if self.gate:
            _wake_waiters(engine)
        return 0

    cdef take(self, CountedWorker worker, uint32_t table_count):
        cdef uint32_t table_id
        worker.is_counted = False
        for table_id in range(table_count):
            _add_counts(&self.past[table_id], &worker.counts[table_id])
        # A write that nobody keeps would be given up: one whose key is on its way here waits for it.
        self.writes = [write for write in self.writes if not write.done()] + worker.writes

    def access_counts(self, table_id: int) -> tuple:
        """Keys accessed in a table by all workers since start. Any thread.

        Returns (local, replica, remote); (sampled, announced, in_time): of how many it was looked whether an intent of this
        rank announced them, of how many one did, and how many of these were here; and (ages_ms, ages_clocks): of these, the
        pulls from replicas by the age of the row, below 1, 2, 4 and so on, the last of any age.
        """
        cdef AccessCounts total
        cdef CountedWorker worker
        workers = list(self.members)
        total = self.past[<int>table_id]         # from here on no other thread runs Python
        for worker in workers:
            if worker.is_counted:
                _add_counts(&total, &worker.counts[<int>table_id])
        looked_at = (total.sampled, total.announced, total.in_time)
        return (total.local, total.replica, total.remote), looked_at, (list(total.ages_ms), list(total.ages_clocks))


cdef inline void _add_counts(AccessCounts* total, const AccessCounts* counts) noexcept:
    cdef int i
    total.local += load_relaxed_u64(&counts.local)
    total.replica += load_relaxed_u64(&counts.replica)
    total.remote += load_relaxed_u64(&counts.remote)
    total.sampled += load_relaxed_u64(&counts.sampled)
    total.announced += load_relaxed_u64(&counts.announced)
    total.in_time += load_relaxed_u64(&counts.in_time)
    for i in range(AGES):
        total.ages_ms[i] += load_relaxed_u64(&counts.ages_ms[i])
        total.ages_clocks[i] += load_relaxed_u64(&counts.ages_clocks[i])


cdef int _let_save_catch_up(Engine engine) except -1:
    """While many rows wait to be written to a checkpoint, or room for them is short, writes are slow. Nobody waits for long."""
    if load_relaxed_i64(&engine.budget.copies.held_bytes) <= load_relaxed_i64(&engine.budget.copies.most_bytes) // 2:
        return 0
    with nogil:
        engine.monitor.acquire()
        engine.wheel.drive(_has_caught_up, <void*>engine.budget, engine.transport.now_ns() + CATCH_UP_NS)
        engine.monitor.release()
    return 0


cdef int _wake_waiters(Engine engine) except -1:
    with nogil:
        engine.monitor.acquire()
        engine.turns.wake_waiters()
        engine.monitor.release()
    return 0
