"""Keys that several ranks intend all the time do not stay with the rank that came first."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.simulation import Simulation, simulate

from intentpm.bench.scenarios.management import zipf_batches
from intentpm.bench.tasks.look_ahead import look_ahead
from intentpm.runtime._native import mutations
from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

RANKS, NUM_KEYS, HOTTEST = 4, 20_000, 100
STEPS, STEP_US, APART_US, AHEAD = 4000, 150.0, 100_000.0, 64
ZIPF = {"num_keys": NUM_KEYS, "batch": 64, "steps": STEPS, "seed": 0}
SLOW = NetworkModel(latency_us=100.0, bandwidth_gbytes_per_s=0.0625, message_us=10.0)  # 500 Mbit/s


def train_one_after_the_other(management: Any) -> tuple[list[int], list[int]]:
    """Ranks begin one after the other; windows of one clock are signalled ``AHEAD`` clocks ahead.

    Returns, per rank, how many of the hottest keys it owns when rank 0 ends, and the bytes it sent from the middle of
    rank 0's steps on, when all have begun, until then.
    """
    owned: list[int] = []
    sent: list[list[int]] = []
    with simulate(RANKS, 0, Config(management=management, seed=0), SLOW) as job:
        tables = job.create_table("t", NUM_KEYS, (64,), init=1.0)
        hottest = np.random.default_rng(ZIPF["seed"]).permutation(NUM_KEYS)[:HOTTEST]

        def train(pm: Any) -> None:
            worker, table = pm.worker(), tables[pm.rank]
            job.network.pause(pm.rank * APART_US + 1)
            for step, batch in enumerate(look_ahead(worker, zipf_batches(pm.rank, table, ZIPF), AHEAD)):
                rows = worker.pull(table, batch.keys)
                job.network.pause(STEP_US)
                worker.push(table, batch.keys, rows * np.float32(-0.01))
                if pm.rank == 0 and step in (STEPS // 2, STEPS - 1):
                    sent.append([other.stats()["bytes_sent"] for other in job.ranks])
                    owned[:] = [int(np.isin(hottest, table.owned_keys()).sum()) for table in tables]
            worker.wait_sync()

        job.on_every_rank(train)
    return owned, [after - before for before, after in zip(*sent, strict=True)]


def test_contended_keys_are_spread_over_the_ranks() -> None:
    owned, sent = train_one_after_the_other("adaptive")
    assert max(owned) <= 40, f"of the {HOTTEST} hottest keys the ranks own {owned}"
    assert max(sent) <= 1.3 * np.mean(sent), f"the ranks sent {sent} bytes"


def test_without_hand_over_they_stay_with_the_first() -> None:
    owned, _ = train_one_after_the_other("adapm")
    assert max(owned) > 40, "the keys are not contended: the test above tests nothing"


def test_who_asks_first_is_not_given_what_all_others_ask_for() -> None:
    ranks = 32
    with simulate(ranks, 0, Config(management="adaptive", seed=0), NetworkModel()) as job:
        tables = job.create_table("t", 40 * ranks, (32,))
        keys = np.arange(0, 40 * ranks, 16)

        def begin(pm: Any) -> int:
            worker, table = pm.worker(), tables[pm.rank]
            worker.intent(table, np.setdiff1d(keys, table.owned_keys()), 0)
            worker.wait_sync()
            return len(np.intersect1d(keys, table.owned_keys()))

        owned = job.on_every_rank(begin)
    assert max(owned) <= len(keys) // 8, f"of {len(keys)} keys that all asked for at once the ranks own {owned}"


def test_records_that_go_astray_are_measured() -> None:
    """Rank 0 asks the keys' homes, all of which are right; what rank 1 asks of them is passed on to rank 0."""
    keys, ranks = 3000, 12
    with simulate(ranks, 0, Config(management="relocate", seed=0), NetworkModel()) as job:
        tables = job.create_table("t", keys)
        astray = [lambda owner=pm._engine.rounds.owner: owner.astray for pm in job.ranks]
        assert [share() for share in astray] == [1.0] * ranks, "until it is measured"
        for asks in (0, 1):

            def intend(asks: int = asks) -> None:
                worker = job.ranks[asks].worker()
                worker.intent(tables[asks], np.arange(keys), 0)
                worker.wait_sync()

            job.spawn(asks, intend)
            job.run()
        assert max(share() for share in astray[1:]) < 0.9
        assert astray[0]() > 0.9


