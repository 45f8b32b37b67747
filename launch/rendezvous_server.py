"""The server side of the rendezvous; see ``rendezvous.py`` for the wire.

It runs in the launcher (``intentpm run``) or, where no launcher of ours exists (Slurm), in rank 0, on one thread.

Guarantees
    * Stray connections, port scans and garbage are closed and change nothing; they cannot use up the server either:
      at most ``MAX_STRANGERS`` unproven connections are kept, each for ``HANDSHAKE_TIMEOUT_S``.
    * A rank is one process at a time: another that comes with its number while it is connected is turned away at once.
    * Worlds that ranks open one after the other are meetings of their own (``meeting.py``).
    * A server that ends takes nobody in any more, and lets go at once of ranks that came to a meeting which the rank it
      lives in has not joined: they find that rank's next server. Members of other meetings it serves to their end.
Assumptions
    * All state below belongs to the server's thread; other threads only append to ``_requests`` and wake it.
"""

import contextlib
import hmac
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from intentpm.foundation.deadlines import call_s, wait_s
from intentpm.foundation.errors import TransportError, WaitTimeoutError
from intentpm.foundation.losses import LEFT_RENDEZVOUS, how_connection_broke
from intentpm.launch.meeting import Meeting
from intentpm.launch.rendezvous import (
    ACCEPTED,
    ANY_RANK,
    FAILED,
    FRAME,
    GATHER,
    HANDSHAKE_TIMEOUT_S,
    HELLO,
    JOIN,
    LEAVE,
    MAGIC,
    MAX_PAYLOAD_BYTES,
    MAX_RANKS,
    NONCE_BYTES,
    NUMBER,
    RANK,
    STAYS,
    WELCOME,
    WRONG_SECRET,
    Address,
    join_proof,
    pack_failure,
    proof,
    unpack_gather,
)

MAX_STRANGERS = 256


@dataclass(eq=False)
class _Connection:
    """One accepted socket: a stranger until ``rank`` is set."""

    socket: socket.socket
    expires: float
    """Monotonic time by which a stranger must have proven the secret."""
    nonce: bytes = field(default_factory=lambda: os.urandom(NONCE_BYTES))
    received: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    rank: int | None = None
    process: bytes = b""
    """Which process of that rank it is."""
    meeting: Meeting | None = None
    closing: bool = False
    """Close once ``unsent`` is empty."""


