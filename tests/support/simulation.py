"""``simulate``: all ranks of a job in this process, on the ``sim`` transport.

    with simulate(size=4, seed=7) as job:
        tables = job.create_table("t", num_keys=10, row_shape=2)       # one Table per rank
        job.on_every_rank(lambda rank: ...)                            # blocking calls, one task per rank
        job.spawn(0, function); job.run()                              # or any tasks
        job.settle(); job.checker.check_quiet()

A task may make any call of the API: while it waits, the network and the other tasks run, in the order the seed gives.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from intentpm.runtime.checks import Checker
from intentpm.runtime.config import Config
from intentpm.runtime.manager import ParameterManager
from intentpm.testing.in_process_world import InProcessWorld
from intentpm.transports.sim import SimNetwork
from intentpm.transports.sim_model import NetworkModel

# To read histories by; runtime/_native/messages.pxd.
MESSAGE_NAMES = {
    1: "ACCESS", 2: "REPLY", 3: "COLLECT", 4: "RESULT", 5: "PING", 6: "PONG", 7: "LEAVE", 8: "ABORT", 9: "SYNC",
    10: "SYNCED", 11: "EXPLAIN", 12: "EXPLAINED", 13: "ROLL_CALL", 14: "ABSENT", 15: "SIDE",
    22: "REFORM", 16: "ROUND", 17: "ANSWER", 18: "REFRESH", 19: "REFRESHED", 20: "OFFER", 21: "MOVED",
}  # fmt: skip
MESSAGE_IDS = {name: message_id for message_id, name in MESSAGE_NAMES.items()}


class Simulation:
    """N ranks: their managers, the network between them, and a checker of the invariants."""

    def __init__(self, size: int, seed: int, config: Config, model: NetworkModel | None, **budget: Any) -> None:
        self.size = size
        self.seed = seed
        self.network = SimNetwork(size, seed, model, **budget)
        self.ranks = [
            ParameterManager(config, InProcessWorld(rank, size, "sim"), self.network.transport(rank))
            for rank in range(size)
        ]
        self.checker = Checker(self.ranks)

    def ask_early(self, records: int) -> None:
        """From so many new keys of one owner on, a rank asks for them while it goes on counting its intents."""
        for manager in self.ranks:
            manager._engine.rounds.holder.early_records = records

    def hand_over(self, always: bool) -> None:
        """always: contended keys go to whoever asks, whatever the loads of the two ranks."""
        for manager in self.ranks:
            manager._engine.rounds.owner.hand_over.always = always

    def gather(self, gathering_us: float) -> None:
        """Writes to replicas in use are told of so much later, whatever rounds take."""
        for manager in self.ranks:
            manager._engine.rounds.writes.gathering_set = True
            manager._engine.rounds.writes.gathering_ns = int(1000 * gathering_us)

    def trim(self) -> None:
        """What a barrier does with slots that are no longer needed, however few."""
        for manager in self.ranks:
            manager._engine.trim(1)

    def spawn(self, rank: int, function: Callable[[], Any], name: str = "") -> Any:
        """A task of ``rank``; it runs when ``run`` does."""
        return self.network.spawn(function, rank, name or f"rank {rank}")

    def run(self) -> None:
        """Until every task has ended (or is parked). Raises what a task raised."""
        self.network.run()

    def settle(self) -> None:
        """``run``, then until nothing is under way."""
        self.network.settle()

    def on_every_rank(self, function: Callable[[ParameterManager], Any]) -> list[Any]:
        """Calls ``function`` once per rank, concurrently; returns the values in rank order."""
        tasks = [self.spawn(manager.rank, lambda manager=manager: function(manager)) for manager in self.ranks]
        self.run()
        return [task.value for task in tasks]

    def create_table(self, name: str, num_keys: int, row_shape: Any = (), **options: Any) -> list[Any]:
        """Collective on all ranks; one Table per rank."""
        return self.on_every_rank(lambda manager: manager.create_table(name, num_keys, row_shape, **options))

    def lose(self, ranks: set[int]) -> None:
        """They are dead: what follows is for the others."""
        for manager in self.ranks:
            if manager.rank in ranks:
                manager.abort("was killed")
        self.ranks = [manager for manager in self.ranks if manager.rank not in ranks]
        self.checker = Checker(self.ranks)

    def history(self) -> str:
        """The last events, one a line."""
        return "\n".join(self.network.history(MESSAGE_NAMES))

    def close(self) -> None:
        """Leaves in order, on all ranks; then all memory given to the transport must have come back."""
        self.on_every_rank(ParameterManager.close)
        self.network.close()
        assert self.network.allocated_bytes == 0, f"{self.network.allocated_bytes} B of message memory never released"

    def abort(self) -> None:
        """After a failure: lets go of everything without waiting for anybody."""
        for manager in self.ranks:
            manager.abort("the simulation failed")
        self.network.close()


@contextmanager
def simulate(
    size: int, seed: int, config: Config | None = None, model: NetworkModel | None = None, **budget: Any
) -> Iterator[Simulation]:
    """A running job, closed in order at the end. model: by default drawn from the seed. budget: of SimNetwork."""
    job = Simulation(size, seed, config or Config(), model or NetworkModel.disorderly(seed), **budget)
    try:
        yield job
        job.close()
    except BaseException as failure:
        failure.add_note(f"simulation seed {seed}, {size} ranks; the last events:\n{job.history()[-3000:]}")
        job.abort()
        raise
