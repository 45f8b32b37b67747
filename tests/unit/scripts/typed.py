"""A user's script, as ``mypy --strict`` should see it; it runs, too (``test_types.py``)."""

from typing import Any, assert_type, reveal_type

import numpy as np
import numpy.typing as npt

import intentpm
from intentpm.testing import run_ranks

Rows = npt.NDArray[Any]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def first_rows(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    return np.ones((len(keys), 4), np.float32)


def make_tables(pm: intentpm.ParameterManager) -> intentpm.Table:
    assert_type(pm.create_table("zeros", 10), intentpm.Table)
    pm.create_table("numbers", num_keys=10, row_shape=(2, 3), dtype=np.float64, init=1)
    pm.create_table("one row", 10, 4, "int32", np.arange(4))
    return pm.create_table("items", num_keys=100, row_shape=4, init=first_rows)


def access(worker: intentpm.Worker, table: intentpm.Table) -> intentpm.Future[Rows]:
    keys = np.arange(10)
    worker.intent(table, keys, worker.clock + 1, end=worker.clock + 3)
    reveal_type(worker.pull(table, keys))
    out = np.empty((10, 4), np.float32)
    assert_type(worker.pull(table, range(10), out=out), Matrix)
    worker.push(table, keys, deltas=out)
    worker.set(table, [np.int64(1), 2], [[1.0] * 4, [2.0] * 4])
    assert_type(worker.push_async(table, keys, out), intentpm.Future[None])
    assert_type(worker.set_async(table, keys, out).wait(timeout=5), None)
    assert_type(worker.pull_async(table, keys, out).result(5.0), Matrix)
    assert_type(worker.advance_clock(), int)
    worker.wait_sync(timeout=None)
    return worker.pull_async(table, keys)


def sample(pm: intentpm.ParameterManager, worker: intentpm.Worker, table: intentpm.Table) -> Rows:
    sampling: intentpm.Sampling = pm.create_sampling(table, [1.0] * table.num_keys, scheme="local", seed=2)
    prepared: intentpm.Sample = worker.prepare_sample(sampling, 5, worker.clock)
    keys, rows = worker.pull_sample(prepared, n=3)
    assert_type(keys, npt.NDArray[np.int64])
    return rows


def look(pm: intentpm.ParameterManager, table: intentpm.Table) -> intentpm.KeyReport:
    assert_type(pm.count_local(table, table.owned_keys()), int)
    assert_type(table.row_shape, tuple[int, ...])
    return pm.explain(table, 3)


def train(pm: intentpm.ParameterManager) -> float:
    table = make_tables(pm)
    with pm.worker() as worker:
        future = access(worker, table)
        reveal_type(future.result())
        total = future.result().sum() + sample(pm, worker, table).sum()
    look(pm, table)
    return float(total)


def main() -> None:
    with intentpm.init(management="adaptive", seed=1) as manager:
        assert isinstance(manager, intentpm.ParameterManager)
        train(manager)
    reveal_type(run_ranks(2, train, "sim", seed=3))


if __name__ == "__main__":
    main()
