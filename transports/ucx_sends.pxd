"""The way out of the ucx transport: each message becomes one UCX active message, and its record stays until UCX is done.

Called by: UcxTransport.send, per message; ``ucx_greetings`` and ``ucx_losses`` for control messages.

Guarantees
    * ``done`` of an accepted message is called once: inside ``post`` if it left at once, else when UCX has finished with
      it, or its peer is lost, or the worker is stopped.
    * A message that did not arrive is a peer lost, whatever the reason.
    * What UCX does not read any more may be reused; what it may still read stays, for good if it never says.
Assumption: calls are serialised by the caller (the engine's lock), which guards every field and every record.
"""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t
from libc.stdlib cimport malloc

from intentpm.transports.base cimport Piece, SendStatus, done_fn
from intentpm.transports.ucp cimport UcpFunctions, ucp_dt_iov_t, ucs_status_ptr_t, ucs_status_t
from intentpm.transports.ucx_peers cimport Peer, UcxPeers
from intentpm.transports.ucx_sleep cimport UcxSleep
from intentpm.transports.ucx_wire cimport ActiveMessage, WireHeader


cdef enum:
    PACKED_BYTES = 1024        # several pieces of up to this much together are cheaper copied than gathered by UCX
    INLINE_PIECES = 16         # gather lists up to this long live in the record

# A send that UCX has not finished, or a free record (then only ``next`` counts).
# Abandoned: its peer is gone and ``done`` was called, but UCX may still call back, or never: its memory stays.
cdef struct Sending:
    void* sends                # the UcxSends, for UCX's callback
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


@cython.final
@cython.no_gc                  # in no cycle
cdef class UcxSends:
    cdef Sending* in_flight            # not finished by UCX, newest first
    cdef Sending* abandoned
    cdef int finished                  # by UCX, since progress() began
    cdef UcxPeers _peers
    cdef UcxSleep _sleep
    cdef const UcpFunctions* _ucp
    cdef Sending* _free

    # Gives a message to UCX, whose wire.bytes the caller has filled; the record is not the caller's any more.
    cdef SendStatus post(
        self, Sending* sending, ActiveMessage message, size_t header_bytes,
        const Piece* pieces, size_t piece_count) noexcept nogil
    # ``kind`` of ``ucx_greetings``; at most PACKED_BYTES, copied. It may fail: then its peer is lost, or never hears.
    cdef void post_control(self, Peer* peer, uint32_t kind, const char* body, size_t body_bytes) noexcept nogil
    # The peer is gone: ``done`` of all that it has not got is called.
    cdef void abandon(self, Peer* peer) noexcept nogil
    # The worker is destroyed: so is what it had not finished.
    cdef void finish_rest(self) noexcept nogil
    # Whoever sent is gone: nothing is called any more.
    cdef void forget_callbacks(self) noexcept nogil

    cdef SendStatus _posted(self, Sending* sending, ucs_status_ptr_t result) noexcept nogil
    cdef void _finish(self, Sending* sending, ucs_status_t status) noexcept nogil
    cdef void _settle(self, Sending* sending, ucs_status_t status) noexcept nogil
    cdef void _give(self, Sending* sending) noexcept nogil
    cdef void _unlink(self, Sending* sending) noexcept nogil


cdef inline Sending* new_sending(
        UcxSends sends, Peer* peer, uint32_t id, size_t size_bytes, done_fn done, void* argument) noexcept nogil:
    """A record for a message of ``size_bytes`` (the body's). NULL: out of memory."""
    cdef Sending* sending = sends._free
    if sending != NULL:
        sends._free = sending.next
    else:
        sending = <Sending*>malloc(sizeof(Sending))
        if sending == NULL:
            return NULL
        sending.sends = <void*>sends
        sending.wire.prefix.source = sends._peers.job.rank
    sending.peer = peer
    sending.done = done
    sending.argument = argument
    sending.size_bytes = size_bytes
    sending.is_abandoned = False
    sending.wire.prefix.tag_and_id = sends._peers.job.tag | id
    sending.gather = NULL
    return sending


cdef inline bint are_waiting(UcxSends sends) noexcept nogil:
    return sends.in_flight != NULL or sends.abandoned != NULL
