"""Seeing what a rank does: counters, what is known of a key, and traces.

Every method takes the engine's lock for a moment, without the GIL while it waits, and copies: what it returns is of one
moment. Any thread. For stats.py, explain.py and trace.py in runtime/.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.string cimport string
from libcpp.vector cimport vector

from intentpm.foundation.deadlines import wait_ns

from intentpm.foundation.primitives cimport load_relaxed_i64
from intentpm.runtime._native.budget cimport bytes_of
from intentpm.runtime._native.directory cimport known_owner
from intentpm.runtime._native.engine cimport Engine
from intentpm.runtime._native.flags cimport KEY_TRACED
from intentpm.runtime._native.intents cimport IntentQueue
from intentpm.runtime._native.journal cimport EVENT_STATE, Event, Journal, Ring, Sample, note_traced
from intentpm.runtime._native.requests cimport Operation, begin_operation, end_operation
from intentpm.runtime._native.rounds cimport Rounds
from intentpm.runtime._native.serving cimport Serving
from intentpm.runtime._native.store cimport Table
from intentpm.runtime._native.table_state cimport TableState, is_here, key_state
from intentpm.runtime._native.turns cimport is_over
from intentpm.transports.base cimport Transport


cdef struct Counters:
    int64_t now_ns
    uint64_t sent_bytes
    uint64_t received_bytes
    uint64_t sent_messages
    uint64_t received_messages
    uint64_t served_keys
    uint64_t forwarded_keys
    uint64_t hops
    uint64_t parked
    uint64_t parked_now
    uint64_t rounds
    uint64_t records
    uint64_t forwarded_records
    uint64_t refreshed_rows
    uint64_t relocations_in
    uint64_t relocations_out
    uint64_t replicas_set_up
    uint64_t replicas_fetched
    uint64_t replicas_dropped
    uint64_t replicas_promoted
    uint64_t replicas_held
    uint64_t intents_acted
    uint64_t intents_refused
    uint64_t intents_in_time
    uint64_t intents_late
    uint64_t intents_withdrawn
    int64_t keys_signalled               # by workers that are closed
    uint64_t stale_rows
    uint64_t stale_row_ns
    uint64_t stalest_ns
    uint64_t sent_bytes_of[32]           # per message id
    uint64_t received_bytes_of[32]

cdef struct WorkerCounters:
    int64_t clock
    double clocks_per_round
    int64_t horizon_clocks
    int64_t keys_signalled


cdef class Inspector:
    """Looks into one rank's engine."""

    cdef Engine engine
    cdef vector[uint64_t] traced         # guarded by: engine lock. table id << 32 | key

    def __init__(self, Engine engine not None):
        self.engine = engine

    def now_ns(self) -> int:
        """Time on the clock of all events and samples."""
        return self.engine.transport.now_ns()

    # -- counters ------------------------------------------------------------------------------------------------------

    def counters(self) -> tuple:
        """Counters of the rank since start, and of each worker in the order they were made: (dict, list of dict)."""
        cdef Counters rank
        cdef WorkerCounters worker
        cdef vector[WorkerCounters] workers
        cdef size_t i
        with nogil:
            self.engine.monitor.acquire()
            _copy_transfers(self.engine.transport, self.engine.serving, &rank)
            _copy_rounds(self.engine.rounds, &rank)
            rank.keys_signalled = self.engine.rounds.intents.keys_signalled
            for i in range(self.engine.rounds.intents.workers.size()):
                _copy_worker(<IntentQueue>self.engine.rounds.intents.workers[i], &worker)
                workers.push_back(worker)
            self.engine.monitor.release()
        return rank, workers

    def taken(self, Table table not None) -> int:
        """Bytes, as a memory budget counts them: all that was touched, and what copies may come to need."""
        cdef int64_t taken
        with nogil:
            self.engine.monitor.acquire()
            taken = bytes_of(table.state)
            self.engine.monitor.release()
        return taken

    # -- keys ----------------------------------------------------------------------------------------------------------

    def count_here(self, Table table not None, const int64_t[::1] keys) -> int:
        """How many of ``keys`` have a row here, owned or replica. -1 - i: ``keys[i]`` is not a key of the table.

        Takes no lock, unlike the rest: what others do meanwhile is not held up, and may or may not be counted.
        """
        cdef int64_t i, here = 0
        with nogil:
            for i in range(keys.shape[0]):
                if not 0 <= keys[i] < table.num_keys:
                    here = -1 - i
                    break
                here += is_here(table.state, keys[i])
        return here

    # -- one key -------------------------------------------------------------------------------------------------------

    def facts(self, Table table not None, key: int) -> bytes:
        """What this rank knows of a key, as inquiry.pxd lays it out."""
        cdef string facts
        cdef uint32_t wanted = key
        with nogil:
            self.engine.monitor.acquire()
            self.engine.inquiry.collect(table.table_id, wanted, facts)
            self.engine.monitor.release()
        return facts

    def ask_facts(self, rank: int, Table table not None, key: int, timeout_s) -> bytes:
        """What another rank knows of a key. One thread at a time. Raises PeerLostError, WaitTimeoutError."""
        cdef Operation operation
        cdef uint32_t peer = rank, wanted = key
        cdef string facts
        cdef int64_t limit_ns = wait_ns(timeout_s)
        begin_operation(&operation, NULL, 0, NULL, NULL)
        try:
            with nogil:
                self.engine.monitor.acquire()
                if is_over(self.engine.turns):
                    operation.status = self.engine.calls._why_over()
                    self.engine.requests.close_submission(&operation)
                else:
                    self.engine.inquiry.ask(&operation, peer, table.table_id, wanted)
                self.engine.turns.wake_finished()
                self.engine.monitor.release()
            self.engine.calls.wait_operation(&operation, limit_ns, f"rank {rank} to explain key {key} of {table.name!r}")
            with nogil:
                self.engine.monitor.acquire()
                facts = self.engine.inquiry.answer
                self.engine.monitor.release()
            return facts
        finally:
            end_operation(&operation)

    # -- traces --------------------------------------------------------------------------------------------------------

    def begin_trace(self, Table table not None, const int64_t[::1] keys, capacity: int) -> None:
        """Adds keys to the trace; begins one with room for ``capacity`` events, a power of two, if none is going on.

        Raises MemoryError; nothing has changed then.
        """
        cdef uint64_t room = capacity
        cdef bint begun = True
        cdef int64_t i
        with nogil:
            self.engine.monitor.acquire()
            if not self.engine.rounds.journal.tracing:
                begun = self.engine.rounds.journal.begin_trace(room)
            if begun:
                for i in range(keys.shape[0]):
                    self._trace_key(table.state, <uint32_t>keys[i])
                self.engine.rounds.sample(self.engine.transport.now_ns(), True)
            self.engine.monitor.release()
        if not begun:
            raise MemoryError(f"no memory for a trace of {capacity} events")

    cdef void _trace_key(self, TableState* table, uint32_t key) noexcept nogil:
        if table.flags[key] & KEY_TRACED:
            return
        table.flags[key] |= KEY_TRACED
        self.traced.push_back(<uint64_t>table.table_id << 32 | key)
        note_traced(
            self.engine.rounds.journal, table, key, EVENT_STATE, known_owner(table, key), key_state(table, key),
            table.records[key].intent_refs > 0)

    def end_trace(self) -> None:
        """What was recorded stays until the next ``begin_trace``."""
        cdef uint64_t name
        cdef uint8_t* flags
        with nogil:
            self.engine.monitor.acquire()
            if self.engine.rounds.journal.tracing:
                self.engine.rounds.sample(self.engine.transport.now_ns(), True)
            self.engine.rounds.journal.end_trace()
            for name in self.traced:
                flags = &self.engine.remote.tables[name >> 32].flags[<uint32_t>name]
                flags[0] &= ~<uint8_t>KEY_TRACED
            self.traced.clear()
            self.engine.monitor.release()

    def trace(self) -> tuple:
        """(events, samples, lost): arrays of ``journal.Event`` and ``journal.Sample`` as bytes, oldest first; how many
        older events were overwritten.
        """
        cdef Journal journal = self.engine.rounds.journal
        cdef string events, samples
        cdef uint64_t lost
        with nogil:
            self.engine.monitor.acquire()
            if journal.tracing:
                self.engine.rounds.sample(self.engine.transport.now_ns(), True)
            lost = _copy_ring(&journal.trace, events)
            if not journal.samples.empty():
                samples.assign(<const char*>journal.samples.data(), journal.samples.size() * sizeof(Sample))
            self.engine.monitor.release()
        return events, samples, lost


