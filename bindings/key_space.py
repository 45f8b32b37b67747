"""One key space whose values have different lengths, as one table per length.

Keys that follow each other and are of one length are a *run*. A model has few: its dense layers, then its embeddings.
So a key is found by a binary search among the runs; there is nothing per key.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intentpm.foundation.errors import DtypeError, KeyRangeError, ShapeError
from intentpm.runtime.arguments import as_array, whole_number

Integers = npt.NDArray[np.int64]

MAX_LENGTHS = 4096
"""A job has no more tables."""


@dataclass(frozen=True, slots=True)
class Part:
    """Of the keys of a call, those of one table."""

    table: int
    rows: Integers
    """[k], in the table."""
    positions: Integers | None
    """[k] in the call; None: of all keys of the call."""


class KeySpace:
    """Where the keys 0 to ``num_keys`` - 1 are. ``lengths``: the distinct lengths, rising; table t has values of
    ``lengths[t]`` floats, ``rows[t]`` of them. Immutable; any thread.
    """

    def __init__(self, num_keys: int, value_lengths: Any) -> None:
        """value_lengths: a whole number > 0, or one for each key (array or tensor [num_keys] of whole numbers).

        Raises ShapeError, DtypeError.
        """
        self.num_keys = num_keys
        per_key = _lengths(num_keys, value_lengths)
        self._starts = np.flatnonzero(np.diff(per_key, prepend=-1)).astype(np.int64)
        self._run_lengths = per_key[self._starts]
        counts = np.diff(self._starts, append=num_keys)
        self.lengths, tables = np.unique(self._run_lengths, return_inverse=True)
        if len(self.lengths) > MAX_LENGTHS:
            raise ShapeError(f"value_lengths has {len(self.lengths)} different lengths: at most {MAX_LENGTHS} work")
        self.rows = np.bincount(tables, weights=counts).astype(np.int64)
        self._tables = tables.astype(np.int64)
        self._is_one_run = len(self._starts) == 1
        self._start_list, self._table_list = self._starts.tolist(), self._tables.tolist()
        self._shifts = self._starts - _first_rows(self._tables, counts, self.rows)

    @property
    def is_uniform(self) -> bool:
        return len(self.lengths) == 1

    def check(self, keys: Integers) -> None:
        """Raises KeyRangeError."""
        if keys.size and not (keys.min() >= 0 and keys.max() < self.num_keys):
            bad = keys[(keys < 0) | (keys >= self.num_keys)][0]
            raise KeyRangeError(f"key {bad} is outside the key range [0, {self.num_keys})")

    def lengths_of(self, keys: Integers) -> Integers:
        """Of keys in range: int64 [K]."""
        return self._run_lengths[self._run_of(keys)]

    def parts(self, keys: Integers) -> Iterator[Part]:
        """Keys in range, table by table."""
        if self.is_uniform:
            yield Part(0, keys, None)
            return
        runs = self._run_of(keys)
        tables, rows = self._tables[runs], keys - self._shifts[runs]
        if not keys.size or (tables == tables[0]).all():
            yield Part(int(tables[0]) if keys.size else 0, rows, None)
            return
        for table in np.unique(tables):
            positions = np.flatnonzero(tables == table)
            yield Part(int(table), rows[positions], positions)

    def whole_part(self, keys: Integers) -> tuple[int, Integers] | None:
        """The table and rows of keys that are of one run; None of others. Of keys out of range the rows are too."""
        if self._is_one_run:
            return 0, keys
        if len(keys) == 1:
            run = bisect_right(self._start_list, keys[0]) - 1
        else:
            runs = self._run_of(keys)
            if not len(keys) or (runs != runs[0]).any():
                return None
            run = runs[0]
        return self._table_list[run], keys - self._shifts[run]

    def keys_of(self, table: int, rows: Integers) -> Integers:
        """What ``parts`` makes of keys, backwards."""
        runs = np.flatnonzero(self._tables == table)
        first_rows = self._starts[runs] - self._shifts[runs]
        return rows + self._shifts[runs[np.searchsorted(first_rows, rows, side="right") - 1]]

    def _run_of(self, keys: Integers) -> Integers:
        return np.searchsorted(self._starts, keys, side="right") - 1


def _lengths(num_keys: int, value_lengths: Any) -> Integers:
    """One for each key."""
    array = as_array(value_lengths, "value_lengths", "iuf")
    if array.dtype.kind == "f":  # as torch.ones(num_keys) * 10 is
        if not (np.isfinite(array) & (array == np.floor(array))).all():
            raise DtypeError(f"value_lengths of dtype {array.dtype}: needs whole numbers")
        array = array.astype(np.int64)
    if array.size == 1:
        array = np.broadcast_to(array.reshape(1), num_keys)
    if array.size != num_keys:
        raise ShapeError(f"value_lengths has {array.size} lengths: setup() said that there are {num_keys} keys")
    lengths = array.reshape(-1).astype(np.int64, copy=False)
    if lengths.min() < 1:
        raise ShapeError(f"value_lengths: key {int(lengths.argmin())} has length {lengths.min()}: needs at least 1")
    return lengths


def _first_rows(tables: Integers, counts: Integers, rows: Integers) -> Integers:
    """Of each run: which row of its table its first key is. ``counts``: keys of each run; ``rows``: of each table."""
    by_table = np.argsort(tables, kind="stable")
    firsts = np.empty(len(tables), np.int64)
    firsts[by_table] = np.cumsum(counts[by_table]) - counts[by_table]
    return firsts - (np.cumsum(rows) - rows)[tables]


def whole_count(value: Any, name: str) -> int:
    """A whole number above 0. Raises DtypeError, ShapeError."""
    count = whole_number(value, name)
    if count < 1:
        raise ShapeError(f"{name}={count}: needs at least 1")
    return count