class RendezvousServer:
    """Listens on the first free port of ``ports`` (0: any) and serves ``size`` ranks until ``close``.

    ``host``: the address to listen on; "" for every address of this host, IPv6 included. ``serving_rank``: the rank in
    whose process this is; None: in none, and it outlives them all.
    Raises TransportError when none of the ports can be had.
    """

    def __init__(
        self,
        size: int,
        secret: bytes,
        *,
        host: str = "127.0.0.1",
        ports: Iterable[int] = (0,),
        serving_rank: int | None = None,
    ) -> None:
        if not 0 < size <= MAX_RANKS:
            raise ValueError(f"size={size}: needs 1 to {MAX_RANKS} ranks")
        self.size = size
        self._secret = secret
        self._serving_rank = serving_rank
        self._listener = _listen(host, ports)
        self._address: Address = self._listener.getsockname()[:2]
        self._listener.setblocking(False)
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_sender.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, self._drain_wakes)
        self._requests: deque[Callable[[], None]] = deque()
        self._connections: list[_Connection] = []
        self._meetings: list[Meeting] = []  # the last is the one that ranks join
        self._dead: dict[int, str] = {}  # rank -> why its process is gone
        self._stop_at: float | None = None
        # Of the first meeting, for wait(). Written by the server's thread before it sets the events.
        self._was_full = False
        self._lost: dict[int, str] = {}  # rank -> why it left without a goodbye
        self._begun = threading.Event()  # all ranks were there, or it has ended
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="intentpm-rendezvous", daemon=True)
        self._thread.start()

    @property
    def address(self) -> Address:
        """The host and port to connect to."""
        return self._address

    def fail_rank(self, rank: int, why: str) -> None:
        """Tells the server that ``rank``'s process is gone. Any thread; returns at once."""
        self._post(lambda: self._bury(rank, why))

    def wait(self, timeout_s: float) -> dict[int, str]:
        """Waits until all ranks have met, for at most ``timeout_s``, and then until all of them have left again.

        Returns why those are gone that said no goodbye: rank -> why. Raises WaitTimeoutError when they did not meet,
        TransportError when those that came left before. Any thread but the server's.
        """
        if not self._begun.wait(wait_s(timeout_s)):
            here = sum(connection.rank is not None for connection in list(self._connections))
            raise WaitTimeoutError(f"{here} of {self.size} ranks came within {timeout_s:g} s")
        self._ended.wait()  # ranks notice when one of them is gone, and leave then
        if not self._was_full:
            raise TransportError(f"the ranks that had come left before all {self.size} were there")
        return dict(self._lost)

    def close(self, timeout_s: float = 5.0) -> None:
        """Serves until every member has left, for at most ``timeout_s``, then ends the thread. Idempotent.

        Nobody else is let in, from now on.
        """
        if self._thread.is_alive():
            self._post(lambda: self._stop(timeout_s))
            self._thread.join()

    # -- the server's thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_done():
                for key, events in self._selector.select(self._sleep_s()):
                    if isinstance(key.data, _Connection):
                        self._serve(key.data, events)
                    else:
                        key.data()
                while self._requests:
                    self._requests.popleft()()
                self._expire()
        finally:
            for connection in list(self._connections):
                self._drop(connection)
            for thing in (self._selector, self._listener, self._wake_receiver, self._wake_sender):
                thing.close()

    def _is_done(self) -> bool:
        if self._stop_at is None:
            return False
        return all(connection.rank is None for connection in self._connections) or time.monotonic() >= self._stop_at

    def _sleep_s(self) -> float | None:
        times = [deadline for meeting in self._meetings for deadline in meeting.deadlines()]
        times += [connection.expires for connection in self._connections if connection.rank is None]
        if self._stop_at is not None:
            times.append(self._stop_at)
        return call_s(min(times) - time.monotonic()) if times else None

    def _post(self, request: Callable[[], None]) -> None:
        self._requests.append(request)
        with contextlib.suppress(OSError):  # full: a wake is on its way; closed: the server has ended
            self._wake_sender.send(b"\0")

    def _drain_wakes(self) -> None:
        self._wake_receiver.recv(4096)

    def _stop(self, timeout_s: float) -> None:
        if self._stop_at is None:
            self._selector.unregister(self._listener)
            self._listener.close()
            for connection in list(self._connections):
                if connection.meeting is None or not self._sees_through(connection.meeting):
                    # Its going is no loss to the meeting: all of its members go.
                    connection.meeting = None
                    self._drop(connection)
        self._stop_at = time.monotonic() + wait_s(timeout_s)

    def _sees_through(self, meeting: Meeting) -> bool:
        """Whether this server's process will not end before the meeting, unless it dies."""
        return self._serving_rank is None or meeting.is_closed or meeting.has_met(self._serving_rank)

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:  # it hung up before it was accepted, or descriptors ran out: the listener stays
            return
        accepted.setblocking(False)
        strangers = [connection for connection in self._connections if connection.rank is None]
        if len(strangers) >= MAX_STRANGERS:
            self._drop(strangers[0])
        connection = _Connection(accepted, time.monotonic() + HANDSHAKE_TIMEOUT_S)
        self._connections.append(connection)
        self._selector.register(accepted, selectors.EVENT_READ, connection)
        self._send(connection, HELLO.pack(MAGIC, connection.nonce))

    def _serve(self, connection: _Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._flush(connection)
            if events & selectors.EVENT_READ:
                piece = connection.socket.recv(1 << 16)
                if not piece:
                    raise EOFError
                connection.received += piece
                self._parse(connection)
        except BlockingIOError:
            pass
        except (OSError, EOFError, ValueError) as error:
            self._drop(connection, how_connection_broke(error))

    def _parse(self, connection: _Connection) -> None:
        if connection.closing:
            connection.received.clear()
        elif connection.rank is None:
            if not MAGIC.startswith(bytes(connection.received[: len(MAGIC)])):
                raise ValueError("not a rendezvous client")
            if len(connection.received) < JOIN.size:
                return
            join = JOIN.unpack(_take(connection.received, JOIN.size))
            self._admit(connection, *join[1:])
        while connection.rank is not None and len(connection.received) >= FRAME.size:
            kind, sequence, length = FRAME.unpack_from(connection.received)
            if length > MAX_PAYLOAD_BYTES + 64:
                raise ValueError(f"sent a frame of {length} bytes")
            if len(connection.received) < FRAME.size + length:
                return
            body = _take(connection.received, FRAME.size + length)[FRAME.size :]
            self._handle(connection, kind, sequence, body)

    def _admit(
        self, connection: _Connection, nonce: bytes, rank: int, size: int, process: bytes, answer: bytes
    ) -> None:
        expected = join_proof(self._secret, connection.nonce, nonce, rank, size, process)
        if not hmac.compare_digest(answer, expected):
            connection.closing = True
            self._send(connection, WELCOME.pack(WRONG_SECRET, bytes(32)))
            return
        self._send(connection, WELCOME.pack(ACCEPTED, proof(self._secret, b"welcome", nonce, connection.nonce)))
        is_numbered = rank != ANY_RANK
        if not is_numbered:
            rank = self._free_rank()
        meeting = self._next_meeting(rank)
        objection = self._objection(meeting, rank, size, process)
        if objection:
            connection.closing = True
            self._send_frame(connection, FAILED, 0, pack_failure("refused", objection))
            return
        connection.rank, connection.process, connection.meeting = rank, process, meeting
        if not is_numbered:
            self._send_frame(connection, NUMBER, 0, RANK.pack(rank))
        meeting.join(rank, connection)
        if rank == self._serving_rank:
            for member in meeting.members.values():
                self._send_frame(member, STAYS, 0, b"")
        elif self._sees_through(meeting):
            self._send_frame(connection, STAYS, 0, b"")

    def _free_rank(self) -> int:
        """The lowest that nobody has who is connected; ``size`` when there is none."""
        taken = {connection.rank for connection in self._connections}
        return next(rank for rank in range(self.size + 1) if rank not in taken)

    def _next_meeting(self, rank: int) -> Meeting:
        if not self._meetings or not self._meetings[-1].takes(rank):
            self._meetings = [meeting for meeting in self._meetings if meeting.members]
            self._meetings.append(Meeting(self.size, self._dead, self._send_frame))
        return self._meetings[-1]

    def _objection(self, meeting: Meeting, rank: int, size: int, process: bytes) -> str | None:
        if size != self.size or rank >= self.size:
            return f"rank {rank} of {size} came to the rendezvous of a job of {self.size} ranks"
        others = [connection for connection in self._connections if connection.rank == rank]
        if rank in meeting.members or any(other.process != process for other in others):
            return (
                f"rank {rank} has already joined: a second process has the same rank number "
                "(a child process that inherited the variables of its rank?)"
            )
        return None

    def _handle(self, connection: _Connection, kind: int, sequence: int, body: bytes) -> None:
        if kind == GATHER:
            payload, timeout_s = unpack_gather(body)
            assert connection.meeting is not None
            assert connection.rank is not None
            connection.meeting.contribute(connection.rank, sequence, payload, timeout_s)
            if len(connection.meeting.members) == self.size:
                self._was_full = True
                self._begun.set()
        elif kind == LEAVE:
            self._drop(connection, LEFT_RENDEZVOUS)
        else:
            raise ValueError(f"sent a frame of unknown kind {kind}")

    def _expire(self) -> None:
        now = time.monotonic()
        for meeting in self._meetings:
            meeting.expire(now)
        for connection in list(self._connections):
            if connection.rank is None and now >= connection.expires:
                self._drop(connection)

    def _bury(self, rank: int, why: str) -> None:
        self._dead[rank] = why
        for meeting in self._meetings:
            meeting.settle()

    def _drop(self, connection: _Connection, why: str = "") -> None:
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if connection.meeting is not None and connection.rank is not None:
            if why != LEFT_RENDEZVOUS:
                self._lost[connection.rank] = why
            connection.meeting.leave(connection.rank, why)
            if connection.meeting.is_closed and not connection.meeting.members:
                self._begun.set()
                self._ended.set()

    def _send_frame(self, connection: _Connection, kind: int, sequence: int, body: bytes) -> None:
        self._send(connection, FRAME.pack(kind, sequence, len(body)) + body)

    def _send(self, connection: _Connection, data: bytes) -> None:
        connection.unsent += data
        # A broken connection is not dropped here, where a caller may be walking the members: its end is readable too.
        with contextlib.suppress(OSError):
            self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        while connection.unsent:
            try:
                sent = connection.socket.send(connection.unsent)
            except BlockingIOError:
                break
            del connection.unsent[:sent]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        self._selector.modify(connection.socket, events, connection)
        if connection.closing and not connection.unsent:
            connection.socket.shutdown(socket.SHUT_WR)


def _listen(host: str, ports: Iterable[int]) -> socket.socket:
    tried = []
    for port in ports:
        try:
            if host == "" and socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=1024)
        except OSError as error:
            tried.append(f"port {port}: {error}")
    raise TransportError(f"cannot listen on {host or 'any address'}: {'; '.join(tried)}")


def _take(buffer: bytearray, size: int) -> bytes:
    taken = bytes(buffer[:size])
    del buffer[:size]
    return taken
