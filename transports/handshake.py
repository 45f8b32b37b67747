"""How two ranks prove to each other, over a fresh connection, that they belong to the same job. No sockets here.

The dialling rank sends a hello, the listening rank answers with its own; then the dialling rank proves the secret, and
the listening rank answers with a verdict that proves it too. A proof is an HMAC-SHA256 over both hellos under the
sender's role, so it is bound to both ranks, the job's size, both versions and both random challenges, and cannot be
replayed or reflected. Lengths are fixed: a stranger's bytes are never a length.
"""

import enum
import hmac
import os
import struct
from dataclasses import dataclass
from typing import Protocol

from intentpm.foundation.errors import TransportError
from intentpm.transports.tcp_address import Identity, check_versions

_HELLO = struct.Struct("<8sHHIII32s16s32s")
_MAGIC = b"intentpm"
_FORMAT = 1
_VERDICT = struct.Struct("<8sB32s")
HELLO_BYTES = _HELLO.size
PROOF_BYTES = 32
VERDICT_BYTES = _VERDICT.size


class StrangerError(Exception):
    """The other side is not a rank of this job, or did not prove it. Says why; the connection is to be closed."""


class Verdict(enum.IntEnum):
    """What the listening rank decided."""

    WELCOME = 0
    WRONG_SECRET = 1
    OTHER_VERSION = 2
    OTHER_SIZE = 3
    OTHER_RANK = 4
    DUPLICATE_RANK = 5


@dataclass(frozen=True)
class Hello:
    """What a rank claims. ``target``: the rank it wants to talk to."""

    rank: int
    size: int
    target: int
    package_version: str
    protocol_version: int
    instance: bytes
    challenge: bytes

    def pack(self) -> bytes:
        """Returns HELLO_BYTES bytes."""
        version = self.package_version.encode()[:32]
        return _HELLO.pack(
            _MAGIC,
            _FORMAT,
            self.protocol_version,
            self.rank,
            self.size,
            self.target,
            version,
            self.instance,
            self.challenge,
        )

    @classmethod
    def unpack(cls, received: bytes) -> "Hello":
        """Raises StrangerError when ``received`` (HELLO_BYTES bytes) is no hello."""
        magic, layout, protocol, rank, size, target, version, instance, challenge = _HELLO.unpack(received)
        if magic != _MAGIC or layout != _FORMAT:
            raise StrangerError("it does not speak the protocol of intentpm")
        text = version.rstrip(b"\0").decode(errors="replace")
        return cls(rank, size, target, text, protocol, instance, challenge)


class Stream(Protocol):
    """A connection during the handshake; both calls have their deadline from outside."""

    async def send(self, data: bytes) -> None: ...

    async def receive(self, size_bytes: int) -> bytes:
        """Exactly ``size_bytes``. Raises StrangerError when the connection ends before."""
        ...


def make_hello(me: Identity, target: int) -> Hello:
    """A hello with a fresh challenge."""
    return Hello(me.rank, me.size, target, me.package_version, me.protocol_version, me.instance, os.urandom(32))


def prove(secret: bytes, role: bytes, dialled: bytes, answered: bytes) -> bytes:
    """The proof of the side ``role`` over both packed hellos."""
    return hmac.digest(secret, b"intentpm " + role + dialled + answered, "sha256")


async def greet(stream: Stream, me: Identity, target: int, target_instance: bytes) -> tuple[bytes, bytes]:
    """First half, dialling side: exchanges hellos and returns both. Nothing is proven yet, and nothing promised.

    Raises StrangerError when something else than the process of rank ``target`` listens there.
    """
    mine = make_hello(me, target).pack()
    await stream.send(mine)
    theirs = await stream.receive(HELLO_BYTES)
    answer = Hello.unpack(theirs)
    if (answer.rank, answer.instance) != (target, target_instance):
        raise StrangerError(f"another process listens there (rank {answer.rank} of some job)")
    return mine, theirs


