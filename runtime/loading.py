"""``ParameterManager.load``: a checkpoint's rows into the tables of a job, whatever the numbers of ranks.

Each rank looks through all files, in its own share of them at every byte, and overwrites the rows of the keys whose
home it is, wherever they are by now. That is an access like any other: keys may move meanwhile.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intentpm.checkpoint.reader import WEIGHTS, Checkpoint, TableReader, open_checkpoint
from intentpm.checkpoint.storage import Location
from intentpm.foundation.errors import CheckpointError
from intentpm.runtime._native.store import Table
from intentpm.runtime.rank_file import describe_table, rows_at_once
from intentpm.runtime.worker import Worker

Said = dict[str, Any]
Exchange = Callable[[Said], list[Said]]
"""Collective: what every rank said, in rank order."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What ``ParameterManager.load`` took from a checkpoint besides rows.

    Attributes: ``path`` of the checkpoint, and its ``number``, from 1 on in its folder; ``ranks`` that saved it,
    ascending: all from 0 on, unless some had been lost; ``extra``, what each of them gave to ``save(extra=)``, and
    ``clocks``, number of the worker -> its clock; ``seed`` of the job that saved it, and ``job``, by which checkpoints
    of one job know each other.
    """

    path: Location
    number: int
    ranks: list[int]
    extra: list[Any]
    clocks: list[dict[int, int]]
    seed: int | None
    job: str


def load_together(
    path: str | os.PathLike[str],
    tables: Sequence[Table],
    rank: int,
    ranks: Sequence[int],
    worker: Worker,
    exchange: Exchange,
) -> Restored:
    """Collective, of ``ranks``. Raises CheckpointError, the same on every rank: no row was changed then, unless it says
    so."""
    opened, found = _look(path, tables, ranks.index(rank), len(ranks))
    said = exchange(found)
    for other, theirs in zip(ranks, said, strict=True):
        if "problem" in theirs:
            raise CheckpointError(f"load({str(path)!r}): rank {other}: {theirs['problem']}")
        if theirs != said[0]:
            raise CheckpointError(f"load({str(path)!r}): rank {other} found {theirs}, the first rank {said[0]}")
    assert opened is not None
    for other, theirs in zip(ranks, exchange(_load(opened, tables, worker)), strict=True):
        if theirs:
            raise CheckpointError(
                f"load({str(path)!r}): rank {other} could not read on: {theirs['problem']}: rows were overwritten in "
                "part, load again"
            )
    worker.wait_sync()
    manifest = opened.manifest
    return Restored(opened.path, opened.number, opened.ranks, opened.extra, opened.clocks, opened.seed, manifest.job)


def _look(
    path: str | os.PathLike[str], tables: Sequence[Table], place: int, size: int
) -> tuple[Checkpoint | None, Said]:
    """Opens it; looks at every byte of this rank's share of the files. Returns what there is to be said, too.

    place: of this rank among the ``size`` that share them.
    """
    try:
        opened = open_checkpoint(path, verify=False)
        for table in tables:
            check_table(opened, table)
        for part in opened.parts[place::size]:
            opened.check(part)
        for table in tables:
            opened[table.name].check()
    except (CheckpointError, OSError) as error:
        return None, {"problem": str(error)}
    except Exception as error:  # the other ranks have to hear of it, whatever it is
        return None, {"problem": repr(error)}
    loaded = [table.name for table in tables]
    return opened, {"job": opened.manifest.job, "number": opened.number, "tables": loaded}


def _load(opened: Checkpoint, tables: Sequence[Table], worker: Worker) -> Said:
    """Returns what is to be said: what keeps the rest from being read, a store that cannot be reached any more, say."""
    try:
        for table in tables:
            _load_table(opened[table.name], table, worker)
    except (CheckpointError, OSError) as error:
        return {"problem": str(error)}
    return {}


def check_table(opened: Checkpoint, table: Table) -> None:
    """Raises CheckpointError: there is no such table in it, or another one."""
    entry = opened.manifest.table(table.name)
    if entry is None:
        raise CheckpointError(f"{opened.path}: has no table {table.name!r}, but {list(opened.tables)}")
    difference = describe_table(table).differs_from(entry)
    if difference is not None:
        raise CheckpointError(f"{opened.path}: table {table.name!r} is another one: {difference}")


def _load_table(saved: TableReader, table: Table, worker: Worker) -> None:
    at_home = np.zeros(table.num_keys, np.bool_)
    at_home[table.home_keys()] = True
    for keys, columns in saved.stretches(rows_at_once(table)):
        mine = at_home[keys]
        if not mine.any():
            continue
        if table.stored_dtype is None:
            worker.set_stored(table, keys[mine], columns[WEIGHTS][mine])
            continue
        rows = np.zeros(int(mine.sum()), table.stored_dtype)
        for name, column in columns.items():
            rows[name] = column[mine]
        worker.set_stored(table, keys[mine], rows)