# -- one hand-over -----------------------------------------------------------------------------------------------------

KEYS = np.arange(12)


@pytest.fixture
def job() -> Iterator[Simulation]:
    with simulate(3, 3, Config(management="adaptive", seed=3)) as running:
        yield running


def hold(job: Simulation, workers: list[Any], tables: list[Any], rank: int, until: int = 1000) -> None:
    def begin() -> None:
        workers[rank].intent(tables[rank], KEYS, 0, until)
        workers[rank].wait_sync()

    job.spawn(rank, begin)
    job.run()
    job.settle()


def test_the_new_owner_knows_all_holders_and_the_old_one_keeps_a_replica(job: Simulation) -> None:
    tables = job.create_table("t", len(KEYS), (4,))
    workers = job.on_every_rank(lambda pm: pm.worker())
    for rank in (0, 1):
        hold(job, workers, tables, rank)
    job.hand_over(True)
    hold(job, workers, tables, 2)
    assert (tables[2].owned_keys() == KEYS).all()
    assert [len(table.replica_keys()) for table in tables] == [len(KEYS), len(KEYS), 0]
    assert [pm.stats()["replicas_held"] for pm in job.ranks] == [len(KEYS), len(KEYS), 0]
    report = job.ranks[2].explain(tables[2], 5)
    assert report.holders == (0, 1)
    assert "the new owner serves fewer such keys" in str(job.ranks[0].explain(tables[0], 5))


def copies_after_a_write_under_way() -> np.ndarray:
    """All ranks hold the keys; one writes twice, and is given them in answer to the first. Every rank's rows [3, K].

    Messages take longer than writes wait to be collected: the second write is collected while the record of the first
    is unanswered.
    """
    with simulate(3, 3, Config(management="adaptive", seed=3), NetworkModel(latency_us=3000.0)) as job:
        tables = job.create_table("t", len(KEYS))
        workers = job.on_every_rank(lambda pm: pm.worker())
        for rank in range(3):
            hold(job, workers, tables, rank)
        writer = min(range(3), key=lambda rank: len(tables[rank].owned_keys()))
        given = tables[writer].replica_keys()
        job.hand_over(True)

        def write() -> None:
            for _ in range(2):
                workers[writer].push(tables[writer], given, np.ones(len(given), np.float32))
                job.network.pause(2500.0)

        job.spawn(writer, write)
        job.run()
        for _ in range(2):
            job.on_every_rank(lambda pm: workers[pm.rank].wait_sync())
        assert np.isin(given, tables[writer].owned_keys()).all()
        return np.stack([table.rows_here(given) for table in tables])


def test_writes_under_way_at_a_hand_over_reach_all() -> None:
    assert (copies_after_a_write_under_way() == 2).all()


def test_writes_that_are_not_spread_are_found() -> None:
    with mutations.plant("writes not spread"):
        assert (copies_after_a_write_under_way() != 2).any()


def test_a_replica_that_becomes_the_main_copy_keeps_its_row(job: Simulation) -> None:
    """Its owner's intent is over and it is offered the key: the answer brings no row, for nobody wrote meanwhile."""
    tables = job.create_table("t", len(KEYS), (1024,))
    workers = job.on_every_rank(lambda pm: pm.worker())
    hold(job, workers, tables, 0, until=1)
    hold(job, workers, tables, 1)
    spared = [pm._engine.rounds.owner.rows_spared for pm in job.ranks]
    job.spawn(0, lambda: workers[0].advance_clock())
    job.run()
    job.settle()
    assert (tables[1].owned_keys() == KEYS).all()
    assert job.ranks[0]._engine.rounds.owner.rows_spared - spared[0] == len(KEYS)
