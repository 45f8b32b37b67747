"""Jobs of several ranks in this process: a thread and a parameter manager for each."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from intentpm.runtime.config import Config
from intentpm.runtime.manager import ParameterManager
from intentpm.transports.loopback import LoopbackNetwork
from intentpm.transports.tcp import TcpTransport

DEADLINE_S = 60.0


@dataclass
class ThreadWorld:
    """The world of a rank that is a thread."""

    rank: int
    size: int
    launcher: str = "test"
    secret: bytes = b"x" * 16

    @property
    def local_ranks(self) -> int:
        return self.size

    def close(self) -> None:
        pass


def run_ranks(
    size: int,
    target: Callable[[ParameterManager], Any],
    kind: str = "loopback",
    deadline_s: float = DEADLINE_S,
    **options: Any,
) -> list[Any]:
    """What ``target(pm)`` returned on each rank. Raises the first error, or AssertionError at the deadline.

    kind: "loopback" or "tcp" (over 127.0.0.1).
    options: of Config, the same for each rank.
    """
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int, transport: Any) -> None:
        try:
            transport.connect(addresses, deadline_s / 2)
            with ParameterManager(Config(**options), ThreadWorld(rank, size), transport) as pm:
                results[rank] = target(pm)
        except BaseException as error:
            errors.append(error)

    transports = make_transports(kind, size)
    addresses = [transport.address() for transport in transports]
    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(transports)]
    deadline = time.monotonic() + deadline_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
    stuck = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
    assert not stuck, f"ranks {stuck} of {size} did not end within {deadline_s:g} s"
    return results


def make_transports(kind: str, size: int) -> list[Any]:
    """Transports of all ranks, not connected yet."""
    if kind == "loopback":
        network = LoopbackNetwork(size)
        return [network.transport(rank) for rank in range(size)]
    assert kind == "tcp", f"ranks in one process run over loopback or tcp, not {kind}"
    return [TcpTransport(rank, size, b"x" * 16, host="127.0.0.1") for rank in range(size)]
