"""Copies that nobody intends any more are given back beside a round that is in flight, not after it."""

import numpy as np
import pytest
from support.simulation import simulate

from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

LATENCY_US = 10_000.0
LONG = 10**6


@pytest.mark.parametrize("written", [False, True])
def test_a_release_does_not_wait_for_the_round(written: bool) -> None:
    """written: its last write was queued for the next round already."""
    config = Config(management="replicate", timing="immediate", seed=1)
    with simulate(2, 1, config, NetworkModel(latency_us=LATENCY_US)) as job:
        tables = job.create_table("t", 64, dtype="float64")
        workers = job.on_every_rank(lambda pm: pm.worker())
        keys = tables[0].owned_keys()
        passing, staying = keys[::2], keys[1::2]
        worker, table, manager = workers[1], tables[1], job.ranks[1]

        def program() -> None:
            worker.intent(table, passing, 0, 1)
            worker.intent(table, staying, 0, LONG)
            worker.wait_sync()
            assert len(table.replica_keys()) == len(keys)
            rounds = manager.stats()["rounds"]
            worker.push(table, staying, np.ones(len(staying)))
            while manager.stats()["rounds"] == rounds:
                job.network.pause(100.0)
            if written:
                worker.push(table, passing, np.ones(len(passing)))
                job.network.pause(LATENCY_US / 2)  # long enough for the engine to queue it
            worker.advance_clock()
            job.network.pause(2.5 * LATENCY_US)  # a round trip, and less than the rest of the round's and one more
            assert sorted(table.replica_keys().tolist()) == staying.tolist()
            assert manager.stats()["rounds"] == rounds + 1

        task = job.spawn(1, program)
        job.run()
        assert task.value is None
        job.on_every_rank(lambda pm: pm.barrier())
        wanted = [1.0 if written else 0.0, 1.0] * len(staying)
        task = job.spawn(0, lambda: workers[0].pull(tables[0], keys))
        job.run()
        assert task.value.ravel().tolist() == wanted[: len(keys)]
