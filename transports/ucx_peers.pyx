"""The peers of a ucx transport and their endpoints; ``ucx_peers.pxd`` states what they guarantee."""

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdio cimport snprintf
from libc.string cimport memset, strncpy

from intentpm.foundation.errors import TransportError
from intentpm.transports import ucx_library

from intentpm.foundation.losses cimport LOSS_CONNECTION_BROKE, LOSS_CONNECTION_CLOSED, LOSS_UNREACHABLE, loss_text
from intentpm.transports.ucp cimport *


cdef class UcxPeers:
    """``size`` ranks, none connected yet; the own one never is. ``tag``: the job's, of 24 bits."""

    def __cinit__(self, UcxWorker ucx not None, uint32_t rank, uint32_t size, uint32_t tag):
        cdef uint32_t i
        self.job.rank = rank
        self.job.size = size
        self.job.tag = tag << 8
        self._ucx = ucx
        self._ucp = ucx.ucp
        self._addresses = []
        self.all = <Peer*>PyMem_Calloc(size, sizeof(Peer))
        if self.all == NULL:
            raise MemoryError
        for i in range(size):
            self.all[i].peers = <void*>self
            self.all[i].rank = i

    def __dealloc__(self):
        PyMem_Free(self.all)

    # -- endpoints ---------------------------------------------------------------------------------------------------

    cdef int open(self, uint32_t rank, bytes address, int64_t now_ns) except -1:
        cdef Peer* peer = &self.all[rank]
        cdef ucs_status_t status
        self._addresses.append(address)
        peer.address = address
        status = self.create_endpoint(peer)
        if status != UCS_OK:
            raise TransportError(
                f"UCX finds no way from rank {self.job.rank} to rank {rank}: {text_of(self._ucp, status)}; both need "
                f"one network in common that survives the loss of a peer ({ucx_library.describe_settings()}; "
                f"{self._ucx.settings})")
        peer.state = ALIVE
        peer.heard_ns = now_ns
        return 0

    cdef ucs_status_t create_endpoint(self, Peer* peer) noexcept nogil:
        cdef ucp_ep_params_t params
        memset(&params, 0, sizeof(params))
        params.field_mask = (
            UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER)
        params.address = <const ucp_address_t*>peer.address
        params.err_mode = UCP_ERR_HANDLING_MODE_PEER
        params.err_handler.cb = _endpoint_failed
        params.err_handler.arg = peer
        return self._ucp.ep_create(self._ucx.handle, &params, &peer.endpoint)

    cdef void close_endpoint(self, Peer* peer, bint is_waited_for) noexcept nogil:
        cdef ucp_request_param_t param
        cdef ucp_ep_h endpoint = peer.endpoint
        if endpoint == NULL:
            return
        peer.endpoint = NULL
        peer.state = GONE
        param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA
        param.flags = UCP_EP_CLOSE_FLAG_FORCE
        param.cb.send = _lost_endpoint_closed
        if is_waited_for:
            param.cb.send = _endpoint_closed
        param.user_data = <void*>self
        if is_request(self._ucp.ep_close_nbx(endpoint, &param)):
            self.closing_endpoints += is_waited_for

    cdef void _endpoint_let_go(self, void* request, bint was_waited_for) noexcept nogil:
        self.closing_endpoints -= was_waited_for
        self._ucp.request_free(request)

    cdef list paths(self, uint32_t rank):
        return self._ucx.paths(self.all[rank].endpoint)

    cdef void note_paths(self):
        cdef uint32_t rank
        for rank in range(self.job.size):
            paths = self.paths(rank)
            self.all[rank].shares_memory = bool(paths) and all([path.endswith("/memory") for path in paths])

    # -- noting losses -----------------------------------------------------------------------------------------------

    cdef void fail(self, Peer* peer, const char* why) noexcept nogil:
        if peer.state != ALIVE or peer.failing:
            return
        peer.failing = True
        strncpy(peer.why, why, REASON_BYTES - 1)
        self.failing += 1

    cdef void fail_for(self, Peer* peer, int loss) noexcept nogil:
        cdef char why[REASON_BYTES]
        snprintf(why, REASON_BYTES, loss_text(loss), self.job.rank)
        self.fail(peer, why)

    cdef void fail_status(self, Peer* peer, ucs_status_t status) noexcept nogil:
        cdef char why[REASON_BYTES]
        if status == UCS_ERR_CONNECTION_RESET:
            self.fail_for(peer, LOSS_CONNECTION_CLOSED)
        elif status == UCS_ERR_ENDPOINT_TIMEOUT:
            self.fail_for(peer, LOSS_UNREACHABLE)
        else:
            snprintf(why, REASON_BYTES, loss_text(LOSS_CONNECTION_BROKE), self.job.rank, self._ucp.status_string(status))
            self.fail(peer, why)


# -- called by UCX -----------------------------------------------------------------------------------------------------

cdef void _endpoint_failed(void* arg, ucp_ep_h endpoint, ucs_status_t status) noexcept nogil:
    cdef Peer* peer = <Peer*>arg
    (<UcxPeers>peer.peers).fail_status(peer, status)


cdef void _endpoint_closed(void* request, ucs_status_t status, void* user_data) noexcept nogil:
    (<UcxPeers>user_data)._endpoint_let_go(request, True)


cdef void _lost_endpoint_closed(void* request, ucs_status_t status, void* user_data) noexcept nogil:
    (<UcxPeers>user_data)._endpoint_let_go(request, False)
