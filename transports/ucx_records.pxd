"""What the ucx transport remembers per peer and per message in progress."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from intentpm.transports.base cimport MAX_HEADER_BYTES, Piece, done_fn
from intentpm.transports.ucp cimport ucp_dt_iov_t, ucp_ep_h


cdef enum:
    REASON_BYTES = 240
    PACKED_BYTES = 1024        # several pieces of up to this much together are cheaper copied than gathered by UCX
    INLINE_PIECES = 16         # gather lists up to this long live in the record


# In front of every active message's header.
cdef struct Prefix:
    uint32_t source
    uint32_t tag_and_id        # bits 8-31: the job's tag; bits 0-7: message id (or ControlKind)

cdef struct WireHeader:
    Prefix prefix
    char bytes[MAX_HEADER_BYTES]


cdef enum ControlKind:
    HELLO = 1                  # body: the proof that the sender is that rank of this job
    BYE = 2                    # the sender has flushed everything and closes; body: none
    BYE_SEEN = 3               # the answer: everything before BYE has been received
    GIVEN_UP = 4               # the sender has dropped this rank; body: why


cdef enum PeerState:
    UNCONNECTED = 0
    ALIVE = 1
    GONE = 2                   # lost, or left after its goodbye; final

# guarded by: the engine's lock, like everything in the transport.
cdef struct Peer:
    void* transport            # the UcxTransport, for UCX's callbacks
    uint32_t rank
    PeerState state
    const char* address        # UCX's, of its worker
    ucp_ep_h endpoint          # NULL: none (any more)
    bint said_hello
    bint said_bye              # its BYE, or its answer to ours, has arrived
    bint expected              # expect_close(): its end is no loss
    bint shares_memory         # reached through shared memory alone: closing tells it nothing
    bint was_dropped           # by drop() here, and is to be told
    bint ended                 # its process has ended
    bint failing               # state turns GONE in the next progress()
    int64_t heard_ns
    size_t backlog_bytes
    char why[REASON_BYTES]     # valid when failing or GONE

# A send that UCX has not finished, or a free record (then only ``next`` counts).
# Abandoned: its peer is gone and ``done`` was called, but UCX may still call back, or never: its memory stays.
cdef struct Sending:
    Sending* next
    Sending* previous
    Peer* peer
    done_fn done               # NULL: a control message
    void* argument
    size_t size_bytes
    bint is_abandoned
    WireHeader wire            # UCX reads it until it has finished
    ucp_dt_iov_t* gather       # inline_gather, or malloc'ed for longer lists
    ucp_dt_iov_t inline_gather[INLINE_PIECES]
    char packed[PACKED_BYTES]

# A message that has arrived but is not delivered: a rendezvous in progress or waiting for its turn, a message to
# oneself, or one that came before connect() returned.
cdef struct Arrival:
    Arrival* next
    void* transport
    void* descriptor           # of a rendezvous that was not started; else NULL
    uint32_t source
    uint8_t message_id
    size_t header_bytes
    size_t body_bytes
    char* body                 # from the pool; NULL: empty or not started
    char header[MAX_HEADER_BYTES]


# -- sends: doubly linked lists, and a free list -----------------------------------------------------------------------
cdef struct Sendings:
    Sending* in_flight         # newest first
    Sending* abandoned
    Sending* free

cdef inline Sending* take_sending(Sendings* all) noexcept nogil:
    cdef Sending* sending = all.free
    if sending == NULL:
        return <Sending*>malloc(sizeof(Sending))
    all.free = sending.next
    return sending

cdef inline void give_sending(Sendings* all, Sending* sending) noexcept nogil:
    if sending.gather != NULL and sending.gather != sending.inline_gather:
        free(sending.gather)
    sending.next = all.free
    all.free = sending

cdef inline void link_sending(Sending** first, Sending* sending) noexcept nogil:
    sending.previous = NULL
    sending.next = first[0]
    if first[0] != NULL:
        first[0].previous = sending
    first[0] = sending

cdef inline void unlink_sending(Sendings* all, Sending* sending) noexcept nogil:
    if sending.next != NULL:
        sending.next.previous = sending.previous
    if sending.previous != NULL:
        sending.previous.next = sending.next
    elif sending.is_abandoned:
        all.abandoned = sending.next
    else:
        all.in_flight = sending.next

cdef inline void free_sendings(Sendings* all) noexcept nogil:
    cdef Sending* sending
    while all.free != NULL:
        sending = all.free
        all.free = sending.next
        free(sending)


# -- gathering ---------------------------------------------------------------------------------------------------------
cdef inline size_t pack_pieces(char* target, const Piece* pieces, size_t piece_count) noexcept nogil:
    cdef size_t i
    cdef size_t size_bytes = 0
    for i in range(piece_count):
        memcpy(target + size_bytes, pieces[i].data, pieces[i].size_bytes)
        size_bytes += pieces[i].size_bytes
    return size_bytes

# False: out of memory.
cdef inline bint gather_pieces(Sending* sending, const Piece* pieces, size_t piece_count) noexcept nogil:
    cdef size_t i
    sending.gather = sending.inline_gather
    if piece_count > INLINE_PIECES:
        sending.gather = <ucp_dt_iov_t*>malloc(piece_count * sizeof(ucp_dt_iov_t))
        if sending.gather == NULL:
            return False
    for i in range(piece_count):
        sending.gather[i].buffer = <void*>pieces[i].data
        sending.gather[i].length = pieces[i].size_bytes
    return True


# -- arrivals: first-in first-out queues -------------------------------------------------------------------------------
cdef struct ArrivalQueue:
    Arrival* first             # NULL: empty
    Arrival* last

cdef inline void push_arrival(ArrivalQueue* queue, Arrival* arrival) noexcept nogil:
    arrival.next = NULL
    if queue.first == NULL:
        queue.first = arrival
    else:
        queue.last.next = arrival
    queue.last = arrival

cdef inline Arrival* pop_arrival(ArrivalQueue* queue) noexcept nogil:
    cdef Arrival* arrival = queue.first
    if arrival != NULL:
        queue.first = arrival.next
    return arrival
