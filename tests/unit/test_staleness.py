"""``stats()["staleness_ms"]`` of an owner whose news never run out."""

import numpy as np
from support.simulation import simulate

from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

KEYS = np.arange(20_000)  # more than the messages hold that may be on their way
FOR_GOOD = 1 << 40
LOAD_US, STEP_US = 200_000, 1000


def test_news_that_never_run_out_do_not_age_for_ever():
    """More rows change than the link carries: a row waits for those before it, not since the load began."""
    slow = NetworkModel(bandwidth_gbytes_per_s=0.5)
    with simulate(2, seed=1, model=slow) as job:
        tables = job.create_table("t", 20_000, (64,), init=0.0)
        workers = job.on_every_rank(lambda pm: pm.worker())

        def hold(rank):
            workers[rank].intent(tables[rank], KEYS, 0, FOR_GOOD)
            workers[rank].wait_sync()

        def load():
            for _ in range(LOAD_US // STEP_US):
                workers[0].push(tables[0], KEYS, np.ones((len(KEYS), 64), np.float32))
                job.network.pause(STEP_US)

        for rank in range(2):
            job.spawn(rank, lambda rank=rank: hold(rank))
            job.run()
        before = job.ranks[0].stats()["staleness_ms"]
        job.spawn(0, load)
        job.run()
        after = job.ranks[0].stats()["staleness_ms"]
        rows = after["rows"] - before["rows"]
        pass_ms = 256 * len(KEYS) / 0.5e9 * 1e3  # what one refresh of all takes on the link
        assert rows > 2 * len(KEYS)
        assert 0.3 * pass_ms < after["mean"] < 3 * pass_ms


def test_reads_are_counted_by_the_age_of_what_they_read():
    with simulate(2, seed=1, config=Config(management="replicate"), model=NetworkModel()) as job:
        tables = job.create_table("t", 20_000, (2,), init=0.0)
        workers = job.on_every_rank(lambda pm: pm.worker())
        others = tables[0].owned_keys()

        def hold():
            workers[1].intent(tables[1], others, 0, FOR_GOOD)
            workers[1].wait_sync()

        def use(clocks):
            """Clocks of 100 us; the last read is 3 ms after what it reads was refreshed."""
            for _ in range(clocks):
                job.network.pause(100.0)
                workers[1].advance_clock()
                workers[1].intent(tables[1], others[:1], workers[1].clock, workers[1].clock + 1)
            workers[1].pull(tables[1], others)

        job.spawn(1, hold)
        job.run()
        assert not any(job.ranks[1].stats()["age_at_read"]["ms"].values())
        job.spawn(1, lambda: use(30))
        job.run()
        ages = job.ranks[1].stats()["age_at_read"]
        reads = -(-len(others) // 251)
        assert {bound: reads for bound, reads in ages["ms"].items() if reads} == {4.0: reads}
        assert {bound: reads for bound, reads in ages["clocks"].items() if reads} == {32.0: reads}
