"""Connects the ranks of a job over tcp: every rank dials the lower ranks and is dialled by the higher ones.

Guarantees
    * ``connect_ranks`` ends within its deadline, with one authenticated connection per peer or with an error that names
      the ranks missing and what was tried. Strangers (port scans, garbage, silence, wrong secret) cost nothing but a
      line in that error.
    * A rank that died is noticed early: when nothing listens any more at any of its addresses for ``gone_after_s``.
Assumptions
    * The addresses were exchanged after every rank had opened its listeners; a rank listens until it is connected to
      all.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from intentpm.foundation.errors import TransportError, VersionMismatchError
from intentpm.foundation.losses import STOPPED_LISTENING
from intentpm.transports.handshake import StrangerError, convince, greet, judge, receive_greeting
from intentpm.transports.tcp_address import Candidate, Identity, RankAddress, host_key

HANDSHAKE_TIMEOUT_S = 5.0
CANDIDATE_TIMEOUT_S = 3.0
CANDIDATE_STAGGER_S = 0.1
MOST_KEEPALIVE_S, MOST_USER_TIMEOUT_MS = 32_767, 2**31 - 1  # what the kernel takes
MAX_STRANGERS = 64
"""Connections in handshake beyond one per rank; the oldest makes room for the next."""


@dataclass
class _SocketStream:
    """A non-blocking socket as the handshake's Stream."""

    sock: socket.socket

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self, size_bytes: int) -> bytes:
        received = bytearray()
        while len(received) < size_bytes:
            part = await asyncio.get_running_loop().sock_recv(self.sock, size_bytes - len(received))
            if not part:
                raise StrangerError("it closed the connection during the handshake")
            received += part
        return bytes(received)


