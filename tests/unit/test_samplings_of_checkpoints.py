"""Where a job that goes on from a checkpoint goes on with its samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intentpm
from intentpm.testing import run_ranks

KEYS, SEED = 1000, 5
Drawn = list[list[int]]


def draws(pm: Any, table: Any, worker: Any) -> list[int]:
    keys, _ = worker.pull_sample(worker.prepare_sample(table, 50, worker.clock))
    return [int(key) for key in keys]


def go_on(folder: Path, scheme: Any, *, load: bool, declared_first: bool = True) -> list[tuple[Drawn, Drawn]]:
    """Of each of two ranks: what two workers drew before the job loaded, and after that; it saves in the end."""

    def main(pm: Any) -> tuple[Drawn, Drawn]:
        table, workers = pm.create_table("table", KEYS, 1), [pm.worker(), pm.worker()]
        before: Drawn = []
        if declared_first:
            pm.create_sampling(table, scheme=scheme, seed=SEED)
            before = [draws(pm, table, worker) for worker in workers]
        if load:
            pm.load(folder)
        if not declared_first:
            pm.create_sampling(table, scheme=scheme, seed=SEED)
        after = [draws(pm, table, worker) for worker in workers]
        workers[0].push(table, np.arange(KEYS), np.ones((KEYS, 1), np.float32))
        pm.save(folder, keep=9)
        return before, after

    return run_ranks(2, main)


@pytest.mark.parametrize("scheme", ["naive", "preloc", "pool", "local"])
def test_a_job_that_goes_on_does_not_begin_its_samples_again(tmp_path: Path, scheme: Any) -> None:
    first = go_on(tmp_path, scheme, load=False)
    second = go_on(tmp_path, scheme, load=True)
    third = go_on(tmp_path, scheme, load=True, declared_first=False)
    for rank in range(2):
        assert second[rank][0] == first[rank][0]  # nothing else than the load makes the difference
        drawn = [*first[rank][0], *first[rank][1], *second[rank][1], *third[rank][1]]
        assert len({tuple(keys) for keys in drawn}) == len(drawn)


def test_from_one_checkpoint_it_goes_on_in_one_way(tmp_path: Path) -> None:
    go_on(tmp_path, "naive", load=False)

    def main(pm: Any) -> tuple[list[int], list[int]]:
        tables, worker = [pm.create_table(name, KEYS, 1) for name in ("table", "another")], pm.worker()
        pm.create_sampling(tables[0], seed=SEED)
        draws(pm, tables[0], worker)
        pm.load(tmp_path, ["table"])
        pm.create_sampling(tables[1], seed=SEED)
        return draws(pm, tables[0], worker), draws(pm, tables[1], worker)

    found = run_ranks(2, main)
    assert found == run_ranks(2, main)
    for declared_before, declared_after in found:
        assert declared_before == declared_after
    assert found[0] != found[1]


def test_what_was_drawn_before_a_load_counts(tmp_path: Path) -> None:
    with intentpm.init() as pm:
        table, worker = pm.create_table("table", KEYS, 1), pm.worker()
        sampling = pm.create_sampling(table, seed=SEED)
        ready = worker.prepare_sample(sampling, 10, 0)
        draws(pm, table, worker)
        pm.load(pm.save(tmp_path))
        draws(pm, table, worker)
        worker.pull_sample(ready)
        assert sampling.stats()["drawn"] == 110
        worker.close()
        del worker, ready
        assert sampling.stats()["drawn"] == 110
