"""A table's first rows, from the ``init`` of ``create_table``: each rank makes those of the keys it starts with."""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from intentpm.foundation.errors import DtypeError, ShapeError
from intentpm.runtime._native.store import Table

Rows = npt.NDArray[Any]
Init = float | int | Rows | Callable[[npt.NDArray[np.int64]], Rows]

BATCH_BYTES = 8 << 20
"""Of rows made at a time."""


def describe_init(init: Init) -> str:
    """What of ``init`` all ranks can compare, as a text."""
    if callable(init):
        return "a callable"
    if isinstance(init, np.ndarray):
        return f"array {init.shape} {init.dtype} crc32 {zlib.crc32(init.tobytes()):08x}"
    return repr(init)


def fill_table(table: Table, init: Init) -> None:
    """Gives this rank the keys whose home it is, with their initial rows.

    Raises ShapeError or DtypeError when ``init`` does not fit the table, and what a callable raises; the table is of no
    use then.
    """
    keys = table.home_keys()
    if not callable(init) and not isinstance(init, np.ndarray) and init == 0:
        table.adopt(keys, None)
        return
    row_items = int(np.prod(table.row_shape, dtype=np.int64))
    batch = max(1, BATCH_BYTES // (row_items * table.dtype.itemsize))
    for first in range(0, len(keys), batch):
        table.adopt(keys[first : first + batch], _initial_rows(table, init, keys[first : first + batch]))


def _initial_rows(table: Table, init: Init, keys: npt.NDArray[np.int64]) -> Rows:
    expected = (len(keys), *table.row_shape)
    if callable(init):
        rows = np.asarray(init(keys))
        if rows.shape != expected:
            raise ShapeError(f"table {table.name!r}: init(keys) returned shape {rows.shape}, expected {expected}")
    elif isinstance(init, np.ndarray) and init.shape == (table.num_keys, *table.row_shape):
        rows = init[keys]
    else:
        try:
            rows = np.broadcast_to(np.asarray(init), expected)
        except ValueError:
            raise ShapeError(
                f"table {table.name!r}: init has shape {np.shape(init)}, expected "
                f"{(table.num_keys, *table.row_shape)}, {table.row_shape} or a number"
            ) from None
    if not np.can_cast(rows.dtype, table.dtype, casting="same_kind") and rows.dtype.kind not in "iub":
        raise DtypeError(f"table {table.name!r}: init has dtype {rows.dtype}, the table has {table.dtype}")
    return np.ascontiguousarray(rows, dtype=table.dtype)