@dataclass
class _Dial:
    """One rank being dialled."""

    target: RankAddress
    refused_since: float | None = None
    proving: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held from proof to verdict, so that at most one connection is ever accepted over there."""
    proven: bool = False


class _Connector:
    """State of one ``connect_ranks`` call; lives on one event loop."""

    def __init__(
        self, me: Identity, listeners: Sequence[socket.socket], addresses: Sequence[RankAddress], gone_after_s: float
    ) -> None:
        self.me = me
        self.listeners = listeners
        self.addresses = addresses
        self.gone_after_s = gone_after_s
        self.instances = {a.rank: bytes.fromhex(a.instance) for a in addresses if a.rank != me.rank}
        self.connected: dict[int, socket.socket] = {}
        self.opened: set[socket.socket] = set()
        """Every socket not closed yet; what is not in ``connected`` at the end goes."""
        self.outcomes: dict[int, dict[str, str]] = {rank: {} for rank in self.instances}
        self.strangers: deque[str] = deque(maxlen=8)
        self.guests: deque[asyncio.Task[None]] = deque()
        self.complete = asyncio.Event()
        self.here = host_key()

    async def run(self, timeout_s: float) -> dict[int, socket.socket]:
        try:
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as tasks:
                workers = [tasks.create_task(self.dial(self.addresses[rank])) for rank in range(self.me.rank)]
                workers += [tasks.create_task(self.accept(listener, tasks)) for listener in self.listeners]
                workers += [tasks.create_task(self.watch_for_death())]
                await self.complete.wait()
                for task in (*workers, *self.guests):
                    task.cancel()
            self.opened -= set(self.connected.values())
        except TimeoutError:
            raise TransportError(self.explain(f"within {timeout_s:g} s")) from None
        except BaseExceptionGroup as group:
            raise _first_cause(group) from None
        finally:
            for sock in self.opened:
                sock.close()
        return self.connected

    def discard(self, sock: socket.socket) -> None:
        sock.close()
        self.opened.discard(sock)

    def add(self, rank: int, sock: socket.socket) -> None:
        # The same process dialling again has given up its earlier connection: the newer one counts.
        replaced = self.connected.pop(rank, None)
        if replaced is not None:
            self.discard(replaced)
        self.connected[rank] = sock
        if len(self.connected) == len(self.instances):
            self.complete.set()

    # -- dialling ------------------------------------------------------------------------------------------------------

    async def dial(self, target: RankAddress) -> None:
        """Tries all candidates of ``target`` again and again until one is connected or the deadline cancels this."""
        dial = _Dial(target)
        pause_s = 0.05
        while True:
            sock = await self.dial_candidates(dial)
            if sock is not None:
                self.add(target.rank, sock)
                return
            self.check_gone(dial)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    async def dial_candidates(self, dial: _Dial) -> socket.socket | None:
        """All candidates side by side, each a little later than the one before; the first that fits wins."""
        attempts = [
            asyncio.ensure_future(self.attempt(dial, candidate, index * CANDIDATE_STAGGER_S))
            for index, candidate in enumerate(self.usable(dial.target))
        ]
        try:
            for finished in asyncio.as_completed(attempts):
                sock = await finished
                if sock is not None:
                    return sock
            return None
        finally:
            for attempt in attempts:
                attempt.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)

    def usable(self, target: RankAddress) -> list[Candidate]:
        return [candidate for candidate in target.candidates if candidate.host_key in ("", self.here)]

    async def attempt(self, dial: _Dial, candidate: Candidate, delay_s: float) -> socket.socket | None:
        await asyncio.sleep(delay_s)
        target = dial.target
        outcome = self.outcomes[target.rank]
        name = f"{candidate.host} port {candidate.port}"
        outcome[name] = _NO_ANSWER
        try:
            sock = await _open(candidate)
        except (OSError, TimeoutError) as error:
            outcome[name] = _describe(error, _NO_ANSWER)
            return None
        self.opened.add(sock)
        outcome[name] = _SILENT
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                stream = _SocketStream(sock)
                hellos = await greet(stream, self.me, target.rank, self.instances[target.rank])
                async with dial.proving:
                    if dial.proven:
                        raise StrangerError("another of its addresses was faster")
                    await convince(stream, self.me, *hellos)
                    dial.proven = True
            return sock
        except TransportError:  # an OSError too, but not the network's: the ranks do not fit
            raise
        except (OSError, TimeoutError, StrangerError) as error:
            outcome[name] = _describe(error, _SILENT)
        except asyncio.CancelledError:
            self.discard(sock)
            raise
        self.discard(sock)
        return None

    def check_gone(self, dial: _Dial) -> None:
        """Raises TransportError when ``target`` has refused at every address for too long: its process is dead."""
        outcomes = set(self.outcomes[dial.target.rank].values())
        if _REFUSED not in outcomes or outcomes & _NOT_DEAD:
            dial.refused_since = None
            return
        now = time.monotonic()
        dial.refused_since = dial.refused_since or now
        if now - dial.refused_since >= self.gone_after_s:
            raise TransportError(f"rank {dial.target.rank} {STOPPED_LISTENING}; {self.explain('')}")

    # -- being dialled -------------------------------------------------------------------------------------------------

    async def accept(self, listener: socket.socket, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, peer = await loop.sock_accept(listener)
            except OSError:
                # The stranger hung up before it was accepted, or descriptors are short: neither ends the job.
                await asyncio.sleep(0.01)
                continue
            self.opened.add(sock)
            sock.setblocking(False)
            self.make_room()
            guest = tasks.create_task(self.welcome(sock, _peer_name(peer)))
            # Not in welcome(): a task cancelled before its first step never runs.
            guest.add_done_callback(partial(self.show_out, sock))
            self.guests.append(guest)

    def show_out(self, sock: socket.socket, _guest: object) -> None:
        if sock not in self.connected.values():
            self.discard(sock)

    def make_room(self) -> None:
        self.guests = deque(task for task in self.guests if not task.done())
        while len(self.guests) >= MAX_STRANGERS + self.me.size:
            self.guests.popleft().cancel()

    async def welcome(self, sock: socket.socket, name: str) -> None:
        """Handshake with whoever dialled; only a rank of the job whose configuration does not fit ends the job."""
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                stream = _SocketStream(sock)
                theirs, mine = await receive_greeting(stream, self.me)
                rank = await judge(stream, self.me, theirs, mine, self.expected())
            self.add(rank, sock)
        except TransportError:  # an OSError too, but not the network's: the ranks do not fit
            raise
        except (OSError, TimeoutError, StrangerError) as error:
            self.strangers.append(f"{name}: {_describe(error, 'it said nothing')}")

    def expected(self) -> dict[int, bytes]:
        return {rank: instance for rank, instance in self.instances.items() if rank > self.me.rank}

    # -- who is missing ------------------------------------------------------------------------------------------------

    async def watch_for_death(self) -> None:
        """Knocks at the listeners of ranks that have not dialled: while alive, they listen until we are connected."""
        knocks = {rank: _Dial(self.addresses[rank]) for rank in self.expected()}
        await asyncio.sleep(self.gone_after_s / 4)
        while True:
            for rank, dial in knocks.items():
                if rank not in self.connected:
                    await self.knock(dial)
                    if rank not in self.connected:
                        self.check_gone(dial)
            await asyncio.sleep(max(0.05, self.gone_after_s / 8))

    async def knock(self, dial: _Dial) -> None:
        outcome = self.outcomes[dial.target.rank]
        for candidate in self.usable(dial.target):
            name = f"{candidate.host} port {candidate.port}"
            try:
                (await _open(candidate)).close()
                outcome[name] = _WAITED_FOR
            except (OSError, TimeoutError) as error:
                outcome[name] = _describe(error, _NO_ANSWER)

    def explain(self, what: str) -> str:
        missing = sorted(set(self.instances) - set(self.connected))
        lines = [f"rank {self.me.rank} of {self.me.size} is not connected to rank {_join(missing)} {what}".rstrip()]
        for rank in missing[:8]:
            tried = ", ".join(f"{name}: {outcome}" for name, outcome in self.outcomes[rank].items())
            lines.append(f"rank {rank}: {tried or 'has not dialled us'}")
        if self.strangers:
            lines.append("turned away: " + ", ".join(self.strangers))
        return "; ".join(lines)


_REFUSED = "refused"
_NO_ANSWER = "no answer"
_SILENT = "connected, but nothing answered the handshake"
_WAITED_FOR = "listens, but has not dialled us"
_NOT_DEAD = {_NO_ANSWER, _SILENT, _WAITED_FOR}


def _join(ranks: Iterable[int]) -> str:
    return ", ".join(map(str, ranks))


def _describe(error: BaseException, timed_out: str) -> str:
    if isinstance(error, ConnectionRefusedError):
        return _REFUSED
    if isinstance(error, TimeoutError):
        return timed_out
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


def _peer_name(peer: tuple[str, int]) -> str:
    return f"{peer[0].removeprefix('::ffff:')} port {peer[1]}"


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show: one of ours if there is one."""
    leaves = [_first_cause(error) if isinstance(error, BaseExceptionGroup) else error for error in group.exceptions]
    ours = [error for error in leaves if isinstance(error, TransportError | VersionMismatchError)]
    return (ours or leaves)[0]


