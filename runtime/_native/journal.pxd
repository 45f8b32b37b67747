"""What management did, for people: a log of its last decisions, always kept, and traces of chosen keys, on demand.

Guarantees
    * Bounded memory: two rings, which overwrite their oldest events; one list of samples, thinned out when it is full.
    * A decision costs one store of 32 bytes. Tracing costs one test of ``tracing`` while it is off.
Assumption: all of it is guarded by the engine's lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.runtime._native.flags cimport KEY_TRACED
from intentpm.runtime._native.table_state cimport TableState
from intentpm.transports.base cimport Transport


cdef enum:
    DECISIONS = 4096             # kept per rank; a power of two, as the capacity of every ring

# Mirrored in runtime/events.py. ``peer`` and ``detail`` as said.
cdef enum EventKind:
    # Decisions.
    EVENT_REQUESTED = 1          # an intent is due and the key is not here. peer, detail: owner and epoch as known
    EVENT_WITHDRAWN = 2          # the intent was over before the key was asked for
    EVENT_GRANTED = 3            # a replica arrived. peer: owner; detail: epoch
    EVENT_MOVED_IN = 4           # ownership arrived. peer: former owner; detail: epoch
    EVENT_MOVED_OUT = 5          # ownership given away. peer: new owner; detail: epoch; reason
    EVENT_DROPPED = 6            # the replica is gone. peer: owner
    EVENT_HOLDER_ADDED = 7       # owner: granted a replica. peer: holder; reason
    EVENT_HOLDER_REMOVED = 8     # owner: forgot a replica. peer: holder
    EVENT_OFFERED = 9            # owner without intent: offers the key. peer: the last holder
    # Traces only.
    EVENT_INTENT_ON = 16         # first active intent of this rank's workers
    EVENT_INTENT_OFF = 17        # the last is over
    EVENT_REFRESHED = 18         # the replica took a newer row. peer: owner; detail: version
    EVENT_DELTA_SENT = 19        # holder: its writes are on their way. peer: owner as known
    EVENT_DELTA_TAKEN = 20       # owner: a holder's writes are in. peer: holder
    EVENT_REFRESH_SENT = 21      # owner. peer: holder; detail: version
    EVENT_FORWARDED = 22         # a request for the key was passed on. peer: to whom
    EVENT_PARKED = 23            # a request waits for the key to arrive here. peer: whose
    EVENT_STATE = 24             # when tracing begins. detail: KeyState; reason: 1 with active intent

cdef enum Reason:
    REASON_NONE = 0
    REASON_ONLY_INTENT = 1       # nobody but the rank that asked intends the key
    REASON_OWNER_INTENDS = 2
    REASON_OTHERS_HOLD = 3       # other ranks hold replicas
    REASON_MODE = 4              # init(management=...) leaves no choice
    REASON_ONE_USE = 6           # others intend it too, and the rank that asked for one clock only
    REASON_CHEAPER = 7           # no other rank uses it, but relocating it would cost more
    REASON_LOAD = 5              # the owner keeps more rows fresh for others than the rank that asked

cdef struct Event:
    int64_t time_ns              # Transport.now_ns; of a decision: when its message or step began
    uint32_t table
    uint32_t key
    uint32_t detail
    uint16_t peer
    uint8_t kind
    uint8_t reason
    uint16_t costs[4]            # of an owner's decision: of each Way, bytes (65535: or more); 0: not weighed, or not possible

cdef struct Ring:
    Event* events
    uint64_t capacity
    uint64_t written             # events ever; the oldest are overwritten

# Totals of this rank at one moment, while it traces.
cdef struct Sample:
    int64_t time_ns
    uint64_t relocations_in
    uint64_t relocations_out
    uint64_t replicas_held
    uint64_t sent_bytes
    uint64_t received_bytes


cdef inline Event* next_event(Ring* ring) noexcept nogil:
    cdef Event* event = &ring.events[ring.written & (ring.capacity - 1)]
    ring.written += 1
    return event


@cython.final
cdef class Journal:
    cdef Transport transport
    cdef int64_t now_ns          # when the step or message being worked on began
    cdef bint tracing
    cdef Ring decisions
    cdef Ring trace
    cdef vector[Sample] samples
    cdef Sample passed_over      # the newest that came too soon after the last
    cdef bint has_passed_over
    cdef int64_t sample_interval_ns

    # False: out of memory, and nothing has changed.
    cdef bint begin_trace(self, uint64_t capacity) noexcept nogil
    cdef void end_trace(self) noexcept nogil
    # Keeps at most two samples per interval, of a burst its first and its end.
    cdef void take_sample(self, const Sample* sample, bint at_once) noexcept nogil
    cdef void _keep_sample(self, const Sample* sample) noexcept nogil


cdef inline void _write_event(
        Event* event, int64_t time_ns, const TableState* table, uint32_t key, EventKind kind, uint32_t peer, uint32_t detail,
        uint8_t reason, const double* costs) noexcept nogil:
    cdef int way
    for way in range(4):
        event.costs[way] = <uint16_t>min(costs[way], 65535.0) if costs != NULL else <uint16_t>0
    event.time_ns = time_ns
    event.table = table.table_id
    event.key = key
    event.detail = detail
    event.peer = <uint16_t>peer
    event.kind = <uint8_t>kind
    event.reason = reason


cdef inline void note_traced(
        Journal journal, const TableState* table, uint32_t key, EventKind kind, uint32_t peer, uint32_t detail=0,
        uint8_t reason=0, const double* costs=NULL) noexcept nogil:
    """Something happened to a key, in case it is traced."""
    if journal.tracing and table.flags[key] & KEY_TRACED:
        _write_event(next_event(&journal.trace), journal.transport.now_ns(), table, key, kind, peer, detail, reason, costs)


cdef inline void note_decision(
        Journal journal, const TableState* table, uint32_t key, EventKind kind, uint32_t peer, uint32_t detail=0,
        uint8_t reason=0, const double* costs=NULL) noexcept nogil:
    _write_event(next_event(&journal.decisions), journal.now_ns, table, key, kind, peer, detail, reason, costs)
    note_traced(journal, table, key, kind, peer, detail, reason, costs)
