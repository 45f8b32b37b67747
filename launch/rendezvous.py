"""A small TCP rendezvous: how ranks that share nothing but an address and a secret tell each other a few bytes.

One ``RendezvousServer`` (``rendezvous_server.py``) per job, one ``Rendezvous`` (the client, here) per rank.

Wire: the server speaks first (``HELLO``), the client proves that it knows the secret (``JOIN``), the server answers
with its own proof (``WELCOME``). After that both send frames: kind, sequence number, length, payload. Every length is
checked before anything is read or allocated.

A server may live in a rank, and end with its process while another rank's next program has come to it already. So it
says ``STAYS`` to the members of a meeting that it will see through; who loses it before that word looks for the next.

Guarantees
    * Every wait has a deadline, and the error names what was waited for.
    * A connection that does not prove the secret learns nothing and changes nothing.
Assumptions
    * The secret authenticates; nothing is encrypted. Payloads are addresses, not data.
    * One thread at a time uses a ``Rendezvous``.
"""

import hashlib
import hmac
import json
import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Literal

from intentpm.foundation.deadlines import LONGEST_S, call_s, wait_s
from intentpm.foundation.errors import Error, PeerLostError, TransportError, WaitTimeoutError

MAGIC = b"IPMRDV03"
NONCE_BYTES = 16
HELLO = struct.Struct(f"!8s{NONCE_BYTES}s")
JOIN = struct.Struct(f"!8s{NONCE_BYTES}sII{NONCE_BYTES}s32s")  # magic, nonce, rank, size, process, proof
WELCOME = struct.Struct("!B32s")  # verdict, proof
FRAME = struct.Struct("!BII")  # kind, sequence, payload bytes

ACCEPTED, WRONG_SECRET = 0, 1

# Frame kinds. GATHER and LEAVE go to the server; RESULT, FAILED, NUMBER and STAYS come from it.
GATHER, LEAVE, RESULT, FAILED, NUMBER, STAYS = 1, 2, 3, 4, 5, 6

ANY_RANK = 2**32 - 1
"""Of who has no number yet: the server gives it the lowest free one."""

MAX_PAYLOAD_BYTES = 1 << 20
MAX_RANKS = 1 << 16
HANDSHAKE_TIMEOUT_S = 5.0
# How much longer than its own deadline a rank waits for the server's word on who is missing.
VERDICT_MARGIN_S = 2.0
_TIMEOUT = struct.Struct("!d")
RANK = struct.Struct("!I")
_LENGTH = struct.Struct("!I")

Address = tuple[str, int]


def proof(secret: bytes, role: bytes, *parts: bytes) -> bytes:
    """The HMAC with which ``role`` shows that it knows ``secret``; 32 bytes."""
    return hmac.new(secret, b"intentpm rendezvous " + role + b"".join(parts), hashlib.sha256).digest()


def join_proof(secret: bytes, server_nonce: bytes, nonce: bytes, rank: int, size: int, process: bytes) -> bytes:
    return proof(secret, b"join", server_nonce, nonce, struct.pack("!II", rank, size), process)


def pack_gather(payload: bytes, timeout_s: float) -> bytes:
    return _TIMEOUT.pack(wait_s(timeout_s)) + payload


def unpack_gather(body: bytes) -> tuple[bytes, float]:
    """Raises ValueError on a body too short, or a timeout that is no duration."""
    if len(body) < _TIMEOUT.size:
        raise ValueError("gather frame too short")
    (timeout_s,) = _TIMEOUT.unpack_from(body)
    if not 0 <= timeout_s <= LONGEST_S:
        raise ValueError(f"gather frame with timeout {timeout_s}")
    return body[_TIMEOUT.size :], timeout_s


def pack_list(payloads: Sequence[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(payload)) + payload for payload in payloads)


def unpack_list(body: bytes, count: int) -> list[bytes]:
    """Raises ValueError unless ``body`` holds exactly ``count`` payloads."""
    payloads = []
    offset = 0
    for _ in range(count):
        if offset + _LENGTH.size > len(body):
            raise ValueError("result frame too short")
        (length,) = _LENGTH.unpack_from(body, offset)
        offset += _LENGTH.size
        if offset + length > len(body):
            raise ValueError("result frame too short")
        payloads.append(body[offset : offset + length])
        offset += length
    if offset != len(body):
        raise ValueError("result frame too long")
    return payloads


