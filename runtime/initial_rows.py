"""A table's first rows, from the ``init`` of ``create_table``: each rank makes those of the keys it starts with.

What ``init`` is, and whether its shape and dtype fit, is decided from the whole of it, before the keys are shared out:
so every rank finds the same, however many there are. Its values are looked at where they are used; the first key at
fault of all ranks is the one that every rank names.
"""

import mmap
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from intentpm.foundation.errors import ShapeError
from intentpm.runtime._native.store import Table
from intentpm.runtime.arguments import UnfitError, as_array, as_number, cast

Keys = npt.NDArray[np.int64]
Rows = npt.NDArray[Any]
Init = float | int | npt.ArrayLike | Callable[[Keys], npt.ArrayLike]

BATCH_BYTES = 8 << 20
"""Of rows made at a time."""
SHARD_KEYS = 1 << 20
"""Of a table that are looked at together: what is needed meanwhile does not grow with it."""
COMPARED_ROWS = 64
"""Of a memory map: all of it would have to be read."""


class InitialRows:
    """An ``init`` that fits a table of these measures. Raises ShapeError or DtypeError if it does not."""

    def __init__(self, init: Init, num_keys: int, row_shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> None:
        self._what, self._row_shape, self._dtype = what, row_shape, dtype
        self._make: Callable[[Keys], npt.ArrayLike] | None = None
        self._rows: Rows
        self._one_per_key = False
        if callable(init):
            self._make = init
            return
        self._rows = as_array(init, what)
        table_shape = (num_keys, *row_shape)
        if self._rows.shape == ():
            self._rows = as_number(init, dtype, what)
        elif self._rows.shape == row_shape:
            self._rows = cast(self._rows, dtype, what)
        elif self._rows.shape != table_shape:
            expected = " or ".join(dict.fromkeys((str(table_shape), str(row_shape) if row_shape else "a number")))
            raise ShapeError(f"{what} has shape {self._rows.shape}, expected {expected} (of all ranks together)")
        else:
            cast(self._rows[:0], dtype, what)
        self._one_per_key = self._rows.shape == table_shape

    @property
    def is_shared(self) -> bool:
        """Every rank has the same; a callable may return what it likes."""
        return self._make is None

    def describe(self) -> str:
        """What of it all ranks can compare."""
        if self._make is not None:
            return "a callable"
        if self._rows.shape == ():
            return str(self._rows)
        if _is_mapped(self._rows):
            some = np.linspace(0, len(self._rows) - 1, min(len(self._rows), COMPARED_ROWS)).astype(np.int64)
            return f"memory map {self._rows.shape} {self._rows.dtype} crc32 {_checksum(self._rows[some]):08x}"
        return f"array {self._rows.shape} {self._rows.dtype} crc32 {_checksum(self._rows):08x}"

    def fill(self, table: Table) -> None:
        """Gives this rank the keys whose home it is, with their rows.

        Raises what a callable raises, ShapeError or DtypeError for what it returns, and UnfitError with the first key
        at fault as its ``position``; the table is of no use then.
        """
        for begin in range(0, table.num_keys, SHARD_KEYS):
            self._fill_shard(table, table.home_keys(begin, begin + SHARD_KEYS))

    def _fill_shard(self, table: Table, keys: Keys) -> None:
        if self._make is None and self._rows.shape == () and not self._rows.tobytes().strip(b"\0"):
            table.adopt(keys, None)
            return
        row_items = int(np.prod(table.row_shape, dtype=np.int64))
        batch = max(1, BATCH_BYTES // (row_items * table.dtype.itemsize))
        for first in range(0, len(keys), batch):
            table.adopt(keys[first : first + batch], self.rows_of(keys[first : first + batch]))
            if self._one_per_key:
                _let_go(self._rows)

    def rows_of(self, keys: Keys) -> Rows:
        """The first rows of ``keys``: [K, *row_shape] of the table's dtype. Raises as ``fill``."""
        expected = (len(keys), *self._row_shape)
        if self._make is not None:
            rows = self._made(keys)
            if rows.shape != expected:
                raise ShapeError(f"{self._what}: init(keys) returned shape {rows.shape}, expected {expected}")
        elif self._one_per_key:
            rows = self._rows[keys]
        else:
            rows = np.broadcast_to(self._rows, expected)
        try:
            return np.ascontiguousarray(cast(rows, self._dtype, self._what))
        except UnfitError as error:
            key = int(keys[error.position])
            raise UnfitError(key, f"{error} (key {key})") from None

    def _made(self, keys: Keys) -> Rows:
        assert self._make is not None
        return as_array(self._make(keys.copy()), self._what)  # what it does to its argument is its own affair


def _is_mapped(array: Any) -> bool:
    return any(isinstance(link, np.memmap | mmap.mmap) for link in _bases(array))


def _bases(array: Any) -> Iterator[Any]:
    """The array, and what its memory belongs to."""
    while array is not None:
        yield array
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)


def _let_go(array: Any) -> None:
    """Of a mapped file: the pages read so far need not stay in this process, for they are in the file. One that is a
    private copy ("c") is left alone.
    """
    links = list(_bases(array))
    mapped = [link for link in links if isinstance(link, mmap.mmap)]
    if mapped and any(isinstance(link, np.memmap) and link.mode in ("r", "r+", "w+") for link in links):
        mapped[0].madvise(mmap.MADV_DONTNEED)


def _checksum(rows: Rows) -> int:
    """crc32 of the rows, copying no more than a part of them at a time."""
    step = max(1, BATCH_BYTES // max(1, rows[:1].nbytes))
    crc = 0
    for first in range(0, len(rows), step):
        crc = zlib.crc32(np.ascontiguousarray(rows[first : first + step]).reshape(-1).view(np.uint8).data, crc)
    return crc
