"""A wait_sync beside another worker of its rank that never rests shows what others had synchronised before."""

from typing import Any

import numpy as np
import pytest
from support.simulation import simulate

from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

KEYS, ROUNDS = 6, 12


@pytest.mark.parametrize("hands_over", [False, True])
@pytest.mark.parametrize("first", [0, 220])  # 243, handing over: a REFRESH missed for a record under way
def test_records_under_way_hide_nothing(first: int, hands_over: bool) -> None:
    for seed in range(first, first + 40):
        _run(seed, hands_over)


def _run(seed: int, hands_over: bool) -> None:
    config = Config(management="adaptive" if hands_over else "replicate", seed=seed, sync_interval=1e-6)
    written = np.zeros(KEYS)
    """By rank 0, in a wait_sync that has returned."""
    at_work = [True]
    with simulate(3, seed, config, NetworkModel.disorderly(seed)) as job:
        if hands_over:
            job.ask_early(1)
        tables = job.create_table("t", KEYS, 2, dtype="float64")
        workers = [job.ranks[rank].worker() for rank in (0, 1, 1, 2)]
        keys = np.arange(KEYS)

        def intend(worker: Any, table: Any) -> None:
            worker.intent(table, keys, 0, 10**6)
            worker.wait_sync()

        def write(worker: Any) -> None:
            for number in range(ROUNDS):
                worker.push(tables[0], [number % KEYS], [[1.0, 0.0]])
                worker.wait_sync()
                written[number % KEYS] += 1

        def read(worker: Any) -> None:
            for _ in range(ROUNDS):
                before = written.copy()
                worker.wait_sync()
                found = worker.pull(tables[1], keys)[:, 0]
                assert (found >= before).all(), f"seed {seed}: {found.tolist()}, was {before.tolist()} before"
            at_work[0] = False

        def disturb(rank: int, worker: Any) -> None:
            while at_work[0]:
                worker.push(tables[rank], keys, np.tile([0.0, 1.0], (KEYS, 1)))
                job.network.pause(5.0)

        for rank, worker in zip((0, 1, 2), (workers[0], workers[1], workers[3]), strict=True):
            job.spawn(rank, lambda worker=worker, rank=rank: intend(worker, tables[rank]), f"intent of rank {rank}")
        job.run()
        job.spawn(0, lambda: write(workers[0]), "writer")
        job.spawn(1, lambda: read(workers[1]), "reader")
        job.spawn(1, lambda: disturb(1, workers[2]), "disturber of rank 1")
        job.spawn(2, lambda: disturb(2, workers[3]), "disturber of rank 2")
        job.run()
