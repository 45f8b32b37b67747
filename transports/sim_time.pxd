"""Virtual time: what will happen and when, the chance that decides it, and the trace of what did.

Called by: TaskScheduler (``sim_tasks``) and SimNetwork (``sim``), which are timelines themselves.

Guarantees
    * Events are taken in the order of their time, those of one time in the order of scheduling. Time only grows.
    * All that is random comes from one seeded state, and nothing here reads a real clock: one seed is one history.
    * ``trace`` covers time, place and content of everything recorded, in order.
Assumption: one thread at a time runs (``sim_tasks`` sees to it). That guards every field; there is no lock.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.pair cimport pair
from libcpp.queue cimport priority_queue
from libcpp.vector cimport vector

cdef extern from "<stdint.h>" nogil:
    const int64_t NEVER "INT64_MAX"

cdef enum EventKind:
    EVENT_DELIVER = 0
    EVENT_STEP = 1
    EVENT_LOST = 2
    EVENT_WAKE = 3
    NO_EVENT = 4                 # a slot that is free, or whose event was cancelled

# Virtual time, then order of scheduling, both negative, since the queue gives out its largest; and a slot. The first two are
# unique.
ctypedef pair[pair[int64_t, int64_t], uint32_t] Entry

cdef struct Event:
    uint8_t kind
    uint32_t rank                # that it happens to
    uint32_t source              # DELIVER, LOST: the peer
    void* item                   # DELIVER: Message*; WAKE: TaskState*

# One thing that happened, for the trace.
cdef struct Happening:
    int64_t at_ns
    uint8_t kind
    uint8_t message_id
    uint32_t rank
    uint32_t source
    uint32_t body_bytes
    uint64_t content             # hash of header and body; 0: it has none


cdef class Timeline:
    cdef readonly object seed
    cdef readonly int64_t now            # virtual nanoseconds
    cdef readonly uint64_t events        # that happened: recorded
    cdef readonly uint64_t trace
    cdef vector[Event] slots             # of the events to come
    cdef uint64_t random_state
    cdef priority_queue[Entry] _queue    # with those that were cancelled
    cdef vector[uint32_t] _free_slots
    cdef int64_t _scheduled              # events so far
    cdef vector[Happening] _happenings   # a ring of the last ones

    # Adds an event; one in the past happens now. Returns its slot.
    cdef uint32_t schedule(self, int64_t at_ns, uint8_t kind, uint32_t rank, uint32_t source, void* item) noexcept nogil
    # An event that was scheduled, and has not been taken, will not happen.
    cdef void cancel(self, uint32_t slot) noexcept nogil
    # Whether there is an event at ``until_ns`` at the latest.
    cdef bint is_due(self, int64_t until_ns) noexcept nogil
    # Of the next event, if any ``is_due``: its time, and moving the clock to it and taking it out.
    cdef int64_t next_ns(self) noexcept nogil
    cdef Event take_next(self) noexcept nogil
    cdef void clear_events(self) noexcept nogil
    cdef void _drop_next(self) noexcept nogil
    # Something happens now. The last three are a message's.
    cdef void record(
        self, uint8_t kind, uint32_t rank, uint32_t source,
        uint8_t message_id, size_t body_bytes, uint64_t content) noexcept nogil


# -- chance ------------------------------------------------------------------------------------------------------------
cdef inline uint64_t random_word(uint64_t* state) noexcept nogil:
    # splitmix64
    cdef uint64_t z
    state[0] += <uint64_t>0x9E3779B97F4A7C15
    z = state[0]
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)


cdef inline double random_share(uint64_t* state) noexcept nogil:
    """Uniform in [0, 1)."""
    return (random_word(state) >> 11) * (1.0 / (<uint64_t>1 << 53))


cdef inline int64_t random_ns(uint64_t* state, double limit_ns) noexcept nogil:
    return <int64_t>(random_share(state) * limit_ns) if limit_ns > 0 else 0


cdef inline uint64_t mixed(uint64_t hash, uint64_t word) noexcept nogil:
    hash = (hash ^ word) * <uint64_t>0x9E3779B97F4A7C15
    return hash ^ (hash >> 29)
