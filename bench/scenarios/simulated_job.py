"""All ranks of a job in this process, on a simulated network: what ``docs/simulation.md`` calls planning.

The runtime is the real one; time, network and threads are the simulation's. Processors cost no virtual time, except
what a task adds with ``pause_us``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from intentpm.runtime.config import Config
from intentpm.runtime.manager import ParameterManager
from intentpm.transports.sim import SimNetwork
from intentpm.transports.sim_model import NetworkModel

MAX_EVENTS = 50_000_000
MAX_VIRTUAL_S = 600.0


class SimulatedWorld:
    """The world of a simulated rank; implements ``intentpm.runtime.types.World``."""

    launcher = "sim"
    secret = b"all ranks in one process"

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.local_ranks = rank, size, size

    def allgather(self, payload: bytes, timeout_s: float) -> list[bytes]:
        raise NotImplementedError("simulated ranks are connected without bootstrap")

    def close(self) -> None:
        pass


class SimulatedJob:
    """N parameter managers and the network between them; made by ``simulated_job``."""

    def __init__(self, size: int, seed: int, config: Config, model: NetworkModel) -> None:
        self.size = size
        self.network = SimNetwork(size, seed, model, max_events=MAX_EVENTS, max_virtual_s=MAX_VIRTUAL_S)
        self.ranks = [
            ParameterManager(config, SimulatedWorld(rank, size), self.network.transport(rank)) for rank in range(size)
        ]

    @property
    def now_s(self) -> float:
        """Virtual time."""
        return float(self.network.now) * 1e-9

    def pause_us(self, duration_us: float) -> None:
        """Called by a rank's function: it computes for so long."""
        self.network.pause(duration_us)

    def on_every_rank(self, function: Callable[[ParameterManager], Any]) -> list[Any]:
        """Calls ``function(pm)`` once per rank, concurrently in virtual time; returns the values in rank order."""
        tasks = [self.network.spawn(partial(function, pm), pm.rank, f"rank {pm.rank}") for pm in self.ranks]
        self.network.run()
        return [task.value for task in tasks]

    def close(self) -> None:
        self.on_every_rank(ParameterManager.close)
        self.network.close()


@contextmanager
def simulated_job(
    size: int, config: Config | None = None, model: NetworkModel | None = None, seed: int = 0
) -> Iterator[SimulatedJob]:
    """A running job; closed in order unless the block fails. The model's default is a fast cluster network."""
    job = SimulatedJob(size, seed, config or Config(), model or NetworkModel())
    try:
        yield job
        job.close()
    except BaseException:
        for manager in job.ranks:
            manager.abort("the simulation failed")
        job.network.close()
        raise
