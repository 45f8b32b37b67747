"""Several hosts on one machine: network namespaces on a switch of their own, nothing of it in the root namespace."""

import contextlib
import functools
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

COMMAND_TIMEOUT_S = 20


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
        """Silently loses every packet from and to this host from now on: its peers see silence, not an end."""
        _ip("-n", self.namespace, "link", "set", "eth0", "down")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise NamespaceError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@functools.cache
def why_unavailable() -> str:
    """Why ``make_hosts`` cannot work here, or "" when it can. For ``pytest.skip``."""
    if shutil.which("ip") is None:
        return "network namespaces need the ip command (iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with make_hosts(2):
            return ""
    except (NamespaceError, subprocess.TimeoutExpired) as error:
        return f"network namespaces cannot be made here: {error}"


@contextlib.contextmanager
def make_hosts(count: int) -> Iterator[list[Host]]:
    """``count`` hosts that reach each other over IPv4 and IPv6. Removed at the end, with whatever still runs in them.

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
