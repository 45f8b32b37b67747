"""This rank's file of a checkpoint: all its rows, table by table, weights and state in tensors of their own."""

import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from intentpm.checkpoint.manifest import TableEntry
from intentpm.checkpoint.reader import state_part, tensor_name, tensors_of
from intentpm.checkpoint.storage import Location, new_file
from intentpm.checkpoint.tensor_file import TensorFileWriter, TensorSpec
from intentpm.foundation.errors import CheckpointError
from intentpm.runtime._native.store import Table

Keys = npt.NDArray[np.int32]
Rows = npt.NDArray[Any]
PIECE_BYTES = 1 << 20
"""Of rows read and put into tables at a time."""
SAVED_BYTES = 8 << 20
"""Of rows copied out and written at a time. After each step (copying, checksum, write) a thread that saves takes the
GIL, at a tenth of the workers' weight: while it is given no core and holds it, workers wait, too. So the steps are
long: 600 times the GIL and 3.5 ms with it per GB, where pieces of 1 MiB make it 4,800 and 9.7, at the same rate."""


class RowSource(Protocol):
    """Where the rows come from that this rank writes."""

    def count(self, table: Table) -> int:
        """How many there are."""
        ...

    def pieces(self, table: Table) -> Iterator[tuple[Keys, Rows]]:
        """Each of them once: keys [K], and rows [K], of ``stored_dtype`` where the table has an optimizer.

        Both are good until the next piece.
        """
        ...


def describe_table(table: Table) -> TableEntry:
    stored, state = table.stored_dtype, {}
    if stored is not None and stored.names is not None:
        for name in stored.names[1:]:
            base, shape = stored[name].subdtype or (stored[name], ())
            state[name] = (base.name, tuple(shape))
    optimizer = None if table.optimizer is None else repr(table.optimizer)
    return TableEntry(table.name, table.num_keys, table.row_shape, table.dtype.name, optimizer, state)


def rank_file_name(rank: int) -> str:
    return f"rank-{rank:04d}.safetensors"


def write_rank_file(folder: Location, rank: int, tables: Sequence[Table], source: RowSource) -> Sequence[Any]:
    """Writes all rows of ``source``; returns the fields of a FileEntry. Raises OSError, CheckpointError."""
    name = rank_file_name(rank)
    rows = {table.name: source.count(table) for table in tables}
    specs: dict[str, TensorSpec] = {}
    for table in tables:
        specs |= tensors_of(describe_table(table), rows[table.name])
    path: Location = folder / name
    try:
        with new_file(path) as path, TensorFileWriter(path, specs) as file:
            for table in tables:
                for keys, stored in source.pieces(table):
                    for tensor, column in _columns(table, keys, stored):
                        file.append(tensor, column)
            file.finish()
    except OSError as error:
        if error.filename is None and not isinstance(error, CheckpointError):
            error.filename = os.fspath(path)
        raise
    return name, file.size_bytes, rows, file.checksums


def _columns(table: Table, keys: Keys, stored: Rows) -> Iterator[tuple[str, Rows]]:
    yield tensor_name(table.name, "keys"), keys
    if table.stored_dtype is None or stored.dtype.names is None:
        yield tensor_name(table.name, "weights"), stored
        return
    for field in stored.dtype.names:
        yield tensor_name(table.name, "weights" if field == "weights" else state_part(field)), stored[field]


def stored_row_bytes(table: Table) -> int:
    """Of a whole row, weights and state."""
    if table.stored_dtype is not None:
        return table.stored_dtype.itemsize
    return table.dtype.itemsize * int(np.prod(table.row_shape, dtype=np.int64))


def rows_at_once(table: Table, piece_bytes: int = PIECE_BYTES) -> int:
    """How many make a piece."""
    return max(1, piece_bytes // max(stored_row_bytes(table), 1))


def as_rows(table: Table, memory: npt.NDArray[np.uint8], count: int) -> Rows:
    """The first rows in ``memory``: [count], of ``stored_dtype``, or of the table's own dtype and row shape."""
    data = memory[: count * stored_row_bytes(table)]
    if table.stored_dtype is not None:
        return data.view(table.stored_dtype)
    return data.view(table.dtype).reshape(count, *table.row_shape)
