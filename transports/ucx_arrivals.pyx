"""Receiving through UCX; ``ucx_arrivals.pxd`` states what it guarantees."""

from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from intentpm.foundation.losses cimport LOSS_NO_MEMORY_TO_RECEIVE
from intentpm.transports.base cimport BODY_ALIGNMENT, Transport, pack_pieces
from intentpm.transports.ucp cimport *
from intentpm.transports.ucx_peers cimport CLOSING, DELIVERING, is_reachable
from intentpm.transports.ucx_wire cimport AM_MESSAGE, Prefix, is_foreign

cdef enum:
    RECEIVE_BUDGET_BYTES = 256 << 20


cdef class UcxArrivals:
    """What ``ucx`` receives for ``transport``, which must outlive it."""

    def __cinit__(
            self, Transport transport not None, UcxWorker ucx not None, UcxPeers peers not None,
            RegisteredPool pool not None):
        self._transport = <void*>transport
        self._ucx = ucx
        self._ucp = ucx.ucp
        self._peers = peers
        self._pool = pool

    def __dealloc__(self):
        while self._spare.first != NULL:
            free(_pop(&self._spare))
        free(self._aligned)

    cdef int start(self) except -1:
        return self._ucx.receive(AM_MESSAGE, _message_arrived, <void*>self)

    # -- small messages ----------------------------------------------------------------------------------------------

    cdef ucs_status_t _receive(
            self, const WireHeader* wire, size_t wire_bytes, void* data, size_t body_bytes,
            bint rendezvous) noexcept nogil:
        cdef uint8_t message_id
        cdef uint32_t source
        cdef size_t header_bytes
        if is_foreign(&self._peers.job, wire, wire_bytes):
            self.foreign_messages += 1
            return UCS_ERR_REJECTED if rendezvous else UCS_OK
        source = wire.prefix.source
        message_id = wire.prefix.tag_and_id & 0xFF
        header_bytes = wire_bytes - sizeof(Prefix)
        if self._peers.phase >= CLOSING or not is_reachable(&self._peers.all[source]):
            return UCS_OK
        if rendezvous:
            return self._receive_rendezvous(source, message_id, wire.bytes, header_bytes, data, body_bytes)
        if self._peers.phase != DELIVERING:
            return self._keep_early(source, message_id, wire.bytes, header_bytes, data, body_bytes)
        if <uintptr_t>data % BODY_ALIGNMENT and body_bytes:
            data = self._realign(data, body_bytes)
            if data == NULL:
                self._lose_for_memory(source)
                return UCS_OK
        self._deliver(source, message_id, wire.bytes, header_bytes, <const char*>data, body_bytes)
        return UCS_OK

    cdef void _deliver(
            self, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
            const char* body, size_t body_bytes) noexcept nogil:
        if self.heard_ns == 0:
            self.heard_ns = (<Transport>self._transport).now_ns()
        self._peers.all[source].heard_ns = self.heard_ns
        self.delivered += 1
        _hand_over(<Transport>self._transport, source, message_id, header, header_bytes, body, body_bytes)

    cdef void* _realign(self, const void* data, size_t size_bytes) noexcept nogil:
        if size_bytes > self._aligned_bytes:
            free(self._aligned)
            self._aligned_bytes = 2 * size_bytes
            self._aligned = <char*>malloc(self._aligned_bytes)
            if self._aligned == NULL:
                self._aligned_bytes = 0
                return NULL
        memcpy(self._aligned, data, size_bytes)
        self.realigned_messages += 1
        return self._aligned

    # -- the inbox: messages to oneself, and those that came early ---------------------------------------------------

    cdef bint keep_own(
            self, uint8_t message_id, const char* header, size_t header_bytes, const Piece* pieces, size_t piece_count,
            size_t body_bytes) noexcept nogil:
        # UCX's loopback would run on_message inside send().
        cdef Arrival* arrival = self._new_arrival(self._peers.job.rank, message_id, header, header_bytes, body_bytes)
        if arrival == NULL or not self._give_memory(arrival):
            self._recycle(arrival)
            return False
        pack_pieces(arrival.body, pieces, piece_count)
        _push(&self.inbox, arrival)
        return True

    cdef ucs_status_t _keep_early(
            self, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
            const void* data, size_t body_bytes) noexcept nogil:
        # A peer that connected before us sends already; on_message runs inside progress() only.
        cdef Arrival* arrival = self._new_arrival(source, message_id, header, header_bytes, body_bytes)
        if arrival == NULL or not self._give_memory(arrival):
            self._recycle(arrival)
            self._lose_for_memory(source)
            return UCS_OK
        memcpy(arrival.body, data, body_bytes)
        _push(&self.inbox, arrival)
        return UCS_OK

    cdef void deliver_inbox(self) noexcept nogil:
        while self.inbox.first != NULL:
            self._deliver_arrival(_pop(&self.inbox))

    cdef void _deliver_arrival(self, Arrival* arrival) noexcept nogil:
        self._deliver(
            arrival.source, arrival.message_id, arrival.header, arrival.header_bytes, arrival.body, arrival.body_bytes)
        self._recycle(arrival)

    # -- rendezvous: the body stays with its sender until memory for it is ready here ---------------------------------

    cdef ucs_status_t _receive_rendezvous(
            self, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
            void* descriptor, size_t body_bytes) noexcept nogil:
        cdef Arrival* arrival = self._new_arrival(source, message_id, header, header_bytes, body_bytes)
        if arrival == NULL:
            self._lose_for_memory(source)
            return UCS_ERR_NO_MEMORY
        arrival.descriptor = descriptor
        _push(&self.waiting, arrival)
        if self._peers.phase == DELIVERING:
            self.start_waiting()
        return UCS_INPROGRESS

    cdef void start_waiting(self) noexcept nogil:
        cdef Arrival* arrival
        while self.waiting.first != NULL:
            if self._receiving_bytes and self._receiving_bytes + self.waiting.first.body_bytes > RECEIVE_BUDGET_BYTES:
                return
            arrival = _pop(&self.waiting)
            if not is_reachable(&self._peers.all[arrival.source]):
                self._recycle(arrival)
            elif not self._give_memory(arrival):
                self._lose_for_memory(arrival.source)
                self._recycle(arrival)
            else:
                self._start_receiving(arrival)

    cdef void _start_receiving(self, Arrival* arrival) noexcept nogil:
        cdef ucp_request_param_t param
        cdef ucs_status_ptr_t result
        cdef void* descriptor = arrival.descriptor
        param.op_attr_mask = (
            UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_DATATYPE |
            UCP_OP_ATTR_FIELD_MEMORY_TYPE)
        param.cb.recv_am = _rendezvous_finished
        param.user_data = arrival
        param.datatype = contiguous_bytes()
        param.memory_type = UCS_MEMORY_TYPE_HOST
        arrival.descriptor = NULL
        self._receiving_bytes += arrival.body_bytes
        self.rendezvous_messages += 1
        result = self._ucp.am_recv_data_nbx(self._ucx.handle, descriptor, arrival.body, arrival.body_bytes, &param)
        if not is_request(result):
            self._finish_rendezvous(arrival, status_of(result))

    cdef void _finish_rendezvous(self, Arrival* arrival, ucs_status_t status) noexcept nogil:
        self._receiving_bytes -= arrival.body_bytes
        if status != UCS_OK and self._peers.phase < CLOSING:
            self._peers.fail_status(&self._peers.all[arrival.source], status)
        if (status == UCS_OK and self._peers.phase == DELIVERING
                and is_reachable(&self._peers.all[arrival.source])):
            self._deliver_arrival(arrival)
        else:
            self._recycle(arrival)

    cdef void _lose_for_memory(self, uint32_t source) noexcept nogil:
        self._peers.fail_for(&self._peers.all[source], LOSS_NO_MEMORY_TO_RECEIVE)

    # -- records -----------------------------------------------------------------------------------------------------

    cdef Arrival* _new_arrival(
            self, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
            size_t body_bytes) noexcept nogil:
        cdef Arrival* arrival = _pop(&self._spare)
        if arrival == NULL:
            arrival = <Arrival*>malloc(sizeof(Arrival))
            if arrival == NULL:
                return NULL
        arrival.arrivals = <void*>self
        arrival.descriptor = NULL
        arrival.source = source
        arrival.message_id = message_id
        arrival.header_bytes = header_bytes
        arrival.body_bytes = body_bytes
        arrival.body = NULL
        memcpy(arrival.header, header, header_bytes)
        return arrival

    cdef bint _give_memory(self, Arrival* arrival) noexcept nogil:
        if arrival.body_bytes:
            arrival.body = self._pool.allocate(arrival.body_bytes)
        return arrival.body_bytes == 0 or arrival.body != NULL

    cdef void _recycle(self, Arrival* arrival) noexcept nogil:
        if arrival == NULL:
            return
        if arrival.descriptor != NULL and self._ucx.handle != NULL:
            self._ucp.am_data_release(self._ucx.handle, arrival.descriptor)
        if arrival.body != NULL:
            self._pool.release(arrival.body, arrival.body_bytes)
        _push(&self._spare, arrival)

    cdef void recycle_all(self) noexcept nogil:
        while self.inbox.first != NULL:
            self._recycle(_pop(&self.inbox))
        while self.waiting.first != NULL:
            self._recycle(_pop(&self.waiting))


