"""What the ucx transport remembers per peer and per message in progress."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t

from intentpm.transports.base cimport MAX_HEADER_BYTES, done_fn
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
    ucp_ep_h endpoint          # NULL: none (any more)
    bint said_hello
    bint said_bye              # its BYE, or its answer to ours, has arrived
    bint expected              # expect_close(): its end is no loss
    bint failing               # state turns GONE in the next progress()
    int64_t heard_ns
    size_t backlog_bytes
    char why[REASON_BYTES]     # valid when failing or GONE

# A send that UCX has not finished, or a free record (then only ``next`` counts).
cdef struct Sending:
    Sending* next
    Sending* previous
    Peer* peer
    done_fn done               # NULL: a control message
    void* argument
    size_t size_bytes
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