async def convince(stream: Stream, me: Identity, mine: bytes, theirs: bytes) -> None:
    """Second half, dialling side: proves the secret and checks the listening side's proof.

    Raises StrangerError (secret not proven), VersionMismatchError or TransportError (proven, but the ranks do not fit).
    """
    await stream.send(prove(me.secret, b"dialler", mine, theirs))
    magic, code, proof = _VERDICT.unpack(await stream.receive(VERDICT_BYTES))
    if magic != _MAGIC:
        raise StrangerError("it does not speak the protocol of intentpm")
    if not hmac.compare_digest(proof, _verdict_proof(me.secret, code, mine, theirs)):
        raise StrangerError("it does not have this job's secret")
    answer = Hello.unpack(theirs)
    check_versions(me, answer.rank, answer.package_version, answer.protocol_version)
    if code != Verdict.WELCOME:
        raise TransportError(_explain(Verdict(code), me, Hello.unpack(mine), answer))


def _verdict_proof(secret: bytes, code: int, dialled: bytes, answered: bytes) -> bytes:
    return prove(secret, b"listener" + bytes([code]), dialled, answered)


async def receive_greeting(stream: Stream, me: Identity) -> tuple[bytes, bytes]:
    """First half, listening side: returns (their hello, my hello). Raises StrangerError."""
    theirs = await stream.receive(HELLO_BYTES)
    claim = Hello.unpack(theirs)
    mine = make_hello(me, claim.rank).pack()
    await stream.send(mine)
    return theirs, mine


async def judge(stream: Stream, me: Identity, theirs: bytes, mine: bytes, instances: dict[int, bytes]) -> int:
    """Second half, listening side: checks the proof, sends the verdict. Returns the rank that is now connected.

    ``instances``: the processes expected, by rank.
    Raises StrangerError (secret not proven), VersionMismatchError or TransportError (proven, but the ranks do not fit).
    """
    proof = await stream.receive(PROOF_BYTES)
    claim = Hello.unpack(theirs)
    verdict = Verdict.WRONG_SECRET
    if hmac.compare_digest(proof, prove(me.secret, b"dialler", theirs, mine)):
        verdict = _decide(me, claim, instances)
    # The reason goes out first: both sides are to know it.
    await stream.send(_VERDICT.pack(_MAGIC, verdict, _verdict_proof(me.secret, verdict, theirs, mine)))
    if verdict == Verdict.WRONG_SECRET:
        raise StrangerError(f"it claims to be rank {claim.rank} but does not have this job's secret")
    check_versions(me, claim.rank, claim.package_version, claim.protocol_version)
    if verdict == Verdict.DUPLICATE_RANK:
        raise StrangerError(f"a second process claims to be rank {claim.rank}")
    if verdict != Verdict.WELCOME:
        raise TransportError(_explain(verdict, me, claim, Hello.unpack(mine)))
    return claim.rank


def _decide(me: Identity, claim: Hello, instances: dict[int, bytes]) -> Verdict:
    if (claim.package_version, claim.protocol_version) != (me.package_version, me.protocol_version):
        return Verdict.OTHER_VERSION
    if claim.size != me.size:
        return Verdict.OTHER_SIZE
    if claim.target != me.rank or claim.rank not in instances:
        return Verdict.OTHER_RANK
    if claim.instance != instances[claim.rank]:
        return Verdict.DUPLICATE_RANK
    return Verdict.WELCOME


def _explain(verdict: Verdict, me: Identity, dialled: Hello, answered: Hello) -> str:
    dialler, listener = f"rank {dialled.rank} of {dialled.size}", f"rank {answered.rank} of {answered.size}"
    if verdict == Verdict.OTHER_SIZE:
        return f"{dialler} tried to join {listener}: all ranks must be started with the same number of ranks"
    if verdict == Verdict.DUPLICATE_RANK:
        return f"two processes of the job claim to be rank {dialled.rank}: {listener} already expects the other one"
    return f"{dialler} looked for rank {dialled.target} and found {listener}: the addresses of the ranks are mixed up"
