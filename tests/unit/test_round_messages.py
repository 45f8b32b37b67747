"""How many messages management needs."""

import numpy as np
import pytest
from support.simulation import MESSAGE_IDS, simulate

from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

KEYS = np.arange(600)


@pytest.mark.parametrize("size", [4, 12])
def test_other_ranks_hear_of_many_relocations_at_once(size):
    """In a small job all ranks do, in a larger one the keys' home ranks."""
    with simulate(size, 2, Config(management="relocate", seed=2), NetworkModel()) as job:
        tables = job.create_table("t", len(KEYS))
        homes = np.array([tables[0].owners()[key] for key in KEYS])
        for rank in (1, 2):  # the second time, most keys come from a rank that is not their home
            worker = job.ranks[rank].worker()

            def take(worker=worker, table=tables[rank]):
                worker.intent(table, KEYS, 0, 1)
                worker.wait_sync()
                worker.advance_clock()
                worker.wait_sync()

            job.spawn(rank, take)
            job.run()
        job.settle()
        assert len(tables[2].owned_keys()) == len(KEYS)
        messages, _ = job.network.traffic()[MESSAGE_IDS["MOVED"]]
        if size == 4:
            assert messages == [2, 2, 2, 2], "one to each rank that neither gives nor takes"
        else:
            assert messages == [0, size - 2, *[0] * (size - 2)], "one to each third rank"
        for other in set(range(size)) - {2}:
            told = KEYS if size == 4 else KEYS[homes == other]
            assert (tables[other].owners()[told] == 2).all()
