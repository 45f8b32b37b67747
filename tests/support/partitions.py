"""Ranks that cannot reach each other, and all live: never do two groups of them both go on.

Links fail one by one, as a seed says: silently, or so that both ends see their connection break. What each rank agreed
on last (``Reforming.admit``) is noted: who goes on does so with enough of those that it was with. In the end those that
have not ended are one group, or nobody.
"""

import random
from collections.abc import Iterable
from typing import Any

from support.losses import check_too_few, may_go_on
from support.simulation import Simulation, simulate

from intentpm.foundation.errors import Error, RankLost
from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

PEER_TIMEOUT_S = 0.05
LATEST_US = 40_000.0
END_US = 1_500_000.0
Link = tuple[int, int]


class Admitting:
    """The native side of a rank's ``Reformer``: tells the partition with whom the rank is to go on."""

    def __init__(self, native: Any, partition: "Partition", rank: int) -> None:
        self._native, self._partition, self._rank = native, partition, rank

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def admit(self, *numbers: int) -> None:
        self._partition.note_admitted(self._rank, set(range(self._partition.job.size)) - set(self._native.lost()))
        self._native.admit(*numbers)


class Partition:
    """A job whose links fail: ``cuts``, (us after the one before, link, us until both ends see it or None)."""

    def __init__(self, job: Simulation, cuts: Iterable[tuple[float, Link, float | None]]) -> None:
        self.job, self.cuts = job, list(cuts)
        self.admitted = {rank: set(range(job.size)) for rank in range(job.size)}
        self.tables = job.create_table("t", 8, 1)
        for manager in job.ranks:
            assert manager.going_on is not None
            manager.going_on.reformer._native = Admitting(manager.going_on.reformer._native, self, manager.rank)

    def note_admitted(self, rank: int, left: set[int]) -> None:
        before = set().union(*(self.admitted[who] for who in left))
        assert may_go_on(before, left, set()), f"of {before}, {left} go on, and all live"
        self.admitted[rank] = left

    def run(self) -> list[int]:
        """Returns those that have gone on."""
        for manager in self.job.ranks:
            self.job.spawn(manager.rank, lambda manager=manager: self._train(manager), f"worker {manager.rank}")
            self.job.spawn(manager.rank, lambda manager=manager: self._form(manager), f"former {manager.rank}")
        self.job.spawn(0, self._cut, "cuts")
        self.job.run()
        going_on = [manager.rank for manager in self.job.ranks if not manager._engine.has_failed()]
        for rank in going_on:
            assert self.job.ranks[rank].living == going_on, f"{rank} goes on with {self.job.ranks[rank].living}"
        self.job.lose(set(range(self.job.size)) - set(going_on))
        return going_on

    def _cut(self) -> None:
        for pause_us, (one, two), notice_us in self.cuts:
            self.job.network.pause(pause_us)
            self.job.network.cut(one, two, notice_us)

    def _train(self, manager: Any) -> None:
        worker = manager.worker()
        while not self._is_over(manager):
            try:
                worker.push(self.tables[manager.rank], range(8), [[1.0]] * 8)
                worker.pull(self.tables[manager.rank], range(8))
                self.job.network.pause(2000.0)
            except RankLost:
                continue
            except Error as error:
                check_too_few(error)

    def _form(self, manager: Any) -> None:
        while not self._is_over(manager):
            if manager.going_on.reformer.is_due():
                try:
                    manager.going_on.reformer.form()
                except Error as error:
                    check_too_few(error)
            self.job.network.pause(500.0)

    def _is_over(self, manager: Any) -> bool:
        return self.job.network.now > END_US * 1e3 or manager._engine.has_failed()


def run_partition(size: int, seed: int, cuts: Iterable[tuple[float, Link, float | None]]) -> list[int]:
    config = Config(on_loss="continue", peer_timeout=PEER_TIMEOUT_S, seed=seed)
    with simulate(size, seed, config, NetworkModel.disorderly(seed), max_virtual_s=60.0) as job:
        return Partition(job, cuts).run()


def run_partition_seed(seed: int) -> list[int]:
    """Links fail anywhere: mostly those between two groups, and some others."""
    draw = random.Random(f"partition {seed}")
    size = draw.choice((2, 3, 3, 4, 4, 5, 6))
    group = set(draw.sample(range(size), draw.randint(1, size - 1)))
    links = [(one, two) for one in range(size) for two in range(one)]
    between = [link for link in links if (link[0] in group) != (link[1] in group)]
    chosen = between if draw.random() < 0.6 else draw.sample(links, draw.randint(1, len(links)))
    draw.shuffle(chosen)
    spread_us = draw.choice((0.0, 100.0, LATEST_US / len(chosen)))
    cuts = [
        (draw.uniform(0, spread_us) if at else draw.uniform(0, LATEST_US), link, draw.choice((None, 100.0, 5000.0)))
        for at, link in enumerate(chosen)
    ]
    return run_partition(size, seed, cuts)
