"""Hello and goodbye over UCX; ``ucx_greetings.pxd`` states what they guarantee."""

from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from intentpm.transports import ucx_address

from intentpm.foundation.losses cimport LOSS_GAVE_UP, LOSS_TRANSPORT_CLOSED
from intentpm.transports.base cimport Transport
from intentpm.transports.ucp cimport *
from intentpm.transports.ucx_peers cimport is_reachable
from intentpm.transports.ucx_wire cimport AM_CONTROL, is_foreign

cdef enum:
    PROOF_BYTES = 16
    HELLO_BYTES = 512


cdef class UcxGreetings:
    """What ``transport`` says to its peers before and after messages. ``secret``: the job's."""

    def __cinit__(
            self, Transport transport not None, UcxWorker ucx not None, UcxPeers peers not None, UcxSends sends not None,
            bytes secret not None):
        cdef uint32_t size = peers.job.size
        self._transport = <void*>transport
        self._ucx = ucx
        self._peers = peers
        self._sends = sends
        self._proofs = b"".join([ucx_address.hello_proof(secret, rank, size) for rank in range(size)])
        self._proof_bytes = self._proofs
        self.missing_hellos = size - 1

    cdef int start(self) except -1:
        return self._ucx.receive(AM_CONTROL, _control_arrived, <void*>self)

    cdef int say_hello(self, uint32_t rank) except -1:
        # Padded beyond UCX's shortest protocol: shared memory attaches the peer's buffers at the first longer message,
        # and that one waits for a progress(). Better here than in the first real message.
        cdef uint32_t me = self._peers.job.rank
        cdef bytes hello = self._proofs[me * PROOF_BYTES:(me + 1) * PROOF_BYTES].ljust(HELLO_BYTES)
        self._sends.post_control(&self._peers.all[rank], HELLO, hello, HELLO_BYTES)
        return 0

    cdef void say_goodbye(self) noexcept nogil:
        cdef uint32_t rank
        for rank in range(self._peers.job.size):
            if is_reachable(&self._peers.all[rank]):
                self._sends.post_control(&self._peers.all[rank], BYE, NULL, 0)

    cdef bint all_said_goodbye(self) noexcept nogil:
        cdef uint32_t rank
        for rank in range(self._peers.job.size):
            if is_reachable(&self._peers.all[rank]) and not self._peers.all[rank].said_bye:
                return False
        return True

    # -- receiving ---------------------------------------------------------------------------------------------------

    cdef void _receive(
            self, const WireHeader* wire, size_t wire_bytes, const char* body, size_t body_bytes) noexcept nogil:
        cdef Peer* peer
        cdef uint8_t kind
        if is_foreign(&self._peers.job, wire, wire_bytes):
            self.foreign_messages += 1
            return
        peer = &self._peers.all[wire.prefix.source]
        kind = wire.prefix.tag_and_id & 0xFF
        peer.heard_ns = (<Transport>self._transport).now_ns()
        if kind == HELLO:
            self._receive_hello(peer, body, body_bytes)
        elif kind == BYE:
            self._receive_goodbye(peer)
        elif kind == BYE_SEEN:
            peer.said_bye = True
        elif kind == GIVEN_UP:
            self._peers.fail_for(peer, LOSS_GAVE_UP)
        else:
            self.foreign_messages += 1

    cdef void _receive_hello(self, Peer* peer, const char* body, size_t body_bytes) noexcept nogil:
        if body_bytes != HELLO_BYTES or memcmp(body, self._proof_bytes + peer.rank * PROOF_BYTES, PROOF_BYTES) != 0:
            self.foreign_messages += 1
        elif not peer.said_hello:
            peer.said_hello = True
            self.missing_hellos -= 1

    cdef void _receive_goodbye(self, Peer* peer) noexcept nogil:
        peer.said_bye = True
        if is_reachable(peer):
            self._sends.post_control(peer, BYE_SEEN, NULL, 0)
        # Also while closing: a peer that closes discards what it still gets, so nothing waits for it.
        self._peers.fail_for(peer, LOSS_TRANSPORT_CLOSED)


# -- called by UCX -----------------------------------------------------------------------------------------------------

cdef ucs_status_t _control_arrived(
        void* arg, const void* header, size_t header_length, void* data, size_t length,
        const ucp_am_recv_param_t* param) noexcept nogil:
    if param.recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV:
        return UCS_ERR_REJECTED
    (<UcxGreetings>arg)._receive(<const WireHeader*>header, header_length, <const char*>data, length)
    return UCS_OK
