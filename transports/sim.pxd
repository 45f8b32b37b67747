"""The ``sim`` transport: many ranks in one process, virtual time, a seeded order of everything that happens.

Events wait in one queue, ordered by virtual time; running one moves the clock there. Nothing reads a real clock, and
all that is random comes from the seed, so one seed is one history (``SimNetwork.trace_hash``).

    DELIVER   a message reaches its destination's link; on_message, unless the link is busy until later
    STEP      on_step of a rank: as asked for by request_step, and some time after a message was delivered to it
    LOST      on_lost of a rank
    WAKE      a task goes on: what it waited for has come, its time is up, or its pause is over

Tasks are the workers' threads. Exactly one thread runs at any time: the caller of ``SimNetwork.run`` (the *scheduler*)
or one task. A task that waits (``Transport.run_until``) hands over to the scheduler, which runs events until the task
may go on.

Guarantees
    * As ``base.pxd``. Besides: the bytes of a message are destroyed after ``on_message``, released memory too, and
      fresh memory from ``allocate`` is filled with garbage: who reads what is not his reads nonsense, the same
      for each seed.
    * A run ends: past its budget of events or virtual time, or when nothing can happen any more, every rank is told
      that its peers are lost, and the scheduler raises SimulationError naming the seed.
Assumption: ``run`` and everything else but the data path is called by one thread.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.map cimport map as ordered_map
from libcpp.pair cimport pair
from libcpp.string cimport string
from libcpp.vector cimport vector

from intentpm.transports.base cimport (
    MAX_HEADER_BYTES, Piece, SendStatus, Transport, condition_fn, done_fn)

cdef extern from "<semaphore.h>" nogil:
    ctypedef struct sem_t:
        pass

cdef enum EventKind:
    EVENT_DELIVER = 0
    EVENT_STEP = 1
    EVENT_LOST = 2
    EVENT_WAKE = 3

cdef enum Waiting:
    NOT_WAITING = 0              # runs, or has a WAKE event that will make it run
    WAITS_FOR_CONDITION = 1
    PARKED = 2                   # until unpark()
    FINISHED = 3

# Virtual time, then order of scheduling: unique.
ctypedef pair[int64_t, uint64_t] Moment

cdef struct Event:
    uint8_t kind
    uint32_t rank                # that it happens to
    uint32_t source              # DELIVER, LOST: the peer
    void* item                   # DELIVER: Message*; WAKE: TaskState*

cdef struct Message:
    uint32_t source
    uint32_t destination
    uint8_t message_id
    bint on_link                 # reached the destination's link; delivered at the next event
    size_t header_bytes
    char header[MAX_HEADER_BYTES]
    size_t body_bytes
    char* body                   # own copy; NULL: still at ``pieces``
    Piece* pieces                # own copy of the list, not of the bytes
    size_t piece_count
    done_fn done
    void* argument

cdef struct TaskState:
    sem_t go                     # posted by the scheduler: run
    uint32_t rank
    Waiting waiting
    condition_fn condition
    void* context
    void* argument
    int64_t until_ns
    bint has_wake
    Moment wake                  # of its WAKE event, if it has one

# One thing that happened, for the trace.
cdef struct Happening:
    int64_t at_ns
    uint8_t kind
    uint8_t message_id
    uint32_t rank
    uint32_t source
    uint32_t body_bytes
    uint64_t content             # hash of header and body

cdef struct Mutation:
    uint8_t action               # MutationAction
    uint8_t message_id
    uint64_t nth                 # counts down the messages that match; 0: this one
    bint applied
    void* matches                # borrowed from SimNetwork.kept; NULL: all messages

cdef enum MutationAction:
    MUTATE_DROP = 0
    MUTATE_DUPLICATE = 1
    MUTATE_CORRUPT = 2
    MUTATE_DELAY = 3


cdef class SimNetwork:
    cdef readonly uint32_t size
    cdef readonly object seed
    cdef readonly object model
    cdef readonly list transports
    cdef vector[void*] endpoints         # the transports, borrowed
    cdef list tasks
    cdef list kept                       # keeps alive what mutations point to
    cdef sem_t scheduler                 # posted by the task that hands over
    cdef TaskState* current              # the task that runs; NULL: the scheduler does
    cdef vector[TaskState*] waiting      # tasks whose condition may become true
    cdef uint32_t active                 # tasks neither parked nor finished
    cdef uint32_t failures               # of tasks
    # events
    cdef ordered_map[Moment, Event] queue
    cdef uint64_t scheduled
    cdef readonly int64_t now
    cdef readonly uint64_t events
    cdef uint64_t max_events
    cdef int64_t max_ns
    cdef bint running_event              # inside a callback: progress() is forbidden
    cdef readonly bint stopped
    cdef string stopped_why
    # the model, in nanoseconds
    cdef double latency_ns
    cdef double ns_per_byte
    cdef double message_ns
    cdef double jitter_ns
    cdef double slow_share
    cdef double slow_ns
    cdef bint fifo
    cdef double late_done_share
    cdef double step_delay_ns
    cdef double wake_delay_ns
    cdef uint64_t random_state
    # per rank
    cdef vector[int64_t] egress_free     # the link is busy until then
    cdef vector[int64_t] ingress_free
    cdef vector[uint8_t] silent
    cdef vector[uint8_t] follow_up_due   # a STEP is scheduled because a message was delivered
    cdef vector[int64_t] step_due_ns     # when the earliest STEP that the rank asked for is; NEVER: none
    cdef vector[int64_t] last_arrival    # [source * size + destination]
    cdef vector[int64_t] allocations     # so far
    cdef vector[int64_t] fails_from      # the first of them that fails ...
    cdef vector[int64_t] fails_until     # ... and the first that does not any more
    cdef vector[uint64_t] kind_messages  # [rank * 256 + message_id], sent
    cdef vector[uint64_t] kind_bytes
    # trace
    cdef readonly uint64_t trace
    cdef ordered_map[uint64_t, string] drop_reasons      # [rank * size + peer]
    cdef vector[Happening] happenings    # a ring of the last ones
    cdef vector[Mutation] mutations
    cdef readonly uint64_t mutations_applied
    cdef readonly uint64_t allocations_failed
    cdef readonly int64_t allocated_bytes    # of allocate(), not yet released

    cdef bint run_event(self, int64_t until_ns) noexcept nogil
    cdef void run_until(
        self, condition_fn condition, void* context, void* argument, int64_t until_ns) noexcept nogil
    cdef SendStatus send(
        self, uint32_t source, uint32_t destination, uint8_t message_id, const char* header, size_t header_bytes,
        const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil
    cdef void schedule_step(self, uint32_t rank, int64_t at_ns) noexcept nogil
    cdef void schedule_lost(self, uint32_t rank, uint32_t peer, int64_t at_ns) noexcept nogil
    cdef void stop(self, const char* why) noexcept nogil
    cdef void release_sender(self, uint32_t source) noexcept nogil
    cdef bint allocation_fails(self, uint32_t rank) noexcept nogil
    # private
    cdef TaskState* _own_state(self) except NULL
    cdef void _follow_up(self, uint32_t rank) noexcept nogil
    cdef void _happen(self, const Event* event) noexcept nogil
    cdef uint64_t _random(self) noexcept nogil
    cdef double _random_share(self) noexcept nogil
    cdef int64_t _random_ns(self, double limit_ns) noexcept nogil
    cdef Moment _schedule(self, int64_t at_ns, uint8_t kind, uint32_t rank, uint32_t source, void* item) noexcept nogil
    cdef int64_t _arrival_ns(
        self, uint32_t source, uint32_t destination, size_t size_bytes, int64_t delay_ns) noexcept nogil
    cdef void _post(self, Message* message, int64_t delay_ns) noexcept nogil
    cdef bint _reaches_link_later(self, Message* message) noexcept nogil
    cdef void _deliver(self, Message* message) noexcept nogil
    cdef void _report_lost(self, uint32_t rank, uint32_t peer, const char* why) noexcept nogil
    cdef const char* _why_lost(self, uint32_t rank, uint32_t peer) noexcept nogil
    cdef void _record(self, uint8_t kind, uint32_t rank, uint32_t source, const Message* message) noexcept nogil
    cdef int _mutation_for(self, const Message* message) noexcept nogil
    cdef void _look_at_waiting(self, uint32_t rank) noexcept nogil
    cdef void _schedule_wake(self, TaskState* task, int64_t at_ns) noexcept nogil
    cdef void _stop_waiting(self, TaskState* task) noexcept nogil
    cdef void _hand_over(self, TaskState* task) noexcept nogil
    cdef void _resume(self, TaskState* task) noexcept nogil
    cdef bint _over_budget(self) noexcept nogil
    cdef void _settle_message(self, Message* message, int status) noexcept nogil


cdef class SimTransport(Transport):
    cdef readonly SimNetwork network
    cdef readonly bint closed
    cdef vector[uint8_t] lost            # per rank: on_lost was called, or the peer's end is expected
    cdef vector[uint8_t] ending          # per rank: said goodbye
    cdef vector[int64_t] heard_ns        # per rank

    cdef void receive(self, const Message* message) noexcept nogil


cdef class Task:
    """A worker's thread in the simulation. Made by ``SimNetwork.spawn``."""
    cdef readonly SimNetwork network
    cdef readonly str name
    cdef readonly object value           # what its function returned
    cdef readonly object failure         # or raised
    cdef readonly bint failed_after_stop   # because the simulation ended
    cdef readonly bint finished
    cdef readonly object thread_id
    cdef object runner
    cdef object function
    cdef TaskState state
