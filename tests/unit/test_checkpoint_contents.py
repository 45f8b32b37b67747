"""What is in the files of a checkpoint is looked at before the first row of a table is changed, on every rank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpointed import create, everything, save_chain, write_something
from support.forged import Tensors, forge

import intentpm
import intentpm.checkpoint
from intentpm.foundation.errors import CheckpointError
from intentpm.testing import run_ranks

NAMES = ["plain", "adagrad"]
"""The second is the one that is forged: rows of the first would be changed before."""


def set_key(tensors: Tensors, at: int, key: int) -> None:
    tensors["adagrad.keys"][at] = key


def change_weights(tensors: Tensors, change: Callable[[Any], Any]) -> None:
    tensors["adagrad.weights"] = change(tensors["adagrad.weights"])


def without_the_last(tensors: Tensors) -> None:
    for name in tensors:
        if name.startswith("adagrad."):
            tensors[name] = tensors[name][:-1]


NOT_THOSE = "its keys of table 'adagrad' are not those"
FORGED: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "a row is missing": (without_the_last, "no file has a row of key"),
    "a key is too large": (lambda tensors: set_key(tensors, 0, 40), NOT_THOSE),
    "a key is negative": (lambda tensors: set_key(tensors, 0, -1), NOT_THOSE),
    "a key is there twice": (lambda tensors: set_key(tensors, 0, tensors["adagrad.keys"][1]), NOT_THOSE),
    "no weights": (lambda tensors: tensors.pop("adagrad.weights"), "its tensor adagrad.weights is None"),
    "no state": (lambda tensors: tensors.pop("adagrad.state.sum"), "its tensor adagrad.state.sum is None"),
    "rows of another shape": (
        lambda tensors: change_weights(tensors, lambda rows: rows[:, :3]),
        r"not float32\[\d+, 7\]",
    ),
    "fewer weights than keys": (
        lambda tensors: change_weights(tensors, lambda rows: rows[1:]),
        r"not float32\[\d+, 7\]",
    ),
    "numbers of another kind": (
        lambda tensors: change_weights(tensors, lambda rows: rows.astype(np.float64)),
        r"adagrad.weights is float64\[",
    ),
}


def refused(pm: Any, path: Path) -> str:
    """What ``load`` says; no row was changed."""
    tables = create(pm, NAMES)
    write_something(pm, tables, 2)
    pm.barrier()
    before = everything(pm, tables)
    pm.barrier()
    with pytest.raises(CheckpointError) as error:
        pm.load(path)
    pm.barrier()
    after = everything(pm, tables)
    assert all((after[name] == before[name]).all() for name in before)
    return str(error.value)


@pytest.mark.parametrize(
    ("forged", "place"),
    [(forged, 0) for forged in FORGED] + [(forged, 1) for forged in FORGED if forged != "a row is missing"],
)
def test_no_row_is_changed_by_a_load_that_fails(tmp_path: Path, forged: str, place: int) -> None:
    """place: in the chain of those that are needed, the one with every row first."""
    change, expected = FORGED[forged]
    chain = save_chain(tmp_path, NAMES)
    victim = next(file for file in sorted(chain[place].glob("*.safetensors")) if rows_in(file) > 2)
    forge(victim, change)
    told = run_ranks(3, refused_by(chain[-1]))
    assert len(set(told)) == 1, "the same on every rank"
    assert str(victim if "row is missing" not in forged else chain[-1]) in told[0]
    with pytest.raises(CheckpointError, match=expected):
        intentpm.checkpoint.verify(chain[-1])
    with pytest.raises(CheckpointError, match=expected):
        intentpm.checkpoint.open(chain[-1], verify=False)["adagrad"].rows()


def rows_in(file: Path) -> int:
    entries = intentpm.checkpoint.open(file.parent, verify=False).manifest.files
    return next(entry.rows["adagrad"] for entry in entries if entry.name == file.name)


def refused_by(path: Path) -> Callable[[Any], str]:
    return lambda pm: refused(pm, path)


def test_ranks_that_load_different_tables(tmp_path: Path) -> None:
    path = save_chain(tmp_path, NAMES)[0]

    def load(pm: Any) -> str:
        tables = create(pm, NAMES)
        with pytest.raises(CheckpointError) as error:
            pm.load(path, NAMES[: 1 + pm.rank])
        pm.barrier()
        assert not any(rows.any() for rows in everything(pm, tables).values())
        return str(error.value)

    told = run_ranks(2, load)
    assert told[0] == told[1]
    assert "rank 1 found" in told[0]


def test_what_one_rank_cannot_make_anything_of_is_told_to_all(tmp_path: Path) -> None:
    path = save_chain(tmp_path, NAMES)[0]

    def load(pm: Any) -> str:
        create(pm, NAMES)
        with pytest.raises(CheckpointError) as error:
            pm.load(path if pm.rank == 0 else 7)
        return str(error.value)

    assert all("rank 1: TypeError" in told for told in run_ranks(2, load))