async def _open(candidate: Candidate) -> socket.socket:
    family = socket.AF_INET6 if ":" in candidate.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        async with asyncio.timeout(CANDIDATE_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(sock, (candidate.host, candidate.port))
        return sock
    except BaseException:
        sock.close()
        raise


def connect_ranks(
    me: Identity,
    listeners: Sequence[socket.socket],
    addresses: Sequence[RankAddress],
    timeout_s: float,
    gone_after_s: float,
) -> dict[int, socket.socket]:
    """Connects this rank to all others. Closes nothing but its own failures; the listeners stay the caller's.

    Returns: non-blocking sockets by rank.
    Raises
        TransportError: not all ranks connected in ``timeout_s``, or one is dead; names them and what was tried.
        VersionMismatchError: a rank with the job's secret runs another version.
    Threads: any; blocks its caller without holding the GIL.
    """
    if me.size == 1:
        return {}
    return _run(_Connector(me, listeners, addresses, gone_after_s), timeout_s)


def _run(connector: _Connector, timeout_s: float) -> dict[int, socket.socket]:
    if not _inside_event_loop():
        return asyncio.run(connector.run(timeout_s))
    # A notebook's thread already runs a loop, which cannot be nested: use a thread of our own.
    result: list[dict[int, socket.socket]] = []
    failure: list[BaseException] = []

    def connect() -> None:
        try:
            result.append(asyncio.run(connector.run(timeout_s)))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=connect, name="intentpm-connect")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def _inside_event_loop() -> bool:
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        return True
    return False


def set_data_path_options(sock: socket.socket, peer_timeout_s: float) -> None:
    """No delay for small messages; an unreachable peer breaks the connection within about ``peer_timeout_s``."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probe_s = min(max(1, int(peer_timeout_s / 3)), MOST_KEEPALIVE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    user_timeout_ms = min(max(1, int(peer_timeout_s * 1000)), MOST_USER_TIMEOUT_MS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)
