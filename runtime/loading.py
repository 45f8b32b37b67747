"""``ParameterManager.load``: a checkpoint's rows into the tables of a job, whatever the numbers of ranks.

Each rank looks through all files, in its own share of them at every byte, and overwrites the rows of the keys whose
home it is, wherever they are by now. That is an access like any other: keys may move meanwhile.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intentpm.checkpoint.reader import WEIGHTS, Checkpoint, TableReader, open_checkpoint
from intentpm.checkpoint.storage import Location
from intentpm.foundation.errors import CheckpointError, MemoryBudgetError
from intentpm.runtime._native.rank_memory import RankMemory
from intentpm.runtime._native.store import Table
from intentpm.runtime.rank_file import describe_table, rows_at_once
from intentpm.runtime.worker import Worker

Said = dict[str, Any]
Rows = npt.NDArray[Any]
Exchange = Callable[[Said], list[Said]]
"""Collective: what every rank said, in rank order."""
SHARD_KEYS = 1 << 20
"""Of a table, at a time, of which is asked whether they are at home."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What ``ParameterManager.load`` took from a checkpoint besides rows.

    Attributes: ``path`` of the checkpoint, and its ``number``, from 1 on in its folder; ``ranks`` that saved it,
    ascending: all from 0 on, unless some had been lost; ``extra``, what each of them gave to ``save(extra=)``, and
    ``clocks``, number of the worker -> its clock; ``seed`` that ``init`` of the job that saved it was given, if any;
    and ``job``, by which checkpoints of one job know each other.
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
    memory: RankMemory,
    exchange: Exchange,
) -> Restored:
    """Collective, of ``ranks``. Raises CheckpointError, the same on every rank: no row was changed then, unless it says
    so."""
    try:
        opened = _look_together(path, tables, rank, ranks, exchange, memory)
        for other, theirs in zip(ranks, exchange(_load(opened, tables, worker)), strict=True):
            if theirs:
                raise CheckpointError(
                    f"{_call(path)}: rank {other} could not read on: {theirs['problem']}: rows were overwritten in "
                    "part, load again"
                )
    finally:
        memory.keep(_call(path), 0)
    worker.wait_sync()
    manifest = opened.manifest
    return Restored(opened.path, opened.number, opened.ranks, opened.extra, opened.clocks, opened.seed, manifest.job)


def _call(path: str | os.PathLike[str]) -> str:
    return f"load({str(path)!r})"


def _look_together(
    path: str | os.PathLike[str],
    tables: Sequence[Table],
    rank: int,
    ranks: Sequence[int],
    exchange: Exchange,
    memory: RankMemory,
) -> Checkpoint:
    """All ranks have found the same, and that they can load it."""
    opened, found = _look(path, tables, ranks.index(rank), len(ranks), memory)
    said = exchange(found)
    for other, theirs in zip(ranks, said, strict=True):
        if "problem" in theirs:
            raise CheckpointError(f"{_call(path)}: rank {other}: {theirs['problem']}")
        if theirs != said[0]:
            raise CheckpointError(f"{_call(path)}: rank {other} found {theirs}, the first rank {said[0]}")
    assert opened is not None
    return opened


def _look(
    path: str | os.PathLike[str], tables: Sequence[Table], place: int, size: int, memory: RankMemory
) -> tuple[Checkpoint | None, Said]:
    """Opens it; looks at every byte of this rank's share of the files. Returns what there is to be said, too.

    place: of this rank among the ``size`` that share them.
    """
    try:
        opened = open_checkpoint(path, verify=False)
        for table in tables:
            check_table(opened, table)
        memory.keep(_call(path), max((_kept_bytes(opened, table) for table in tables), default=0))
        for part in opened.parts[place::size]:
            opened.check(part)
        for table in tables:
            opened[table.name].check()
    except (CheckpointError, MemoryBudgetError, OSError) as error:
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


def _kept_bytes(opened: Checkpoint, table: Table) -> int:
    """In memory while a table is loaded, besides a piece of it: whether a key is at home takes a byte."""
    return opened[table.name].check_bytes + table.num_keys


def _load_table(saved: TableReader, table: Table, worker: Worker) -> None:
    for keys, columns in saved.stretches(rows_at_once(table), _at_home(table)):
        worker.set_stored(table, keys, stored_rows(table, columns))


def _at_home(table: Table) -> npt.NDArray[np.bool_]:
    at_home = np.zeros(table.num_keys, np.bool_)
    for begin in range(0, table.num_keys, SHARD_KEYS):
        at_home[table.home_keys(begin, begin + SHARD_KEYS)] = True
    return at_home


def stored_rows(table: Table, columns: Mapping[str, Rows]) -> Rows:
    """As the table stores them, of what a checkpoint has of each row, by name."""
    if table.stored_dtype is None:
        return columns[WEIGHTS]
    rows = np.zeros(len(columns[WEIGHTS]), table.stored_dtype)
    for name, column in columns.items():
        rows[name] = column
    return rows