cdef inline void _hand_over(
        Transport transport, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
        const char* body, size_t body_bytes) noexcept nogil:
    if source != transport.rank:
        transport.received_messages += 1
        transport.received_bytes += header_bytes + body_bytes
    if transport.on_message != NULL:
        transport.on_message(transport.context, source, message_id, header, header_bytes, body, body_bytes)


cdef inline void _push(ArrivalQueue* queue, Arrival* arrival) noexcept nogil:
    arrival.next = NULL
    if queue.first == NULL:
        queue.first = arrival
    else:
        queue.last.next = arrival
    queue.last = arrival


cdef inline Arrival* _pop(ArrivalQueue* queue) noexcept nogil:
    """NULL: it is empty."""
    cdef Arrival* arrival = queue.first
    if arrival != NULL:
        queue.first = arrival.next
    return arrival


# -- called by UCX: plain functions that find their object -----------------------------------------------------------

cdef ucs_status_t _message_arrived(
        void* arg, const void* header, size_t header_length, void* data, size_t length,
        const ucp_am_recv_param_t* param) noexcept nogil:
    return (<UcxArrivals>arg)._receive(
        <const WireHeader*>header, header_length, data, length, (param.recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0)


cdef void _rendezvous_finished(void* request, ucs_status_t status, size_t length, void* user_data) noexcept nogil:
    cdef Arrival* arrival = <Arrival*>user_data
    cdef void* arrivals = arrival.arrivals        # the record may be given away below
    (<UcxArrivals>arrivals)._finish_rendezvous(arrival, status)
    (<UcxArrivals>arrivals)._ucp.request_free(request)
