"""What this rank knows of one key; ``inquiry.pxd`` is the contract."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp.queue cimport priority_queue
from libcpp.string cimport string

from intentpm.runtime._native.directory cimport home_of, known_owner
from intentpm.runtime._native.flags cimport KEY_IN_FLIGHT
from intentpm.runtime._native.holders cimport first_holding, next_holding
from intentpm.runtime._native.intents cimport HeapEntry, Intent, IntentQueue
from intentpm.runtime._native.journal cimport Event, Ring
from intentpm.runtime._native.messages cimport MSG_EXPLAIN, MSG_EXPLAINED, ControlHeader
from intentpm.runtime._native.replicas cimport has_pending
from intentpm.runtime._native.requests cimport OPERATION_PEER_LOST, Operation, Request
from intentpm.runtime._native.rounds cimport Rounds
from intentpm.runtime._native.staging cimport send_staged, stage
from intentpm.runtime._native.state cimport STATE_OWNED, STATE_REPLICA
from intentpm.runtime._native.table_state cimport Holding, TableState, key_state

cdef enum:
    MOST_INTENTS = 64            # of a key, per worker, and
    MOST_EVENTS = 16             # decisions that are told


cdef bint _intends(const Intent* intent, uint32_t table_id, uint32_t key) noexcept nogil:
    cdef uint32_t i
    if intent.table_id != table_id:
        return False
    for i in range(intent.count):
        if intent.keys[i] == key:
            return True
    return False


cdef uint32_t _add_from_heap(
        priority_queue[HeapEntry] heap, IntentFact* fact, uint32_t table_id, uint32_t key,
        string& facts) noexcept nogil:
    """Those that are not over. Looks through a copy of the heap, all keys of it: slow, but only people ask."""
    cdef const Intent* intent
    cdef uint32_t found = 0
    while not heap.empty() and found < MOST_INTENTS:
        intent = <const Intent*>heap.top().second
        heap.pop()
        if intent.end > fact.clock and _intends(intent, table_id, key):
            fact.start = intent.start
            fact.end = intent.end
            facts.append(<const char*>fact, sizeof(IntentFact))
            found += 1
    return found


cdef class Inquiry:
    def __init__(self, Rounds rounds not None):
        self.rounds = rounds
        self.transport = rounds.transport
        self.requests = rounds.remote.requests

    cdef void collect(self, uint32_t table_id, uint32_t key, string& facts) noexcept nogil:
        cdef TableState* table = self.rounds.remote.tables[table_id]
        cdef KeyFacts known
        cdef const Holding* holding
        cdef uint32_t worker
        memset(&known, 0, sizeof(known))
        known.now_ns = self.transport.now_ns()
        known.rank = self.transport.rank
        known.state = key_state(table, key)
        known.owner = known_owner(table, key)
        known.epoch = table.records[key].epoch
        known.home = home_of(table, key)
        known.active_intents = table.records[key].intent_refs
        known.pending_writes = known.state == STATE_REPLICA and has_pending(table, key)
        known.in_flight = (table.flags[key] & KEY_IN_FLIGHT) != 0
        known.parked = self.rounds.remote.count_waiting(table, key)
        facts.assign(<const char*>&known, sizeof(known))
        if known.state == STATE_OWNED:
            holding = first_holding(table, key)
            while holding != NULL:
                facts.append(<const char*>&holding.rank, sizeof(holding.rank))
                known.holders += 1
                holding = next_holding(table, holding)
        for worker in range(<uint32_t>self.rounds.intents.workers.size()):
            known.intents += self._add_intents(
                <IntentQueue>self.rounds.intents.workers[worker], table_id, key, facts)
        known.events = self._add_events(table_id, key, facts)
        memcpy(&facts[0], &known, sizeof(known))

    cdef uint32_t _add_intents(
            self, IntentQueue queue, uint32_t table_id, uint32_t key, string& facts) noexcept nogil:
        cdef IntentFact fact
        cdef uint32_t found
        self.rounds.intents.collect(queue)
        fact.clock = queue.now()
        fact.worker = queue.worker_id
        fact.active = 1
        found = _add_from_heap(queue.active, &fact, table_id, key, facts)
        fact.active = 0
        return found + _add_from_heap(queue.waiting, &fact, table_id, key, facts)

    cdef uint32_t _add_events(self, uint32_t table_id, uint32_t key, string& facts) noexcept nogil:
        cdef Ring* ring = &self.rounds.journal.decisions
        cdef uint64_t at = ring.written, oldest = ring.written - min(ring.written, ring.capacity)
        cdef const Event* found[MOST_EVENTS]
        cdef uint32_t count = 0, i
        while at > oldest and count < MOST_EVENTS:
            at -= 1
            found[count] = &ring.events[at & (ring.capacity - 1)]
            count += found[count].table == table_id and found[count].key == key
        for i in range(count):
            facts.append(<const char*>found[count - 1 - i], sizeof(Event))
        return count

    # -- messages ------------------------------------------------------------------------------------------------------

    cdef void ask(self, Operation* operation, uint32_t rank, uint32_t table_id, uint32_t key) noexcept nogil:
        cdef ControlHeader header
        memset(&header, 0, sizeof(header))
        header.sequence = <uint64_t>table_id << 32 | key
        header.culprit = self.requests.open(operation, rank, 0, 1, False)
        header.flags = self.requests.entries[header.culprit].generation
        if not send_staged(
                self.transport, rank, MSG_EXPLAIN, &header, sizeof(header), stage(self.transport, 0), 0):
            operation.status = OPERATION_PEER_LOST
            self.requests.answered(&self.requests.entries[header.culprit], 1)
        self.requests.close_submission(operation)

    cdef bint on_message(
            self, uint32_t source, uint8_t message_id, const ControlHeader* header,
            const char* body, size_t body_bytes) noexcept nogil:
        cdef uint32_t table_id = <uint32_t>(header.sequence >> 32)
        cdef uint32_t key = <uint32_t>header.sequence
        cdef Request* request
        cdef string facts
        cdef char* memory
        if message_id == MSG_EXPLAIN:
            if table_id >= self.rounds.remote.table_count or key >= self.rounds.remote.tables[table_id].num_keys:
                return False
            self.collect(table_id, key, facts)
            memory = stage(self.transport, facts.size())
            if memory == NULL:
                return True
            memcpy(memory, facts.data(), facts.size())
            send_staged(
                self.transport, source, MSG_EXPLAINED, header, sizeof(ControlHeader), memory, facts.size())
            return True
        request = self.requests.find(header.culprit, header.flags)
        if request != NULL:                      # else nobody waits any more
            self.answer.assign(body, body_bytes)
            self.requests.answered(request, 1)
        return True