cdef void _copy_transfers(Transport transport, Serving serving, Counters* counters) noexcept nogil:
    counters.now_ns = transport.now_ns()
    counters.sent_bytes = transport.sent_bytes
    counters.received_bytes = transport.received_bytes
    counters.sent_messages = transport.sent_messages
    counters.received_messages = transport.received_messages
    counters.served_keys = serving.served_keys
    counters.forwarded_keys = serving.forwarded_keys
    counters.hops = serving.remote.hops
    counters.parked = serving.parking.parked_ever
    counters.parked_now = serving.parking.parked_now
    memcpy(counters.sent_bytes_of, transport.sent_bytes_of, sizeof(transport.sent_bytes_of))
    memcpy(counters.received_bytes_of, transport.received_bytes_of, sizeof(transport.received_bytes_of))


cdef void _copy_rounds(Rounds rounds, Counters* counters) noexcept nogil:
    counters.rounds = rounds.holder.rounds
    counters.records = rounds.holder.records
    counters.forwarded_records = rounds.owner.forwarded_records
    counters.refreshed_rows = rounds.news.refreshed_rows
    counters.relocations_in = rounds.holder.relocations_in
    counters.relocations_out = rounds.owner.relocations_out
    counters.replicas_set_up = rounds.holder.replicas_set_up
    counters.replicas_fetched = rounds.holder.replicas_fetched
    counters.replicas_dropped = rounds.holder.replicas_dropped
    counters.replicas_promoted = rounds.holder.replicas_promoted
    counters.replicas_held = rounds.holder.replicas_held()
    counters.intents_acted = rounds.intents.intents_acted
    counters.intents_refused = rounds.holder.intents_refused + load_relaxed_i64(&rounds.holder.budget.intents.refused_keys)
    counters.intents_in_time = rounds.intents.intents_in_time
    counters.intents_late = rounds.intents.intents_late
    counters.intents_withdrawn = rounds.holder.intents_withdrawn
    counters.stale_rows = rounds.news.stale_rows
    counters.stale_row_ns = rounds.news.stale_row_ns
    counters.stalest_ns = rounds.news.stalest_ns


cdef void _copy_worker(IntentQueue queue, WorkerCounters* counters) noexcept nogil:
    counters.clock = queue.now()
    counters.clocks_per_round = queue.timer.clocks_per_round
    counters.horizon_clocks = queue.horizon
    counters.keys_signalled = load_relaxed_i64(&queue.keys_signalled)


cdef uint64_t _copy_ring(const Ring* ring, string& out) noexcept nogil:
    """Returns how many events were overwritten before."""
    cdef uint64_t first = 0, at
    if ring.written > ring.capacity:
        first = ring.written - ring.capacity
    at = first & (ring.capacity - 1) if ring.capacity else 0
    if first > 0:
        out.append(<const char*>&ring.events[at], (ring.capacity - at) * sizeof(Event))
        out.append(<const char*>ring.events, at * sizeof(Event))
    elif ring.written > 0:
        out.append(<const char*>ring.events, ring.written * sizeof(Event))
    return first
