"""What ranks tell each other before UCX may connect them: an envelope around the worker address, and proofs of the job.

Worker addresses travel over the bootstrap, which only ranks of the job can read and write. The envelope's HMAC makes a mixed
up or foreign address an error here instead of a crash in UCX; the hello proof and the tag of every message let a rank
ignore what some other UCX program sends to it. Neither encrypts: UCX sends in the clear, as MPI does.
"""

import hashlib
import hmac
import struct

from intentpm.runtime.errors import TransportError, VersionMismatchError

PROTOCOL_VERSION = 1
"""Of the messages between two UcxTransports; both ends must have the same."""
PROOF_BYTES = 16
_MAGIC = b"iPMx"
_ENVELOPE = struct.Struct("<4sHHIIHHH2x")  # magic, protocol, envelope bytes, rank, size, UCX version


def _sign(secret: bytes, *parts: bytes) -> bytes:
    return hmac.digest(secret, b"\0".join(parts), hashlib.sha256)


def pack_address(secret: bytes, rank: int, size: int, ucx_version: tuple[int, int, int], worker_address: bytes) -> bytes:
    """The envelope of one rank's UCX worker address."""
    fields = _ENVELOPE.pack(_MAGIC, PROTOCOL_VERSION, _ENVELOPE.size, rank, size, *ucx_version)
    return _sign(secret, b"address", fields, worker_address)[:PROOF_BYTES] + fields + worker_address


def unpack_address(secret: bytes, rank: int, size: int, envelope: bytes) -> bytes:
    """The worker address in ``envelope``, which must be rank ``rank``'s in this job of ``size`` ranks.

    Raises VersionMismatchError and TransportError (not an address, of another job, rank or size).
    """
    proof, fields = envelope[:PROOF_BYTES], envelope[PROOF_BYTES : PROOF_BYTES + _ENVELOPE.size]
    worker_address = envelope[PROOF_BYTES + _ENVELOPE.size :]
    if len(fields) < _ENVELOPE.size or fields[:4] != _MAGIC:
        raise TransportError(
            f"what rank {rank} sent is not the address of a ucx transport: all ranks must choose the same transport"
        )
    _, protocol, _, claimed_rank, claimed_size, *_ = _ENVELOPE.unpack(fields)
    if protocol != PROTOCOL_VERSION:
        raise VersionMismatchError(
            f"rank {rank} speaks version {protocol} of the ucx transport's protocol, this rank {PROTOCOL_VERSION}: "
            "install the same intentpm on every host"
        )
    if not hmac.compare_digest(proof, _sign(secret, b"address", fields, worker_address)[:PROOF_BYTES]):
        raise TransportError(f"the address of rank {rank} was made with another secret: it belongs to another job")
    if (claimed_rank, claimed_size) != (rank, size):
        raise TransportError(
            f"the address in place {rank} is that of rank {claimed_rank} of {claimed_size}: this job has {size} ranks"
        )
    return worker_address


def job_tag(secret: bytes) -> int:
    """24 bits in every message's header: messages of other jobs do not have them."""
    return int.from_bytes(_sign(secret, b"tag", bytes([PROTOCOL_VERSION]))[:3], "little")


def hello_proof(secret: bytes, source: int, size: int) -> bytes:
    """What rank ``source`` shows in its hello to prove that it is that rank of this job."""
    return _sign(secret, b"hello", struct.pack("<HII", PROTOCOL_VERSION, source, size))[:PROOF_BYTES]
