"""Several hosts on one machine: network namespaces on a switch of their own, nothing of it in the root namespace.

Their links may be shaped: each host sends, and receives, so many bits per second at most.
"""

import contextlib
import functools
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COMMAND_TIMEOUT_S = 20
RENDEZVOUS_PORT = 29555
QUEUE = ("burst", "256k", "latency", "200ms")
"""Of a shaped link: what goes at once, and how long a packet may wait before it is lost."""


class NamespaceError(Exception):
    """Namespaces cannot be made here; says why."""


@dataclass(frozen=True)
class Host:
    """One network namespace with an interface ``eth0`` and loopback, both up."""

    namespace: str
    address4: str
    address6: str

    @property
    def prefix(self) -> list[str]:
        """Put before a command to run it on this host."""
        return ["ip", "netns", "exec", self.namespace]

    def unplug(self) -> None:
        """Silently loses every packet from and to this host, until ``plug_in``: its peers see silence, not an end."""
        _ip("-n", self.namespace, "link", "set", "eth0", "down")

    def plug_in(self) -> None:
        """The reverse of ``unplug``, over IPv4: what was sent meanwhile is sent again."""
        _ip("-n", self.namespace, "link", "set", "eth0", "up")


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise NamespaceError(f"{' '.join(command)}: {done.stderr.strip()}")


@functools.cache
def why_unavailable(rate: str = "") -> str:
    """Why ``make_hosts`` cannot work here, or "" when it can."""
    for command in ("ip", "tc") if rate else ("ip",):
        if shutil.which(command) is None:
            return f"network namespaces need the {command} command (iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with make_hosts(2, rate):
            return ""
    except (NamespaceError, subprocess.TimeoutExpired) as error:
        return f"network namespaces cannot be made here: {error}"


@contextlib.contextmanager
def make_hosts(count: int, rate: str = "") -> Iterator[list[Host]]:
    """``count`` hosts that reach each other over IPv4 and IPv6. Removed at the end, with whatever still runs in them.

    rate: of each host's link in both directions, as tc writes it ("200mbit"); "": as fast as the kernel.
    Raises NamespaceError.
    """
    tag = uuid.uuid4().hex[:6]
    switch = f"ipm{tag}s"
    hosts = [Host(f"ipm{tag}h{index}", f"10.77.0.{index + 1}", f"fd77::{index + 1:x}") for index in range(count)]
    made: list[str] = []
    try:
        for namespace in (switch, *(host.namespace for host in hosts)):
            _ip("netns", "add", namespace)
            made.append(namespace)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for index, host in enumerate(hosts):
            _plug_in(host, switch, f"port{index}")
            for namespace, device in ((host.namespace, "eth0"), (switch, f"port{index}")) if rate else ():
                _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", "rate", rate, *QUEUE)
        yield hosts
    finally:
        for namespace in made:
            _remove(namespace)


def _plug_in(host: Host, switch: str, port: str) -> None:
    _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
    _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
    _ip("-n", host.namespace, "address", "add", f"{host.address4}/24", "dev", "eth0")
    # nodad: the address works at once instead of after a second of duplicate detection.
    with contextlib.suppress(NamespaceError):
        _ip("-n", host.namespace, "address", "add", f"{host.address6}/64", "dev", "eth0", "nodad")
    _ip("-n", host.namespace, "link", "set", "lo", "up")
    _ip("-n", host.namespace, "link", "set", "eth0", "up")


def _remove(namespace: str) -> None:
    with contextlib.suppress(subprocess.SubprocessError, NamespaceError):
        pids = subprocess.run(
            ["ip", "netns", "pids", namespace], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
        for pid in pids.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 9)
        _ip("netns", "del", namespace)


def run_on_hosts(
    hosts: Sequence[Host], argv: Sequence[str], env: Mapping[str, str], timeout_s: float, output: Any = None
) -> int:
    """Runs ``argv`` as one rank per host, which meet as torchrun's do (that needs torch), and waits for all.

    output: file that they print to, in place of this process's own.
    Returns the first exit code that is not 0, or 0; 124 when the time ran out. Whatever is left then is killed.
    """
    deadline = time.monotonic() + timeout_s
    meeting = {
        "WORLD_SIZE": str(len(hosts)), "MASTER_ADDR": hosts[0].address4, "MASTER_PORT": str(RENDEZVOUS_PORT),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # or it warns that the hosts have no names
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        ranks = []
        for rank, host in enumerate(hosts):
            own = {"RANK": str(rank), "LOCAL_RANK": "0", "INTENTPM_LAUNCHER": "torchrun"}
            process = subprocess.Popen(
                [*host.prefix, *argv], env={**env, **meeting, **own}, stdout=output, stderr=output
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            ranks.append(process)
        return _first_failure(ranks, deadline)


def _first_failure(ranks: Sequence["subprocess.Popen[bytes]"], deadline: float) -> int:
    codes = [process.poll() for process in ranks]
    while None in codes and not any(codes) and time.monotonic() < deadline:
        time.sleep(0.02)
        codes = [process.poll() for process in ranks]
    return next((code for code in codes if code), 124 if None in codes else 0)
