"""The way in of the ucx transport: from UCX's callbacks to ``on_message``.

Called by: UCX, inside worker_progress (small messages, announcements of large ones); UcxTransport.progress (what waits);
UcxTransport.send (messages to this rank itself).

Guarantees
    * A small message is handed to ``on_message`` straight from UCX's receive buffer, aligned first if need be; a large
      one (rendezvous) lands in pooled, registered memory.
    * At most RECEIVE_BUDGET_BYTES of rendezvous are in progress; the rest waits at its sender.
    * ``on_message`` runs inside progress() only, and not before connect() returned.
    * A message of another job, or of nobody (wrong tag, rank or kind), is counted and ignored.
Assumption: calls are serialised by the caller (the engine's lock), which guards every field and every record.
"""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from intentpm.transports.base cimport MAX_HEADER_BYTES, Piece
from intentpm.transports.ucp cimport UcpFunctions, ucs_status_t
from intentpm.transports.ucx_peers cimport UcxPeers
from intentpm.transports.ucx_pool cimport RegisteredPool
from intentpm.transports.ucx_wire cimport WireHeader
from intentpm.transports.ucx_worker cimport UcxWorker


# A message that has arrived but is not delivered: a rendezvous in progress or waiting for its turn, a message to
# oneself, or one that came before connect() returned.
cdef struct Arrival:
    void* arrivals             # the UcxArrivals, for UCX's callback
    Arrival* next
    void* descriptor           # of a rendezvous that was not started; else NULL
    uint32_t source
    uint8_t message_id
    size_t header_bytes
    size_t body_bytes
    char* body                 # from the pool; NULL: empty or not started
    char header[MAX_HEADER_BYTES]

# First in, first out.
cdef struct ArrivalQueue:
    Arrival* first             # NULL: empty
    Arrival* last


@cython.final
@cython.no_gc                  # in no cycle
cdef class UcxArrivals:
    cdef ArrivalQueue inbox            # whole messages to deliver in the next progress()
    cdef ArrivalQueue waiting          # rendezvous that wait for memory
    cdef int delivered                 # since progress() began
    cdef int64_t heard_ns              # clock of this progress(), 0: not read yet
    cdef readonly uint64_t foreign_messages  # ignored: of another job, or malformed
    cdef readonly uint64_t realigned_messages
    cdef readonly uint64_t rendezvous_messages
    cdef void* _transport              # the Transport it delivers for, borrowed: it owns this
    cdef UcxWorker _ucx
    cdef const UcpFunctions* _ucp      # of _ucx
    cdef UcxPeers _peers
    cdef RegisteredPool _pool
    cdef ArrivalQueue _spare
    cdef size_t _receiving_bytes       # of rendezvous in progress
    cdef char* _aligned                # scratch for misaligned bodies
    cdef size_t _aligned_bytes

    cdef int start(self) except -1
    # A message to this rank itself, not through UCX. False: out of memory.
    cdef bint keep_own(
        self, uint8_t message_id, const char* header, size_t header_bytes, const Piece* pieces, size_t piece_count,
        size_t body_bytes) noexcept nogil
    cdef void deliver_inbox(self) noexcept nogil
    # Receives what waits, as far as the budget goes.
    cdef void start_waiting(self) noexcept nogil
    # The worker is destroyed: so is what was under way.
    cdef void recycle_all(self) noexcept nogil

    cdef ucs_status_t _receive(
        self, const WireHeader* wire, size_t wire_bytes, void* data, size_t body_bytes,
        bint rendezvous) noexcept nogil
    cdef void _deliver(
        self, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
        const char* body, size_t body_bytes) noexcept nogil
    cdef void _deliver_arrival(self, Arrival* arrival) noexcept nogil
    cdef void* _realign(self, const void* data, size_t size_bytes) noexcept nogil
    cdef ucs_status_t _keep_early(
        self, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
        const void* data, size_t body_bytes) noexcept nogil
    cdef ucs_status_t _receive_rendezvous(
        self, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
        void* descriptor, size_t body_bytes) noexcept nogil
    cdef void _start_receiving(self, Arrival* arrival) noexcept nogil
    cdef void _finish_rendezvous(self, Arrival* arrival, ucs_status_t status) noexcept nogil
    cdef void _lose_for_memory(self, uint32_t source) noexcept nogil
    cdef Arrival* _new_arrival(
        self, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
        size_t body_bytes) noexcept nogil
    cdef bint _give_memory(self, Arrival* arrival) noexcept nogil
    cdef void _recycle(self, Arrival* arrival) noexcept nogil
