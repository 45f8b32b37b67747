"""Copies for one clock: asked for once, sent no refresh, given back with what was written."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.simulation import Simulation, simulate

from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

KEYS = np.arange(8)
LONG = 10**9
ONES = np.ones(len(KEYS))


class Ranks:
    """Rank 0 owns the keys and intends them for good; rank 1 fetches them for the clock it is in."""

    def __init__(self, job: Simulation) -> None:
        self.job = job
        self.tables = job.create_table("t", len(KEYS), dtype="float64")
        self.workers = job.on_every_rank(lambda pm: pm.worker())
        self.do(0, lambda worker, table: worker.intent(table, KEYS, 0, LONG))
        self.do(0, lambda worker, table: worker.wait_sync())
        job.settle()
        self.do(1, lambda worker, table: worker.intent(table, KEYS, 0, 1))
        self.pause_us(1000)

    def do(self, rank: int, call: Any) -> Any:
        task = self.job.spawn(rank, lambda: call(self.workers[rank], self.tables[rank]))
        self.job.run()
        return task.value

    def pause_us(self, duration_us: float) -> None:
        self.job.spawn(0, lambda: self.job.network.pause(duration_us))
        self.job.run()

    def rows(self, rank: int) -> list[float]:
        return list(self.do(rank, lambda worker, table: worker.pull(table, KEYS)))

    def push(self, rank: int) -> None:
        self.do(rank, lambda worker, table: worker.push(table, KEYS, ONES))


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    with simulate(2, 1, Config(management="adaptive", seed=1), NetworkModel()) as job:
        running = Ranks(job)
        assert job.ranks[1]._engine.rounds.holder.replicas_fetched == len(KEYS)
        yield running


def test_explain_says_so_and_what_was_weighed(ranks: Ranks) -> None:
    text = str(ranks.job.ranks[0].explain(ranks.tables[0], 3))
    assert "replica granted to rank 1: for one clock, others intend it too" in text
    assert "fetch once 80, replicate 112, leave remote" in text


def test_what_is_written_goes_back_with_the_release(ranks: Ranks) -> None:
    ranks.push(1)
    records = ranks.job.ranks[1].stats()["records"]
    ranks.pause_us(10_000)
    assert ranks.rows(0) == [0] * len(KEYS)
    ranks.do(1, lambda worker, table: worker.advance_clock())
    ranks.job.settle()
    assert ranks.rows(0) == [1] * len(KEYS)
    assert ranks.job.ranks[1].stats()["records"] - records == len(KEYS)
    assert ranks.job.ranks[1].stats()["replicas_held"] == 0
    assert ranks.job.ranks[0].explain(ranks.tables[0], 3).holders == ()


def test_it_is_sent_no_refresh_but_by_a_sync(ranks: Ranks) -> None:
    ranks.push(0)
    ranks.pause_us(10_000)
    assert ranks.rows(1) == [0] * len(KEYS)
    assert ranks.job.ranks[0].stats()["refreshed_rows"] == 0
    ranks.push(1)
    ranks.do(1, lambda worker, table: worker.wait_sync())
    assert ranks.rows(1) == ranks.rows(0) == [2] * len(KEYS)


def test_another_intent_makes_it_a_replica_as_any(ranks: Ranks) -> None:
    ranks.push(0)
    ranks.do(1, lambda worker, table: worker.intent(table, KEYS, 0, LONG))
    ranks.pause_us(10_000)
    assert ranks.rows(1) == [1] * len(KEYS)
    ranks.push(0)
    ranks.pause_us(10_000)
    assert ranks.rows(1) == [2] * len(KEYS)


def test_a_clock_that_takes_long_makes_it_a_replica_as_any(ranks: Ranks) -> None:
    ranks.push(0)
    ranks.push(1)
    ranks.pause_us(120_000)
    assert ranks.rows(1) == ranks.rows(0) == [2] * len(KEYS)
    ranks.push(0)
    ranks.pause_us(10_000)  # less than a fetched copy may be old
    assert ranks.rows(1) == [3] * len(KEYS)


def test_no_row_is_sent_for_that_where_nobody_has_written(ranks: Ranks) -> None:
    records = ranks.job.ranks[1].stats()["records"]
    spared = ranks.job.ranks[0]._engine.rounds.owner.rows_spared
    ranks.pause_us(1_000_000)
    assert ranks.job.ranks[1].stats()["records"] - records == len(KEYS)
    assert ranks.job.ranks[0]._engine.rounds.owner.rows_spared - spared == len(KEYS)
    ranks.push(0)
    ranks.pause_us(10_000)
    assert ranks.rows(1) == [1] * len(KEYS)


def test_tiny_rows_are_lent_where_many_would_hear_of_a_relocation() -> None:
    with simulate(8, 1, Config(management="adaptive", seed=1), NetworkModel()) as job:
        tables = job.create_table("t", 64, dtype="float16")
        worker = job.on_every_rank(lambda pm: pm.worker())[1]
        key = int(tables[0].owned_keys()[0])

        def fetch() -> None:
            worker.intent(tables[1], [key], 0, 1)
            worker.wait_sync()

        job.spawn(1, fetch)
        job.run()
        text = str(job.ranks[0].explain(tables[0], key))
    assert "replica granted to rank 1: no other rank intends it, but relocating it would cost more" in text


def test_long_clocks_make_none_a_replica_before_its_own_is_over() -> None:
    """Copies come two clocks ahead: to be asked for and given back is all that is told of them."""
    clocks, known = 12, 4  # from then on it is known how long they take
    with simulate(2, 1, Config(management="adaptive", seed=1), NetworkModel()) as job:
        tables = job.create_table("t", 200, dtype="float64")
        workers = job.on_every_rank(lambda pm: pm.worker())
        owned = tables[0].owned_keys()[: len(KEYS) * clocks]
        parts = owned.reshape(clocks, len(KEYS))
        job.spawn(0, lambda: workers[0].intent(tables[0], owned, 0, LONG))
        job.run()
        job.settle()

        def use() -> int:
            told = 0
            for clock, keys in enumerate(parts):
                workers[1].intent(tables[1], keys, clock + 2, clock + 3)
                job.network.pause(60_000)
                if clock == known:
                    told = job.ranks[1].stats()["records"]
                if clock >= 2:
                    workers[1].push(tables[1], parts[clock - 2], ONES)
                workers[1].advance_clock()
            job.network.pause(10_000)
            return job.ranks[1].stats()["records"] - told

        task = job.spawn(1, use)
        job.run()
        assert job.ranks[1].stats()["replicas_fetched"] == len(owned)
        asked, given_back = parts[known + 1 :].size, parts[known - 2 : -2].size
        assert task.value == asked + given_back
