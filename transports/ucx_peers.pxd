"""The other ranks as the ucx transport sees them: their endpoints, and who can be reached.

Called by: UcxTransport (connect, close), ``ucx_sends`` and ``ucx_arrivals`` per message, ``ucx_losses``.

Guarantees
    * A peer's state only goes forward: UNCONNECTED, ALIVE, GONE. The first reason for its loss is kept.
    * ``fail`` only notes a loss: it may run deep inside UCX. ``ucx_losses`` carries it out when UCX has returned.
    * What fails during close() is no loss for the layers above, but the peer is not written to again.
Assumption: calls are serialised by the caller (the engine's lock), which guards every field.
"""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint32_t

from intentpm.transports.ucp cimport UcpFunctions, ucp_ep_h, ucs_status_t
from intentpm.transports.ucx_wire cimport JobMark
from intentpm.transports.ucx_worker cimport UcxWorker


cdef enum:
    REASON_BYTES = 240


cdef enum PeerState:
    UNCONNECTED = 0
    ALIVE = 1
    GONE = 2                   # lost, or left after its goodbye; final

cdef enum Phase:               # of the transport's life, in this order
    CONNECTING = 0
    DELIVERING = 1             # connected: messages go to on_message
    CLOSING = 2
    CLOSED = 3

cdef struct Peer:
    void* peers                # the UcxPeers, for UCX's callbacks
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


cdef inline bint is_reachable(const Peer* peer) noexcept nogil:
    return peer.state == ALIVE and not peer.failing


@cython.final
@cython.no_gc                  # in no cycle
cdef class UcxPeers:
    cdef Peer* all                     # by rank
    cdef JobMark job
    cdef Phase phase                   # set by UcxTransport alone
    cdef uint32_t failing              # peers noted as lost, not carried out
    cdef uint32_t closing_endpoints    # that close() waits for
    cdef UcxWorker _ucx
    cdef const UcpFunctions* _ucp      # of _ucx
    cdef list _addresses               # UCX's, by rank: keeps what Peer.address points to

    # Makes a peer's first endpoint. Raises TransportError when UCX finds no way.
    cdef int open(self, uint32_t rank, bytes address, int64_t now_ns) except -1
    cdef ucs_status_t create_endpoint(self, Peer* peer) noexcept nogil
    # Lets go of it, discarding what it still has to send; ``closing_endpoints`` counts it until it has, if waited for.
    cdef void close_endpoint(self, Peer* peer, bint is_waited_for) noexcept nogil
    # The "transport/device" pairs towards a peer.
    cdef list paths(self, uint32_t rank)
    cdef void note_paths(self)
    cdef void fail(self, Peer* peer, const char* why) noexcept nogil
    # ``loss``: one that is given at most this rank.
    cdef void fail_for(self, Peer* peer, int loss) noexcept nogil
    cdef void fail_status(self, Peer* peer, ucs_status_t status) noexcept nogil

    cdef void _endpoint_let_go(self, void* request, bint was_waited_for) noexcept nogil
