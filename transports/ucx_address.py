"""What ranks tell each other before UCX may connect them: an envelope around the worker address, and proofs of the job.

Worker addresses travel over the bootstrap, which only ranks of the job can read and write. The envelope's HMAC makes a
mixed up or foreign address an error here instead of a crash in UCX; the hello proof and the tag of every message let a
rank ignore what some other UCX program sends to it. Neither encrypts: UCX sends in the clear, as MPI does.
"""

import hashlib
import hmac
import struct
from typing import NamedTuple

from intentpm.foundation.errors import TransportError, VersionMismatchError

PROTOCOL_VERSION = 1
"""Of the messages between two UcxTransports; both ends must have the same."""
PROOF_BYTES = 16
_MAGIC = b"iPMx"
_PREFIX = struct.Struct("<4sH")  # magic, protocol: readable by every version
_FIELDS = struct.Struct("<IIi16s")  # rank, size, process, process table
_WORKER_ADDRESS = PROOF_BYTES + _PREFIX.size + _FIELDS.size


class PeerAddress(NamedTuple):
    """How to reach one rank."""

    worker_address: bytes
    """UCX's."""
    process: int
    process_table: bytes
    """16 bytes; ranks with equal ones see each other's process numbers."""


def _sign(secret: bytes, *parts: bytes) -> bytes:
    return hmac.digest(secret, b"\0".join(parts), hashlib.sha256)[:PROOF_BYTES]


def pack_address(secret: bytes, rank: int, size: int, address: PeerAddress) -> bytes:
    """The envelope of rank ``rank``'s address in a job of ``size`` ranks."""
    fields = _FIELDS.pack(rank, size, address.process, address.process_table)
    signed = _PREFIX.pack(_MAGIC, PROTOCOL_VERSION) + fields + address.worker_address
    return _sign(secret, b"address", signed) + signed


def unpack_address(secret: bytes, rank: int, size: int, envelope: bytes) -> PeerAddress:
    """The address in ``envelope``, which must be rank ``rank``'s in this job of ``size`` ranks.

    Raises VersionMismatchError, and TransportError (not an address; of another job, rank or size).
    """
    proof, signed = envelope[:PROOF_BYTES], envelope[PROOF_BYTES:]
    if len(envelope) <= _WORKER_ADDRESS or signed[: len(_MAGIC)] != _MAGIC:
        raise TransportError(
            f"what rank {rank} sent is not the address of a ucx transport: all ranks must choose the same transport"
        )
    protocol = _PREFIX.unpack_from(signed)[1]
    if protocol != PROTOCOL_VERSION:
        raise VersionMismatchError(
            f"rank {rank} speaks version {protocol} of the ucx transport's protocol, this rank {PROTOCOL_VERSION}: "
            "install the same intentpm on every host"
        )
    if not hmac.compare_digest(proof, _sign(secret, b"address", signed)):
        raise TransportError(f"the address of rank {rank} was made with another secret: it belongs to another job")
    claimed_rank, claimed_size, process, process_table = _FIELDS.unpack_from(signed, _PREFIX.size)
    if (claimed_rank, claimed_size) != (rank, size):
        raise TransportError(
            f"the address in place {rank} is that of rank {claimed_rank} of {claimed_size}: this job has {size} ranks"
        )
    return PeerAddress(envelope[_WORKER_ADDRESS:], process, process_table)


def job_tag(secret: bytes) -> int:
    """24 bits in every message's header: messages of other jobs do not have them."""
    return int.from_bytes(_sign(secret, b"tag", bytes([PROTOCOL_VERSION]))[:3], "little")


def hello_proof(secret: bytes, source: int, size: int) -> bytes:
    """What rank ``source`` shows in its hello to prove that it is that rank of this job."""
    return _sign(secret, b"hello", struct.pack("<HII", PROTOCOL_VERSION, source, size))
