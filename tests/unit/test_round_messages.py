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


def test_a_message_is_of_one_table_however_keys_were_signalled():
    """Keys of two tables in turn: asked for and told of in one message per table and rank, not one per key."""
    with simulate(4, 2, Config(management="relocate", seed=2), NetworkModel()) as job:
        tables = [job.create_table(name, len(KEYS)) for name in ("a", "b")]
        worker = job.ranks[1].worker()

        def take() -> None:
            for key in KEYS:
                for table in tables:
                    worker.intent(table[1], KEYS[key : key + 1], 0, 1)
            worker.wait_sync()

        job.spawn(1, take)
        job.run()
        job.settle()
        assert all(len(table[1].owned_keys()) == len(KEYS) for table in tables)
        sent = {name: job.network.traffic()[MESSAGE_IDS[name]][0] for name in ("ROUND", "ANSWER", "MOVED")}
        # The first keys are urgent, and go before the rest: two rounds with each rank at most.
        assert 6 <= sent["ROUND"][1] <= 12, "to each rank one per table and round"
        assert all(2 <= sent["ANSWER"][rank] <= 4 for rank in (0, 2, 3))
        assert all(sent["MOVED"][rank] == 4 for rank in (0, 2, 3)), "one per table to each that neither gives nor takes"
