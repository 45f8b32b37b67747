"""What this rank knows of one key, for people; and asking another rank for what it knows.

    asker   EXPLAIN {table, key} ---> any rank (best the owner)   answers at once with its facts: EXPLAINED ---> asker

Facts are bytes: a KeyFacts, ``holders`` ranks (uint16), ``intents`` IntentFact, ``events`` Event (oldest
first). Mirrored in runtime/events.py.

Assumption: every method is called under the engine's lock.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.string cimport string

from intentpm.runtime._native.intents cimport Intent, IntentQueue
from intentpm.runtime._native.messages cimport ControlHeader
from intentpm.runtime._native.requests cimport Operation, RequestPool
from intentpm.runtime._native.rounds cimport Rounds
from intentpm.transports.base cimport Transport


cdef struct KeyFacts:
    int64_t now_ns
    uint32_t rank                # whose facts these are
    uint32_t state               # state.KeyState
    uint32_t owner               # as known there
    uint32_t epoch
    uint32_t home
    uint32_t active_intents      # of all workers there
    uint32_t pending_writes      # 1: a replica's writes that the owner has not been told of
    uint32_t in_flight           # 1: a record of it is unanswered
    uint32_t parked              # requests that wait for the key there
    uint32_t holders
    uint32_t intents
    uint32_t events

cdef struct IntentFact:
    int64_t start
    int64_t end
    int64_t clock                # of the worker
    uint32_t worker
    uint32_t active              # 0: not due yet


cdef class Inquiry:
    cdef Transport transport
    cdef RequestPool requests
    cdef Rounds rounds
    cdef string answer           # to the last question of this rank

    cdef void collect(self, uint32_t table_id, uint32_t key, string& facts) noexcept nogil
    # Asks ``rank``; ends ``operation`` (begun by the caller) when ``answer`` holds its facts. One question at a time.
    cdef void ask(self, Operation* operation, uint32_t rank, uint32_t table_id, uint32_t key) noexcept nogil
    cdef bint on_message(
        self, uint32_t source, uint8_t message_id, const ControlHeader* header,
        const char* body, size_t body_bytes) noexcept nogil
    # private
    cdef uint32_t _add_intents(
        self, IntentQueue queue, uint32_t table_id, uint32_t key, string& facts) noexcept nogil
    cdef uint32_t _add_events(self, uint32_t table_id, uint32_t key, string& facts) noexcept nogil
