"""Jobs of several ranks in this process, on the loopback transport: a thread and a parameter manager for each."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from intentpm.runtime.config import Config
from intentpm.runtime.manager import ParameterManager
from intentpm.transports.loopback import LoopbackNetwork

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


def run_ranks(size: int, target: Callable[[ParameterManager], Any], **options: Any) -> list[Any]:
    """What ``target(pm)`` returned on each rank. Raises the first error, or AssertionError at the deadline.

    options: of Config, the same for each rank.
    """
    network = LoopbackNetwork(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int, transport: Any) -> None:
        try:
            transport.connect(addresses, DEADLINE_S / 2)
            with ParameterManager(Config(**options), ThreadWorld(rank, size), transport) as pm:
                results[rank] = target(pm)
        except BaseException as error:
            errors.append(error)

    transports = [network.transport(rank) for rank in range(size)]
    addresses = [transport.address() for transport in transports]
    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(transports)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    if errors:
        raise errors[0]
    stuck = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
    assert not stuck, f"ranks {stuck} of {size} did not end within {DEADLINE_S:g} s"
    return results
