"""The ``sim`` transport: many ranks in one process, virtual time, a seeded order of everything that happens.

Called by: tests and benches, which make a SimNetwork; the runtime, through each rank's SimTransport.

Running an event moves the clock to it. Nothing reads a real clock, and all that is random comes from the seed, so one
seed is one history (``SimNetwork.trace_hash``).

    DELIVER   a message reaches its destination's link; on_message, unless the link is busy until later
    STEP      on_step of a rank: as asked for by request_step, and some time after a message was delivered to it
    LOST      on_lost of a rank
    WAKE      a task goes on: what it waited for has come, its time is up, or its pause is over (``sim_tasks``)

    sim_time      the queue of events, chance, the trace
    sim_tasks     the workers' threads, one at a time, and the loop that runs events
    sim_links     when a message arrives
    sim_messages  messages under way, and defects planted among them

Guarantees
    * As ``base.pxd``. Besides: the bytes of a message are destroyed after ``on_message``, released memory too, and
      fresh memory from ``allocate`` is filled with garbage: who reads what is not his reads nonsense, the same
      for each seed.
    * When a run stops (``sim_tasks``), every rank is told that its peers are lost.
Assumption: one thread at a time runs (``sim_tasks``), which guards every field; ``run`` and everything else but the
data path is called by one thread.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.map cimport map as ordered_map
from libcpp.string cimport string
from libcpp.vector cimport vector

from intentpm.transports.base cimport Piece, SendStatus, Transport, done_fn
from intentpm.transports.sim_links cimport Links
from intentpm.transports.sim_messages cimport Message, MutationAction, Mutations
from intentpm.transports.sim_tasks cimport TaskScheduler


cdef class SimNetwork(TaskScheduler):
    cdef readonly uint32_t size
    cdef readonly object model
    cdef readonly list transports
    cdef vector[void*] _endpoints        # the transports, borrowed
    cdef Links links
    cdef Mutations _mutations
    cdef double _late_done_share
    cdef double _step_delay_ns
    # per rank
    cdef vector[uint8_t] _follow_up_due  # a STEP is scheduled because a message was delivered
    cdef vector[int64_t] _step_due_ns    # when the earliest STEP that the rank asked for is; NEVER: none
    cdef vector[int64_t] _allocations    # so far
    cdef vector[int64_t] _fails_from     # the first of them that fails ...
    cdef vector[int64_t] _fails_until    # ... and the first that does not any more
    cdef readonly uint64_t allocations_failed
    cdef readonly int64_t allocated_bytes    # of allocate(), not yet released
    cdef ordered_map[uint64_t, string] _drop_reasons     # [rank * size + peer]

    cdef SendStatus send(
        self, uint32_t source, uint32_t destination, uint8_t message_id, const char* header, size_t header_bytes,
        const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil
    cdef void schedule_step(self, uint32_t rank, int64_t at_ns) noexcept nogil
    # ``rank`` and ``peer`` are told of each other's loss: at once, and two latencies later at most.
    cdef void part(self, uint32_t rank, uint32_t peer, const char* why) noexcept nogil
    # The rank closes: what it sent no longer reads its memory, and each peer notices ``notice_ns`` late at most.
    cdef void leave(self, uint32_t rank, int64_t notice_ns) noexcept nogil
    # To be asked once per allocation of a rank.
    cdef bint allocation_fails(self, uint32_t rank) noexcept nogil

    cdef void _deliver_event(self, Message* message) noexcept nogil
    cdef void _lose_event(self, uint32_t rank, uint32_t peer) noexcept nogil
    cdef void _step_event(self, uint32_t rank) noexcept nogil
    cdef void _follow_up(self, uint32_t rank) noexcept nogil
    cdef const char* _why_lost(self, uint32_t rank, uint32_t peer) noexcept nogil
    cdef void _schedule_lost(self, uint32_t rank, uint32_t peer, int64_t at_ns) noexcept nogil
    cdef void _send_mutated(self, Message* message, MutationAction action) noexcept nogil
    cdef void _post(self, Message* message, int64_t delay_ns) noexcept nogil
    cdef bint _passes_link_later(self, Message* message) noexcept nogil
    cdef void _deliver(self, Message* message) noexcept nogil
    cdef void _release_sender(self, uint32_t source) noexcept nogil


cdef class SimTransport(Transport):
    cdef readonly SimNetwork network
    cdef readonly bint closed
    cdef vector[uint8_t] lost            # per rank: on_lost was called, or the peer's end is expected
    cdef vector[uint8_t] ending          # per rank: said goodbye
    cdef vector[uint8_t] broken          # per rank: its connection is; on_lost is yet to be called
    cdef vector[int64_t] heard_ns        # per rank

    cdef void receive(self, const Message* message) noexcept nogil
    cdef void lose(self, uint32_t peer, const char* why) noexcept nogil
