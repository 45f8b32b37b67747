"""How many messages management needs."""

import numpy as np
from support.simulation import MESSAGE_IDS, simulate

from intentpm.transports.sim_model import NetworkModel

KEYS = np.arange(600)


def test_home_ranks_hear_of_many_relocations_at_once():
    with simulate(4, seed=2, model=NetworkModel()) as job:
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
        assert messages == [0, 2, 0, 0], "one to each third rank"
        for home in (0, 3):
            assert (tables[home].owners()[KEYS[homes == home]] == 2).all()
