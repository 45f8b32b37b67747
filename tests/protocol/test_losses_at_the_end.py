"""Ranks that die while a job with ``on_loss="continue"`` closes: the others end in order."""

import random
from typing import Any

import numpy as np
import pytest
from support.simulation import Simulation, simulate

from intentpm.foundation.errors import Error
from intentpm.runtime.config import Config

KEYS, SEEDS = 30, 60
CLOSING_US = 250.0
"""Longer than ranks take to close."""


def close_all(job: Simulation, victims: list[int], draw: random.Random) -> dict[int, Error]:
    """All ranks close, at about the same time, and the victims die meanwhile: some of their goodbyes arrive, some do
    not. Returns what close raised elsewhere.
    """
    raised: dict[int, Error] = {}
    for rank in victims:
        for peer in range(job.size):
            if peer != rank and draw.random() < 0.5:
                job.network.cut(rank, peer)
    closing = {manager.rank for manager in job.ranks} - set(victims)

    def close(manager: Any) -> None:
        job.network.pause(draw.uniform(0.0, CLOSING_US / 4))
        try:
            manager.close()
        except Error as error:
            if manager.rank in closing:
                raised[manager.rank] = error
        closing.discard(manager.rank)

    def die(rank: int) -> None:
        job.network.pause(draw.uniform(0.0, CLOSING_US))
        job.network.kill(rank)
        job.ranks[rank]._engine.fail("was killed")

    def form(manager: Any) -> None:
        while manager.rank in closing:
            manager.going_on.reformer.form()
            job.network.pause(20.0)

    for manager in job.ranks:
        job.spawn(manager.rank, lambda manager=manager: close(manager), f"closer {manager.rank}")
        if manager.rank in victims:
            job.spawn(manager.rank, lambda rank=manager.rank: die(rank), f"death of {manager.rank}")
        else:
            job.spawn(manager.rank, lambda manager=manager: form(manager), f"former {manager.rank}")
    job.run()
    return raised


@pytest.mark.parametrize(("size", "deaths"), [(2, 1), (3, 1), (4, 2)])
def test_a_rank_that_dies_while_all_close_ends_no_other(size: int, deaths: int) -> None:
    for seed in range(SEEDS):
        draw = random.Random(f"closing {size} {seed}")
        with simulate(size, seed, Config(on_loss="continue"), max_virtual_s=60.0) as job:
            job.create_table("t", KEYS, 2)
            victims = draw.sample(range(1, size), deaths)  # those that are left are always enough
            assert not close_all(job, victims, draw), f"seed {seed}"


def test_a_rank_that_dies_after_its_goodbye_is_told_to_those_that_go_on() -> None:
    """Rank 2 has said that it closes, so it serves until all do; and is killed before that."""
    with simulate(3, 1, Config(on_loss="continue"), max_virtual_s=60.0) as job:
        tables = job.create_table("t", KEYS, 2, init=3.0)
        lost = job.ranks[2]
        owned = tables[2].owned_keys()
        job.spawn(2, lambda: _close_until_killed(lost), "closer")

        def die() -> None:
            job.network.pause(CLOSING_US)
            job.network.kill(2)
            lost._engine.fail("was killed")

        def go_on(manager: Any) -> None:
            job.network.pause(2 * CLOSING_US)
            manager.going_on.reformer.form()
            worker = manager.worker()
            with pytest.raises(Error, match=r"rank 2 .* go on without it"):
                worker.pull(tables[manager.rank], np.arange(KEYS))
            assert (worker.pull(tables[manager.rank], owned) == 3.0).all()
            manager.barrier()

        job.spawn(2, die, "death")
        for manager in job.ranks[:2]:
            job.spawn(manager.rank, lambda manager=manager: go_on(manager))
        job.run()
        job.lose({2})


def _close_until_killed(manager: Any) -> None:
    with pytest.raises(Error):
        manager.close()
