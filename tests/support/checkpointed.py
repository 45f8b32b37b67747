"""Tables of many kinds that checkpoints are made of, and what is in them."""

from pathlib import Path
from typing import Any

import numpy as np

import intentpm
import intentpm.checkpoint
from intentpm.testing import run_ranks

TABLES: dict[str, dict[str, Any]] = {
    "plain": {"num_keys": 57, "row_shape": (5,), "dtype": "float32"},
    "numbers": {"num_keys": 9, "row_shape": (), "dtype": "int64"},
    "halves": {"num_keys": 31, "row_shape": (2, 3), "dtype": "float16"},
    "adagrad": {"num_keys": 40, "row_shape": (7,), "dtype": "float32", "optimizer": intentpm.optim.Adagrad(lr=0.1)},
    "adam": {"num_keys": 13, "row_shape": (3,), "dtype": "float64", "optimizer": intentpm.optim.Adam(lr=0.1)},
    "rowwise": {"num_keys": 5, "row_shape": (4,), "optimizer": intentpm.optim.RowwiseAdagrad(lr=1.0)},
}  # fmt: skip


def create(pm: Any, names: Any = TABLES) -> dict[str, Any]:
    return {name: pm.create_table(name, **TABLES[name]) for name in names}


def write_something(pm: Any, tables: dict[str, Any], seed: int) -> None:
    """Every rank writes to any key."""
    draw, worker = np.random.default_rng([seed, pm.rank]), pm.worker()
    for table in tables.values():
        for _ in range(3):
            keys = draw.integers(table.num_keys, size=20)
            values = draw.integers(-9, 9, size=(20, *table.row_shape)).astype(table.dtype)
            if table.optimizer is None:
                worker.push(table, keys, values)
            else:
                worker.push_grad(table, keys, values)


def everything(pm: Any, tables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Weights and state of all keys, by "table" and "table.state"."""
    worker, found = pm.worker(), {}
    for name, table in tables.items():
        keys = np.arange(table.num_keys)
        found[name] = worker.pull(table, keys)
        if table.optimizer is not None:
            found |= {f"{name}.{state}": rows for state, rows in worker.pull_state(table, keys).items()}
    return found


def save(folder: Path, seed: int = 0, **options: Any) -> Any:
    """What a rank does that trains a little and saves."""

    def rank(pm: Any) -> tuple[Path, dict[str, np.ndarray]]:
        tables = create(pm)
        write_something(pm, tables, seed)
        path = pm.save(folder, extra={"rank": pm.rank, "seed": seed}, **options)
        pm.barrier()
        return path, everything(pm, tables)

    return rank


def load_over(folder: Path | str) -> Any:
    """What a rank does that has trained, and goes on from a checkpoint."""

    def rank(pm: Any) -> tuple[Any, dict[str, np.ndarray]]:
        tables = create(pm)
        write_something(pm, tables, 99)
        restored = pm.load(folder)
        pm.barrier()
        return restored, everything(pm, tables)

    return rank


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert found[name].tobytes() == expected[name].tobytes(), name


def read_alone(path: Path) -> dict[str, np.ndarray]:
    """As ``everything``, with NumPy alone."""
    with intentpm.checkpoint.open(path) as opened:
        found = {name: opened[name].rows() for name in opened.tables}
        for name in opened.tables:
            found |= {f"{name}.{state}": opened[name].state(state) for state in opened[name].state_names}
        return found


def save_chain(folder: Path, names: Any = TABLES) -> list[Path]:
    """By two ranks, three checkpoints: every row, changes of some, changes of one."""

    def rank(pm: Any) -> list[Path]:
        tables = create(pm, names)
        write_something(pm, tables, 1)
        pm.barrier()
        made = [pm.save(folder, incremental=True)]
        for keys in ([1, 2, 3, 4, 5], [3]):
            pm.barrier()
            pm.worker().push_grad(tables["adagrad"], keys, np.ones((len(keys), 7), np.float32))
            pm.barrier()
            made.append(pm.save(folder, incremental=True))
        return made

    made: list[Path] = run_ranks(2, rank)[0]
    return made
