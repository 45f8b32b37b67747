"""A copy that is written while its release is on its way stays; intended again, it is refreshed as any."""

from typing import Any

import numpy as np
import pytest
from support.simulation import simulate

from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

LATENCY_US = 1000.0
LONG = 10**6


@pytest.mark.parametrize("clocks", [1, 2])
@pytest.mark.parametrize("management", ["adaptive", "adapm", "replicate"])
def test_it_shows_what_was_synchronised(management: Any, clocks: int) -> None:
    """Rank 0 owns a key and intends it for good; rank 1 does for some clocks, and then again."""
    config = Config(management=management, timing="immediate", seed=1)
    with simulate(2, 1, config, NetworkModel(latency_us=LATENCY_US)) as job:
        tables = job.create_table("t", 8, dtype="float64")
        workers = job.on_every_rank(lambda pm: pm.worker())
        key = tables[0].owned_keys()[:1]

        def do(rank: int, call: Any) -> Any:
            task = job.spawn(rank, lambda: call(workers[rank], tables[rank]))
            job.run()
            return task.value

        def release_and_write(worker: Any, table: Any) -> None:
            worker.intent(table, key, 0, clocks)
            worker.wait_sync()
            while worker.clock < clocks:
                worker.advance_clock()
            job.network.pause(LATENCY_US / 2)
            assert table.replica_keys().tolist() == key.tolist(), "its release has been answered already"
            worker.push(table, key, np.ones(1))
            worker.intent(table, key, clocks, 2 * clocks)
            worker.wait_sync()
            assert table.replica_keys().tolist() == key.tolist()

        do(0, lambda worker, table: (worker.intent(table, key, 0, LONG), worker.wait_sync()))
        do(1, release_and_write)
        do(0, lambda worker, table: (worker.push(table, key, np.full(1, 10.0)), worker.wait_sync()))
        do(1, lambda worker, table: worker.wait_sync())
        assert do(1, lambda worker, table: worker.pull(table, key)).tolist() == [11.0]
        assert job.ranks[0].explain(tables[0], int(key[0])).holders == (1,)
