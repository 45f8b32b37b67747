"""Intent coverage: the share of accesses that an intent of the rank announced, and that found their key here."""

import numpy as np
import pytest
from support.budgets import budget_of, need_of

from intentpm.testing import run_ranks

NUM_KEYS, ROW_BYTES, KEYS = 3000, 64, 251 * 4
"""KEYS: a multiple of the distance between two accesses that are looked at, so that each batch has as many of them."""


def table_and_worker(pm):
    return pm.create_table("t", NUM_KEYS, 2), pm.worker()


def sampled(pm):
    return [pm.stats()["tables"]["t"][name] for name in ("sampled", "announced", "in_time")]


def theirs(table):
    return np.setdiff1d(np.arange(NUM_KEYS), table.owned_keys())[:KEYS]


def test_accesses_count_by_whether_they_were_announced() -> None:
    def main(pm):
        table, worker = table_and_worker(pm)
        if pm.rank == 0:
            keys = theirs(table)
            assert pm.stats()["coverage"] == {"announced": None, "in_time": None}
            worker.pull(table, keys)
            worker.pull(table, table.owned_keys()[:KEYS])
            assert sampled(pm) == [8, 0, 0], "neither remote nor local accesses were announced"
            worker.intent(table, keys, worker.clock, worker.clock + 1)
            worker.wait_sync()
            worker.pull(table, keys)
            worker.push(table, keys, np.ones((KEYS, 2), np.float32))
            assert sampled(pm) == [16, 8, 8]
            assert pm.stats()["coverage"] == {"announced": 0.5, "in_time": 0.5}
            worker.advance_clock()
            worker.wait_sync()
            worker.pull(table, keys)
            assert sampled(pm) == [20, 8, 8], "the intent is over"
            worker.close()
            assert sampled(pm) == [20, 8, 8], "closed workers count"
        pm.barrier()

    run_ranks(2, main)


def test_accesses_of_single_keys_are_looked_at_as_often() -> None:
    def main(pm):
        table, worker = table_and_worker(pm)
        for key in range(503):
            worker.pull(table, [key])
        return sampled(pm)[0]

    assert run_ranks(2, main) == [3, 3]


def test_an_announced_key_that_is_not_here_is_not_in_time() -> None:
    """It is not asked for, because of the memory budget."""

    def main(pm):
        table = pm.create_table("t", NUM_KEYS, ROW_BYTES // 4)
        worker = pm.worker()
        if pm.rank == 0:
            worker.intent(table, theirs(table), 0, 10)
            worker.wait_sync()
            worker.pull(table, theirs(table))
            assert sampled(pm) == [4, 4, 0]
        pm.barrier()

    most = max(need_of(NUM_KEYS, ROW_BYTES // 4, rank, 2) for rank in range(2))
    run_ranks(2, main, memory_budget=budget_of([most]))


@pytest.mark.parametrize(("n", "config"), [(1, {}), (2, {"management": "static"})])
def test_none_where_intents_are_not_acted_on(n: int, config) -> None:
    def main(pm):
        table, worker = table_and_worker(pm)
        worker.intent(table, range(KEYS), 0, 10)
        worker.pull(table, range(KEYS))
        return pm.stats()["coverage"]

    assert run_ranks(n, main, **config) == [{"announced": None, "in_time": None}] * n
