"""A barrier beside workers that never rest: what was synchronised before it shows at every rank after it."""

import random

import numpy as np
import pytest
from support.simulation import simulate

from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

KEYS, ROUNDS, SIZE = 6, 8, 3


@pytest.mark.parametrize("hands_over", [False, True])
@pytest.mark.parametrize("comes_and_goes", [False, True])
def test_what_was_synchronised_shows(hands_over: bool, comes_and_goes: bool) -> None:
    for seed in range(30):
        _train_beside_writers(seed, hands_over, comes_and_goes)


def _train_beside_writers(seed: int, hands_over: bool, comes_and_goes: bool) -> None:
    """Each rank writes, synchronises and comes to a barrier, over and over, while another worker of it is at work.

    comes_and_goes: copies of the others' keys do; else each rank intends all keys for good.
    """
    config = Config(management="adaptive" if hands_over else "replicate", seed=seed, sync_interval=1e-6)
    trainers = [SIZE]
    with simulate(SIZE, seed, config, NetworkModel.disorderly(seed)) as job:
        if hands_over:
            job.ask_early(1)
            job.hand_over(always=True)
        tables = job.create_table("t", KEYS, 2, dtype="float64")
        workers = job.on_every_rank(lambda pm: (pm.worker(), pm.worker()))
        keys = np.arange(KEYS)

        def train(rank: int) -> None:
            worker, table = workers[rank][0], tables[rank]
            if not comes_and_goes:
                worker.intent(table, keys, 0, 10**6)
            for number in range(1, ROUNDS + 1):
                worker.push(table, keys, np.tile([1.0, 0.0], (KEYS, 1)))
                worker.wait_sync()
                job.ranks[rank].barrier()
                found = worker.pull(table, keys)[:, 0]
                assert (found >= number * SIZE).all(), f"seed {seed}, rank {rank}, barrier {number}: {found.tolist()}"

        def try_to_train(rank: int) -> None:
            try:
                train(rank)
            finally:
                trainers[0] -= 1

        def disturb(rank: int) -> None:
            worker, table = workers[rank][1], tables[rank]
            while trainers[0] == SIZE:
                if comes_and_goes:
                    worker.intent(table, keys, worker.clock + 1)
                worker.push(table, keys, np.tile([0.0, 1.0], (KEYS, 1)))
                job.network.pause(5.0)
                worker.advance_clock()

        for rank in range(SIZE):
            job.spawn(rank, lambda rank=rank: try_to_train(rank), f"rank {rank}")
            job.spawn(rank, lambda rank=rank: disturb(rank), f"disturber of rank {rank}")
        job.run()


def test_copies_that_come_during_a_barrier_show_it() -> None:
    for seed in range(60):
        _copy_during_barriers(seed)


def _copy_during_barriers(seed: int) -> None:
    """No rank holds anything when it comes to the barrier; a worker of rank 1 asks for the key meanwhile."""
    draw = random.Random(seed)
    with simulate(2, seed, Config(management="replicate", seed=seed), NetworkModel.disorderly(seed)) as job:
        tables = job.create_table("t", 64, dtype="int64")
        workers = job.on_every_rank(lambda pm: (pm.worker(), pm.worker()))
        owned = tables[0].owned_keys()[:ROUNDS]
        pauses = [(draw.uniform(0, 60), draw.uniform(0, 60)) for _ in owned]

        def write() -> None:
            for key, (pause_us, _) in zip(owned, pauses, strict=True):
                job.network.pause(pause_us)
                workers[0][0].push(tables[0], [key], [1])
                job.ranks[0].barrier()
                job.ranks[0].barrier()

        def read() -> None:
            for key in owned:
                job.ranks[1].barrier()
                assert workers[1][0].pull(tables[1], [key])[0] == 1, f"seed {seed}, key {key}"
                job.ranks[1].barrier()

        def ask() -> None:
            for key, (_, pause_us) in zip(owned, pauses, strict=True):
                job.network.pause(pause_us)
                workers[1][1].intent(tables[1], [key], workers[1][1].clock)
                job.network.pause(100.0)
                workers[1][1].advance_clock()

        job.spawn(0, write, "rank 0")
        job.spawn(1, read, "rank 1")
        job.spawn(1, ask, "rank 1, asking")
        job.run()
