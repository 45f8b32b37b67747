"""Hello and goodbye of the ucx transport: how two ranks make sure of each other, and tell that they leave.

Called by: UcxTransport (connect, close), ``ucx_losses`` (drop); UCX, inside worker_progress, for what arrives.

    HELLO       once per peer, while connecting: proves that its sender is that rank of this job
    BYE         its sender has flushed everything and closes; answered by BYE_SEEN: all before it has been received
    GIVEN_UP    its sender has dropped this rank

Guarantees
    * A hello without the proof is counted and ignored, as is any other message of another job or of nobody.
    * A goodbye that was not announced by expect_close() is a loss, named as such.
Assumption: calls are serialised by the caller (the engine's lock), which guards every field.
"""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t

from intentpm.transports.ucx_peers cimport Peer, UcxPeers
from intentpm.transports.ucx_sends cimport UcxSends
from intentpm.transports.ucx_wire cimport WireHeader
from intentpm.transports.ucx_worker cimport UcxWorker


cdef enum ControlKind:
    HELLO = 1                  # body: the proof
    BYE = 2                    # no body
    BYE_SEEN = 3               # no body
    GIVEN_UP = 4               # no body


@cython.final
@cython.no_gc                  # in no cycle
cdef class UcxGreetings:
    cdef uint32_t missing_hellos
    cdef readonly uint64_t foreign_messages
    cdef void* _transport              # the Transport, for its clock; borrowed: it owns this
    cdef UcxWorker _ucx
    cdef UcxPeers _peers
    cdef UcxSends _sends
    cdef bytes _proofs                 # PROOF_BYTES per rank
    cdef const char* _proof_bytes      # _proofs' bytes

    cdef int start(self) except -1
    cdef int say_hello(self, uint32_t rank) except -1
    # To all that can be reached.
    cdef void say_goodbye(self) noexcept nogil
    cdef bint all_said_goodbye(self) noexcept nogil

    cdef void _receive(
        self, const WireHeader* wire, size_t wire_bytes, const char* body, size_t body_bytes) noexcept nogil
    cdef void _receive_hello(self, Peer* peer, const char* body, size_t body_bytes) noexcept nogil
    cdef void _receive_goodbye(self, Peer* peer) noexcept nogil