def pack_failure(kind: Literal["timeout", "lost", "refused"], message: str, lost_rank: int = -1) -> bytes:
    return json.dumps({"kind": kind, "message": message, "rank": lost_rank}).encode()


def unpack_failure(body: bytes) -> Error:
    said = json.loads(body)
    if said["kind"] == "lost":
        return PeerLostError(said["rank"], said["message"])
    return (WaitTimeoutError if said["kind"] == "timeout" else TransportError)(said["message"])


class Rendezvous:
    """One rank's connection to the rendezvous server.

    Parameters: ``addresses`` are tried in turn until one proves the secret; ``rank``: ANY_RANK for the number that the
    server gives, ``self.rank`` from then on; ``process`` tells this process from others of its rank, before and beside
    it; ``server_name`` says in errors who was expected to listen.

    Raises TransportError when the server refuses the secret or another rank of this number has joined, and
    WaitTimeoutError when no server proved the secret within ``timeout_s``.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        rank: int,
        size: int,
        secret: bytes,
        *,
        timeout_s: float,
        process: bytes | None = None,
        server_name: str = "the rendezvous server",
    ) -> None:
        self.rank = rank
        self.size = size
        self._secret = secret
        self._process = process or identify_process()
        self._server_name = server_name
        self._addresses = list(addresses)
        self._sequence = 0
        self._server_stays = False
        self._socket: socket.socket | None = self._find_server(timeout_s)
        if rank == ANY_RANK:
            self._receive_number()

    def allgather(self, payload: bytes, timeout_s: float) -> list[bytes]:
        """Returns every rank's ``payload`` (at most 1 MiB) in rank order; collective.

        Raises WaitTimeoutError naming the ranks that did not come in time, PeerLostError when a rank that has not
        contributed is gone, TransportError when the server is gone.
        """
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"payload of {len(payload)} bytes: at most {MAX_PAYLOAD_BYTES}")
        if self._socket is None:
            raise TransportError("the rendezvous of this rank is closed")
        kind, reply = self._ask(payload, timeout_s)
        if kind == FAILED:
            raise unpack_failure(reply)
        self._sequence += 1
        return unpack_list(reply, self.size)

    def close(self) -> None:
        """Says goodbye, so that the end of this connection is not taken for a death. Idempotent."""
        if self._socket is None:
            return
        try:
            self._socket.settimeout(1.0)
            self._socket.sendall(FRAME.pack(LEAVE, self._sequence, 0))
        except OSError:
            pass
        self._socket.close()
        self._socket = None

    def _ask(self, payload: bytes, timeout_s: float) -> tuple[int, bytes]:
        """The answer of the server that sees this exchange through: its kind and its body."""
        deadline = time.monotonic() + wait_s(timeout_s)
        left_s = timeout_s
        while True:
            try:
                return self._ask_this_server(payload, left_s)
            except TimeoutError:
                raise WaitTimeoutError(
                    f"rank {self.rank}: {self._server_name} did not answer within {timeout_s:g} s"
                ) from None
            except OSError as error:
                if self._sequence > 0 or self._server_stays:
                    raise TransportError(
                        f"rank {self.rank}: lost the connection to {self._server_name}: {error}"
                    ) from None
            # That was the server of a program before, with which nothing has been agreed.
            assert self._socket is not None
            self._socket.close()
            self._socket = self._find_server(_left_s(deadline))
            left_s = _left_s(deadline)

    def _ask_this_server(self, payload: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Raises TimeoutError when it says nothing in time, OSError when it is gone."""
        assert self._socket is not None
        body = pack_gather(payload, timeout_s)
        wait = wait_s(timeout_s) + VERDICT_MARGIN_S
        deadline = time.monotonic() + wait
        self._socket.settimeout(call_s(wait))
        self._socket.sendall(FRAME.pack(GATHER, self._sequence, len(body)) + body)
        return self._receive_frame(deadline)

    def _receive_number(self) -> None:
        try:
            kind, body = self._receive_frame(time.monotonic() + HANDSHAKE_TIMEOUT_S)
            if kind == FAILED:
                raise unpack_failure(body)
            (self.rank,) = RANK.unpack(body)
        except Error:
            self.close()
            raise
        except (OSError, struct.error) as error:
            self.close()
            raise TransportError(f"{self._server_name} gave no rank: {error or type(error).__name__}") from None

    def _receive_frame(self, deadline: float) -> tuple[int, bytes]:
        assert self._socket is not None
        limit = self.size * (MAX_PAYLOAD_BYTES + _LENGTH.size)
        while True:
            kind, sequence, length = FRAME.unpack(_receive(self._socket, FRAME.size, deadline))
            if kind not in (RESULT, FAILED, NUMBER, STAYS) or length > limit:
                raise OSError(f"unexpected frame (kind {kind}, {length} bytes)")
            body = _receive(self._socket, length, deadline)
            if kind == STAYS:
                self._server_stays = True
                continue
            if kind == FAILED or sequence == self._sequence:
                return kind, body

    def _find_server(self, timeout_s: float) -> socket.socket:
        deadline = time.monotonic() + wait_s(timeout_s)
        pause_s = 0.02
        while True:
            said: dict[Address, Exception] = {}
            for address in self._addresses:
                try:
                    return self._join(address, deadline)
                except (OSError, _WrongSecretError) as error:
                    said[address] = error
            if all(isinstance(error, _WrongSecretError) for error in said.values()):
                raise TransportError(self._refusal(said))
            if time.monotonic() + pause_s >= deadline:
                raise WaitTimeoutError(self._absence(said, timeout_s))
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.5)

    def _join(self, address: Address, deadline: float) -> socket.socket:
        # A stranger on a candidate port may accept and say nothing: never spend more than a handshake on one address.
        deadline = min(deadline, time.monotonic() + HANDSHAKE_TIMEOUT_S)
        connection = socket.create_connection(address, timeout=max(0.01, deadline - time.monotonic()))
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._prove(connection, deadline)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prove(self, connection: socket.socket, deadline: float) -> None:
        magic, server_nonce = HELLO.unpack(_receive(connection, HELLO.size, deadline))
        if magic != MAGIC:
            raise OSError("something that is no intentpm rendezvous listens there")
        nonce = os.urandom(NONCE_BYTES)
        identity = (self.rank, self.size, self._process)
        connection.sendall(JOIN.pack(MAGIC, nonce, *identity, join_proof(self._secret, server_nonce, nonce, *identity)))
        verdict, answer = WELCOME.unpack(_receive(connection, WELCOME.size, deadline))
        expected = proof(self._secret, b"welcome", nonce, server_nonce)
        if verdict != ACCEPTED or not hmac.compare_digest(answer, expected):
            raise _WrongSecretError("the secret was refused")

    @property
    def _me(self) -> str:
        return f"process {os.getpid()}" if self.rank == ANY_RANK else f"rank {self.rank}"

    def _refusal(self, said: dict[Address, Exception]) -> str:
        where = ", ".join(f"{host}:{port}" for host, port in said)
        return (
            f"{self._me}: {self._server_name} at {where} does not have this rank's job secret: "
            "it belongs to another job, or INTENTPM_SECRET differs between the ranks"
        )

    def _absence(self, said: dict[Address, Exception], timeout_s: float) -> str:
        tried = "; ".join(f"{host}:{port}: {error or type(error).__name__}" for (host, port), error in said.items())
        return f"{self._me}: {self._server_name} could not be reached within {timeout_s:g} s ({tried})"


_identity: tuple[int, bytes] = (0, b"")  # the process it belongs to: a forked child inherits it, and makes its own


def identify_process() -> bytes:
    """16 bytes that no other process has."""
    global _identity
    if _identity[0] != os.getpid():
        _identity = (os.getpid(), os.urandom(NONCE_BYTES))
    return _identity[1]


class _WrongSecretError(Exception):
    """The server at this address does not share the secret."""


def _left_s(deadline: float) -> float:
    """Until ``deadline``; in hundredths, because people read it."""
    return max(0.0, round(deadline - time.monotonic(), 2))


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    """Exactly ``size`` bytes. Raises TimeoutError at the deadline and ConnectionError at the end of the stream."""
    data = bytearray()
    while len(data) < size:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError("no answer in time")
        connection.settimeout(call_s(remaining_s))
        try:
            piece = connection.recv(min(size - len(data), 1 << 16))
        except TimeoutError:  # of this call; whether the deadline has passed is asked above
            continue
        if not piece:
            raise ConnectionError("the other side closed the connection")
        data += piece
    return bytes(data)
