"""Sending through UCX; ``ucx_sends.pxd`` states what it guarantees."""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from intentpm.transports.base cimport CUDA_MEMORY, HOST_MEMORY, SEND_NO_MEMORY, SEND_OK, SEND_PEER_LOST, pack_pieces
from intentpm.transports.ucp cimport *
from intentpm.transports.ucx_peers cimport CLOSING
from intentpm.transports.ucx_wire cimport AM_CONTROL, Prefix


cdef class UcxSends:
    """The sends of one worker, to ``peers``; wakes who sleeps on ``sleep``."""

    def __cinit__(self, UcxPeers peers not None, UcxSleep sleep not None):
        self._peers = peers
        self._sleep = sleep
        self._ucp = peers._ucp

    def __dealloc__(self):
        cdef Sending* sending
        while self._free != NULL:
            sending = self._free
            self._free = sending.next
            free(sending)

    # -- posting -----------------------------------------------------------------------------------------------------

    cdef SendStatus post(
            self, Sending* sending, ActiveMessage message, size_t header_bytes,
            const Piece* pieces, size_t piece_count) noexcept nogil:
        # One piece as it is, a few small ones copied together, others as a gather list.
        cdef ucp_request_param_t param
        cdef const void* data = NULL
        cdef size_t count = 0
        cdef ucs_status_ptr_t result
        param.op_attr_mask = (
            UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_DATATYPE |
            UCP_OP_ATTR_FIELD_MEMORY_TYPE)
        param.cb.send = _send_finished
        param.user_data = sending
        param.datatype = contiguous_bytes()
        param.memory_type = UCS_MEMORY_TYPE_HOST
        if piece_count == 1:
            data = pieces[0].data
            count = pieces[0].size_bytes
            if pieces[0].memory == CUDA_MEMORY:
                param.memory_type = UCS_MEMORY_TYPE_CUDA
        elif piece_count and sending.size_bytes <= PACKED_BYTES and pieces[0].memory != CUDA_MEMORY:
            data = sending.packed
            count = pack_pieces(sending.packed, pieces, piece_count)
        elif piece_count:
            if not _gather_pieces(sending, pieces, piece_count):
                self._give(sending)
                return SEND_NO_MEMORY
            data = sending.gather
            count = piece_count
            param.datatype = UCP_DATATYPE_IOV
            if pieces[0].memory == CUDA_MEMORY:
                param.memory_type = UCS_MEMORY_TYPE_CUDA
        result = self._ucp.am_send_nbx(
            sending.peer.endpoint, message, &sending.wire, sizeof(Prefix) + header_bytes, data, count, &param)
        return self._posted(sending, result)

    cdef SendStatus _posted(self, Sending* sending, ucs_status_ptr_t result) noexcept nogil:
        cdef Peer* peer = sending.peer
        if is_request(result):
            _link(&self.in_flight, sending)
            peer.backlog_bytes += sending.size_bytes
            self._sleep.wake()
            return SEND_OK
        if status_of(result) == UCS_OK:
            if sending.done != NULL:
                sending.done(sending.argument, 0)
            self._give(sending)
            return SEND_OK
        self._give(sending)
        if status_of(result) == UCS_ERR_NO_MEMORY:
            return SEND_NO_MEMORY
        self._peers.fail_status(peer, status_of(result))
        return SEND_PEER_LOST

    cdef void post_control(self, Peer* peer, uint32_t kind, const char* body, size_t body_bytes) noexcept nogil:
        cdef Piece piece
        cdef Sending* sending = new_sending(self, peer, kind, body_bytes, NULL, NULL)
        if sending == NULL:
            return
        # Copied: the caller's bytes need not live until UCX has sent them.
        memcpy(sending.packed, body, body_bytes)
        piece.data = sending.packed
        piece.size_bytes = body_bytes
        piece.memory = HOST_MEMORY
        self.post(sending, AM_CONTROL, 0, &piece, 1 if body_bytes else 0)

    # -- finishing ---------------------------------------------------------------------------------------------------

    cdef void _finish(self, Sending* sending, ucs_status_t status) noexcept nogil:
        self._unlink(sending)
        if not sending.is_abandoned:
            self._settle(sending, status)
        self._give(sending)

    cdef void _settle(self, Sending* sending, ucs_status_t status) noexcept nogil:
        sending.peer.backlog_bytes -= sending.size_bytes
        self.finished += 1
        if status != UCS_OK and self._peers.phase < CLOSING:
            self._peers.fail_status(sending.peer, status)
        if sending.done != NULL:
            sending.done(sending.argument, status)

    cdef void abandon(self, Peer* peer) noexcept nogil:
        # UCX completes the sends of a closed endpoint, but not those that wait behind the full shared-memory queue of a
        # dead process (it waits for room first). What it no longer reads may be reused.
        cdef Sending* sending = self.in_flight
        cdef Sending* following
        while sending != NULL:
            following = sending.next
            if sending.peer == peer:
                self._unlink(sending)
                sending.is_abandoned = True
                _link(&self.abandoned, sending)
                self._settle(sending, UCS_ERR_CONNECTION_RESET)
            sending = following

    cdef void finish_rest(self) noexcept nogil:
        while self.in_flight != NULL:
            self._finish(self.in_flight, UCS_ERR_CANCELED)
        while self.abandoned != NULL:
            self._finish(self.abandoned, UCS_ERR_CANCELED)

    cdef void forget_callbacks(self) noexcept nogil:
        cdef Sending* sending = self.in_flight
        while sending != NULL:
            sending.done = NULL
            sending = sending.next

    # -- records: two doubly linked lists, and a free list -----------------------------------------------------------

    cdef void _give(self, Sending* sending) noexcept nogil:
        if sending.gather != NULL and sending.gather != sending.inline_gather:
            free(sending.gather)
        sending.next = self._free
        self._free = sending

    cdef void _unlink(self, Sending* sending) noexcept nogil:
        if sending.next != NULL:
            sending.next.previous = sending.previous
        if sending.previous != NULL:
            sending.previous.next = sending.next
        elif sending.is_abandoned:
            self.abandoned = sending.next
        else:
            self.in_flight = sending.next


cdef inline void _link(Sending** first, Sending* sending) noexcept nogil:
    sending.previous = NULL
    sending.next = first[0]
    if first[0] != NULL:
        first[0].previous = sending
    first[0] = sending


cdef inline bint _gather_pieces(Sending* sending, const Piece* pieces, size_t piece_count) noexcept nogil:
    """False: out of memory."""
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


# -- called by UCX -----------------------------------------------------------------------------------------------------

cdef void _send_finished(void* request, ucs_status_t status, void* user_data) noexcept nogil:
    cdef Sending* sending = <Sending*>user_data
    (<UcxSends>sending.sends)._ucp.request_free(request)
    (<UcxSends>sending.sends)._finish(sending, status)
