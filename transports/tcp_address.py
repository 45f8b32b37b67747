"""Where a rank's tcp transport can be reached: choosing what to listen on, and the address the ranks exchange."""

import hashlib
import hmac
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from intentpm.foundation.errors import ConfigError, TransportError, VersionMismatchError
from intentpm.transports.interfaces import InterfaceAddress, list_interface_addresses


@dataclass(frozen=True)
class Identity:
    """Who this rank is to its peers. ``instance`` tells two processes that claim the same rank apart."""

    rank: int
    size: int
    secret: bytes
    instance: bytes
    package_version: str
    protocol_version: int


@dataclass(frozen=True)
class Candidate:
    """An address worth trying. ``host_key`` set: only ranks on that host (same network stack) can use it."""

    host: str
    port: int
    host_key: str = ""


@dataclass(frozen=True)
class RankAddress:
    """What ``TcpTransport.address()`` says."""

    rank: int
    size: int
    instance: str
    package_version: str
    protocol_version: int
    candidates: tuple[Candidate, ...]
    processes: str = ""
    """Names the process table that ``process`` is of; "": none."""
    process: int = 0

    def is_seen_by(self, processes: str) -> bool:
        """By this process, whose table that is, and which is another."""
        return processes != "" and self.processes == processes and self.process != os.getpid()


def host_key() -> str:
    """Equal for two processes exactly if they share loopback: same kernel, same network namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/net').st_ino}"
    except OSError:
        return socket.gethostname()


def encode_address(address: RankAddress, secret: bytes) -> bytes:
    """Signed with the job secret, so that a rank of another job is found out before any connection is tried."""
    text = json.dumps(asdict(address), sort_keys=True).encode()
    return _signature(text, secret) + text


def _signature(text: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, b"intentpm address " + text, "sha256")


def decode_address(payload: bytes, rank: int, me: Identity) -> RankAddress:
    """Reads what rank ``rank`` sent.

    Raises TransportError (not an address of ``rank`` in this job, or another secret) or VersionMismatchError.
    """
    signature, text = payload[: hashlib.sha256().digest_size], payload[hashlib.sha256().digest_size :]
    try:
        fields = json.loads(text)
        fields["candidates"] = tuple(Candidate(**candidate) for candidate in fields["candidates"])
        address = RankAddress(**fields)
    except (ValueError, TypeError, KeyError):
        raise TransportError(
            f"rank {me.rank}: what rank {rank} sent as its address is not one of the tcp transport: "
            "all ranks need the same transport and version"
        ) from None
    check_versions(me, rank, address.package_version, address.protocol_version)
    if not hmac.compare_digest(signature, _signature(text, me.secret)):
        raise TransportError(f"rank {me.rank}: rank {rank} has another job secret: start all ranks with the same one")
    if (address.rank, address.size) != (rank, me.size):
        raise TransportError(
            f"rank {me.rank} of {me.size}: the address of rank {rank} says it is rank {address.rank} of {address.size}"
        )
    return address


def check_versions(me: Identity, rank: int, package_version: str, protocol_version: int) -> None:
    """Raises VersionMismatchError unless rank ``rank`` runs what this rank runs."""
    if (package_version, protocol_version) == (me.package_version, me.protocol_version):
        return
    raise VersionMismatchError(
        f"rank {rank} runs intentpm {package_version} (tcp protocol {protocol_version}), rank {me.rank} runs "
        f"{me.package_version} (tcp protocol {me.protocol_version}): install the same version on every host"
    )


def open_listeners(host: str | None, port: int) -> tuple[list[socket.socket], tuple[Candidate, ...]]:
    """Listens where ``host`` (address, host name or interface name; None: everywhere) and ``port`` (0: free one) say.

    Returns the listening sockets and the candidates a peer should try, best first.
    Raises TransportError: port taken, or no such host or interface here.
    """
    if host is None:
        listener = _listen_everywhere(port)
        return [listener], _default_candidates(listener)
    return _listen_on(_resolve(host), port)


def _listen_on(hosts: list[str], port: int) -> tuple[list[socket.socket], tuple[Candidate, ...]]:
    listeners: list[socket.socket] = []
    try:
        for address in hosts:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listeners.append(_listen(family, address, port))
    except TransportError:
        for listener in listeners:
            listener.close()
        raise
    pairs = zip(hosts, listeners, strict=True)
    return listeners, tuple(Candidate(_without_scope(host), bound.getsockname()[1]) for host, bound in pairs)


def _without_scope(host: str) -> str:
    return host.partition("%")[0]


def _resolve(host: str) -> list[str]:
    known = list_interface_addresses()
    named = [known_address.address for known_address in known if known_address.interface == host]
    routable = [address for address in named if not address.startswith("fe80:")]
    if routable:
        return routable
    try:
        return [str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])]
    except (OSError, UnicodeError):
        names = ", ".join(sorted({known_address.interface for known_address in known}))
        raise TransportError(f"host={host!r}: no address or interface of that name here; interfaces: {names}") from None


def _listen_everywhere(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return _listen(socket.AF_INET6, "::", port)
    return _listen(socket.AF_INET, "0.0.0.0", port)


def _listen(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Lets a restarted job reuse its port at once; Linux still refuses a port somebody listens on.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        listener.bind(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4])
        listener.listen(1024)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise TransportError(_explain_bind_error(host, port, error)) from error
    return listener


def _explain_bind_error(host: str, port: int, error: OSError) -> str:
    reason = f"cannot listen on {host} port {port}: {error.strerror}."
    if port:
        return f"{reason} Choose another port; each rank of one host needs its own, and 0 takes any free one"
    return f"{reason} host must be an address or interface of this machine"


def _default_candidates(listener: socket.socket) -> tuple[Candidate, ...]:
    port = listener.getsockname()[1]
    dual = listener.family == socket.AF_INET6
    here = host_key()
    candidates = [Candidate("127.0.0.1", port, here)]
    if dual:
        candidates.append(Candidate("::1", port, here))
    public = [found.address for found in list_interface_addresses() if _is_public(found, dual)]
    candidates += [Candidate(address, port) for address in public]
    return tuple(candidates)


def _is_public(address: InterfaceAddress, dual: bool) -> bool:
    """Reachable from other hosts as it stands: link-local addresses mean nothing without the sender's interface."""
    if address.is_loopback or address.address.startswith("fe80:"):
        return False
    return dual or not address.is_ipv6


def check_secret(secret: bytes) -> bytes:
    """Raises ConfigError unless ``secret`` is at least 16 bytes."""
    if not isinstance(secret, bytes | bytearray | memoryview) or len(secret) < 16:
        raise ConfigError("the job secret needs at least 16 bytes: leave it to the launcher, or use os.urandom(32)")
    return bytes(secret)
