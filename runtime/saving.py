"""``ParameterManager.save``: how the ranks make one checkpoint together.

    each rank      says what it was asked, or what keeps it from taking part          all must have been asked the same
    rank 0         makes the checkpoint's folder
    each rank      writes its rows into a file there
    rank 0         puts the manifest in place, which makes it a checkpoint; removes what is no longer to be kept

After each line the ranks tell each other how it went. Who fails says so, and all raise the same error; what was there
before is as it was. Pure but for files: ``Exchange`` is whatever gathers what the ranks say.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from intentpm.checkpoint import series
from intentpm.checkpoint.manifest import FileEntry, Manifest, RankEntry, TableEntry
from intentpm.checkpoint.reader import state_part, tensor_name
from intentpm.checkpoint.tensor_file import TensorFileWriter, TensorSpec
from intentpm.foundation.errors import CheckpointError
from intentpm.runtime._native.store import Table
from intentpm.runtime.worker import Worker

Said = dict[str, Any]
Exchange = Callable[[Said], list[Said]]
"""Collective: what every rank said, in rank order."""
Rows = npt.NDArray[Any]
PIECE_BYTES = 1 << 20
"""Of rows copied and written at a time."""


class RowSource(Protocol):
    """Where the rows come from that this rank writes."""

    def count(self, table: Table) -> int:
        """How many there are."""
        ...

    def pieces(self, table: Table) -> Iterator[tuple[npt.NDArray[np.int64], Rows]]:
        """Each of them once: keys int64 [K], and rows [K], of ``stored_dtype`` where the table has an optimizer."""
        ...


@dataclass(frozen=True, slots=True)
class SaveOrder:
    """What a rank was asked to save, and what it adds of its own."""

    folder: Path
    tables: Sequence[Table]
    keep: int | None
    mine: RankEntry

    def identity(self) -> Said:
        """What must be the same on every rank."""
        return {"folder": str(self.folder), "tables": [table.name for table in self.tables], "keep": self.keep}


def describe_table(table: Table) -> TableEntry:
    stored, state = table.stored_dtype, {}
    if stored is not None and stored.names is not None:
        for name in stored.names[1:]:
            base, shape = stored[name].subdtype or (stored[name], ())
            state[name] = (base.name, tuple(shape))
    optimizer = None if table.optimizer is None else repr(table.optimizer)
    return TableEntry(table.name, table.num_keys, table.row_shape, table.dtype.name, optimizer, state)


def save_together(
    order: SaveOrder, rank: int, job: str, seed: int | None, source: RowSource, exchange: Exchange
) -> tuple[Path, str]:
    """Collective, all of it. Returns the checkpoint, and the job it is of (rank 0's ``job``).

    Raises CheckpointError, the same on every rank; what ``exchange`` raises.
    """
    where = f"save({str(order.folder)!r})"
    said = _all_well(where, exchange({"asked": order.identity(), "mine": [order.mine.clocks, order.mine.extra]}))
    for other, theirs in enumerate(said):
        if theirs["asked"] != said[0]["asked"]:
            raise CheckpointError(
                f"{where}: rank {other} was asked for {theirs['asked']}, rank 0 for {said[0]['asked']}"
            )
    ranks = [RankEntry(*theirs["mine"]) for theirs in said]
    begun = _try(lambda: {"path": str(series.begin(order.folder, job)), "job": job} if rank == 0 else {})
    told = _all_well(where, exchange(begun))[0]
    path = Path(told["path"])
    try:
        written = _try(lambda: {"file": _write_file(path, rank, order.tables, source)})
        entries = [FileEntry(*theirs["file"]) for theirs in _all_well(where, exchange(written))]
        tables = [describe_table(table) for table in order.tables]
        manifest = Manifest(told["job"], int(path.name), _version(), None, seed, tables, entries, ranks)
        _all_well(where, exchange(_try(lambda: _commit(order, path, manifest) if rank == 0 else {})))
    except CheckpointError:
        if rank == 0:
            _clear_away(path)
        raise
    return path, told["job"]


def _clear_away(path: Path) -> None:
    """What was written of a save that failed; where even that fails, the next one does it."""
    with suppress(OSError):
        series.remove(path)


def _commit(order: SaveOrder, path: Path, manifest: Manifest) -> Said:
    for table in manifest.tables:
        if manifest.rows(table.name) != table.num_keys:
            raise CheckpointError(
                f"table {table.name!r}: {manifest.rows(table.name)} rows were written, it has {table.num_keys}"
            )
    series.commit(path, manifest)
    try:
        series.prune(order.folder, order.keep)
    except OSError as error:  # the new one is there all the same
        return {"warning": f"{error}"}
    return {}


def _try(do: Callable[[], Said]) -> Said:
    """What ``do`` has to say, or what kept it from that."""
    try:
        return do()
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return {"problem": f"{name}{error.strerror}" if error.strerror else str(error)}
    except Exception as error:
        return {"problem": repr(error)}


def _all_well(where: str, said: list[Said]) -> list[Said]:
    for rank, theirs in enumerate(said):
        if "problem" in theirs:
            raise CheckpointError(f"{where}: nothing was saved, because of rank {rank}: {theirs['problem']}")
    return said


def _version() -> str:
    from importlib.metadata import version

    return version("intentpm")


def check_keep(keep: Any) -> int | None:
    """``keep`` of save. Raises CheckpointError."""
    if keep is not None and (not isinstance(keep, int) or isinstance(keep, bool) or keep < 1):
        raise CheckpointError(f"keep={keep!r}: needs a whole number of checkpoints from 1 on, or None for all")
    return keep


def plain(extra: Any) -> Any:
    """``extra`` of save, as it will be read again. Raises CheckpointError for what JSON cannot hold."""
    try:
        return json.loads(json.dumps(extra))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"extra: {error}: needs what JSON can hold") from None


# -- this rank's file --------------------------------------------------------------------------------------------------


def _write_file(folder: Path, rank: int, tables: Sequence[Table], source: RowSource) -> Sequence[Any]:
    """Writes all rows of ``source``; returns the fields of a FileEntry."""
    name = f"rank-{rank:04d}.safetensors"
    rows = {table.name: source.count(table) for table in tables}
    specs: dict[str, TensorSpec] = {}
    for table in tables:
        specs |= _specs(table, rows[table.name])
    try:
        with TensorFileWriter(folder / name, specs) as file:
            for table in tables:
                for keys, stored in source.pieces(table):
                    for tensor, column in _columns(table, keys, stored):
                        file.append(tensor, column)
            file.finish()
    except OSError as error:
        if error.filename is None and not isinstance(error, CheckpointError):
            error.filename = os.fspath(folder / name)
        raise
    return name, file.size_bytes, rows, file.checksums


def _specs(table: Table, rows: int) -> Mapping[str, TensorSpec]:
    entry = describe_table(table)
    specs = {
        tensor_name(table.name, "keys"): TensorSpec(np.dtype(np.int32), (rows,)),
        tensor_name(table.name, "weights"): TensorSpec(table.dtype, (rows, *table.row_shape)),
    }
    for name, (dtype, shape) in entry.state.items():
        specs[tensor_name(table.name, state_part(name))] = TensorSpec(np.dtype(dtype), (rows, *shape))
    return specs


def _columns(table: Table, keys: npt.NDArray[np.int64], stored: Rows) -> Iterator[tuple[str, Rows]]:
    yield tensor_name(table.name, "keys"), keys.astype(np.int32)
    if table.stored_dtype is None or stored.dtype.names is None:
        yield tensor_name(table.name, "weights"), stored
        return
    for field in stored.dtype.names:
        yield tensor_name(table.name, "weights" if field == "weights" else state_part(field)), stored[field]


class HomeRows:
    """The rows of the keys whose home this rank is, wherever they are."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._keys: dict[str, npt.NDArray[np.int64]] = {}

    def count(self, table: Table) -> int:
        self._keys[table.name] = table.home_keys()
        return len(self._keys[table.name])

    def pieces(self, table: Table) -> Iterator[tuple[npt.NDArray[np.int64], Rows]]:
        keys, at_once = self._keys[table.name], rows_at_once(table)
        for first in range(0, len(keys), at_once):
            some = keys[first : first + at_once]
            yield some, self._stored(table, some)

    def _stored(self, table: Table, keys: npt.NDArray[np.int64]) -> Rows:
        weights = self._worker.pull(table, keys)
        if table.stored_dtype is None:
            return weights
        rows = np.empty(len(keys), table.stored_dtype)
        rows["weights"] = weights
        for name, column in self._worker.pull_state(table, keys).items():
            rows[name] = column
        return rows


def rows_at_once(table: Table) -> int:
    """As many as are copied and written at a time."""
    row = table.dtype.itemsize * int(np.prod(table.row_shape, dtype=np.int64))
    stored = row if table.stored_dtype is None else table.stored_dtype.itemsize
    return max(1, PIECE_BYTES // max(stored, 1))
