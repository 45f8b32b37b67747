"""Checkpoints, read: rows by key, from whichever file and checkpoint of the chain has them newest."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from intentpm.checkpoint.manifest import MANIFEST, FileEntry, Manifest, TableEntry, read_manifest
from intentpm.checkpoint.remote_tensor_file import open_tensor_file
from intentpm.checkpoint.series import chain, find
from intentpm.checkpoint.storage import Location
from intentpm.checkpoint.tensor_file import Array, TensorFile, TensorSpec, dtype_named
from intentpm.foundation.errors import CheckpointError, KeyRangeError

Keys = npt.NDArray[np.int64]
WEIGHTS = "weights"
Flags = npt.NDArray[np.bool_]
Parts = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
KEYS_AT_ONCE = 1 << 16


def tensor_name(table: str, part: str) -> str:
    """As the files have it. part: "keys", "weights", "state.NAME"."""
    return f"{table}.{part}"


def state_part(name: str) -> str:
    return f"state.{name}"


def tensors_of(entry: TableEntry, rows: int) -> dict[str, TensorSpec]:
    """The tensors of a file that has so many rows of a table."""
    specs = {
        "keys": TensorSpec(np.dtype(np.int32), (rows,)),
        WEIGHTS: TensorSpec(dtype_named(entry.dtype), (rows, *entry.row_shape)),
    }
    for name, (dtype, shape) in entry.state.items():
        specs[state_part(name)] = TensorSpec(dtype_named(dtype), (rows, *shape))
    return {tensor_name(entry.name, part): spec for part, spec in specs.items()}


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a checkpoint of the chain."""

    folder: Location
    entry: FileEntry
    tensors: TensorFile


class TableReader:
    """A table of a checkpoint. Any thread may read.

    Attributes: ``name``, ``num_keys``, ``row_shape``, ``dtype`` (numpy.dtype); ``optimizer``, as it is written in
    Python, or None; ``state_names``.
    """

    def __init__(self, path: Location, entry: TableEntry, parts: list[Part]) -> None:
        """path: of the checkpoint. parts: newest checkpoint first."""
        self._path, self._entry = path, entry
        self._parts = [part for part in parts if entry.name in part.entry.rows]
        self.name = entry.name
        self.num_keys = entry.num_keys
        self.row_shape = entry.row_shape
        self.dtype = dtype_named(entry.dtype)
        self.optimizer = entry.optimizer
        self.state_names = tuple(entry.state)
        self._part_of: Parts | None = None
        self._row_of: npt.NDArray[np.uint32] | None = None

    def rows(self, keys: npt.ArrayLike | None = None) -> Array:
        """The weights of ``keys`` (integers [K]; None: of all, in order): [K, *row_shape]. Raises KeyRangeError."""
        return self._read(WEIGHTS, self.dtype, self.row_shape, keys)

    def state(self, name: str, keys: npt.ArrayLike | None = None) -> Array:
        """What the optimizer kept of ``keys``, by its name there. Raises KeyRangeError, CheckpointError."""
        if name not in self._entry.state:
            raise CheckpointError(f"table {self.name!r} has no state {name!r}, but {list(self.state_names)}")
        dtype, shape = self._entry.state[name]
        return self._read(state_part(name), dtype_named(dtype), shape, keys)

    @property
    def check_bytes(self) -> int:
        """What ``check`` and ``stretches`` keep in memory."""
        return self.num_keys * self._part_type().itemsize

    def check(self) -> None:
        """That there is a row of each key, and in each file what a table like this one has there: nothing can be
        missing or of another kind when rows are read later.

        Raises CheckpointError naming the file at fault. Takes a byte per key; two with more than 255 files.
        """
        self._parts_of_keys()

    def stretches(self, rows_at_once: int, wanted: Flags | None = None) -> Iterator[tuple[Keys, dict[str, Array]]]:
        """All rows, each once, as they lie: keys int64 [K] and, by name ("weights", names of state), what they have.

        wanted: [num_keys], of which keys; None: of all. Takes memory as ``check``, and for one stretch: of files that
        are mapped, what was read does not stay.
        """
        part_of = self._parts_of_keys()
        for number, part in enumerate(self._parts):
            for first, keys in self._keys_of(part, rows_at_once):
                chosen = part_of[keys] == number
                if wanted is not None:
                    chosen &= wanted[keys]
                if chosen.any():
                    yield from self._stretch(part, first, keys, chosen, rows_at_once)

    def _stretch(
        self, part: Part, first: int, keys: Keys, chosen: Flags, rows_at_once: int
    ) -> Iterator[tuple[Keys, dict[str, Array]]]:
        end = first + len(keys)
        tensors = {name: tensor_name(self.name, at) for name, at in self._columns().items()}
        columns = {name: part.tensors.stretch(tensor, first, end) for name, tensor in tensors.items()}
        yield from _cut(keys, columns, chosen, rows_at_once)
        for tensor in tensors.values():
            part.tensors.let_go(tensor, first, end)

    def _columns(self) -> dict[str, str]:
        return {WEIGHTS: WEIGHTS} | {name: state_part(name) for name in self.state_names}

    def _read(self, part: str, dtype: np.dtype[Any], shape: tuple[int, ...], keys: npt.ArrayLike | None) -> Array:
        wanted = self._check_keys(keys)
        rows = np.empty((len(wanted), *shape), dtype)
        row_of, from_part = self._rows_of_keys(), self._parts_of_keys()[wanted]
        for number in np.unique(from_part).tolist():
            here = from_part == number
            tensors = self._parts[number].tensors
            rows[here] = tensors.take(tensor_name(self.name, part), row_of[wanted[here]])
        return rows

    def _check_keys(self, keys: npt.ArrayLike | None) -> Keys:
        if keys is None:
            return np.arange(self.num_keys)
        wanted = np.asarray(keys)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise KeyRangeError(f"table {self.name!r}: keys are one row of integers, not {wanted.dtype}{wanted.shape}")
        wanted = wanted.astype(np.int64)
        bad = (wanted < 0) | (wanted >= self.num_keys)
        if bad.any():
            raise KeyRangeError(f"key {wanted[bad][0]} is not in table {self.name!r}, whose keys are 0 to "
                                f"{self.num_keys - 1}")  # fmt: skip
        return wanted

    def _part_type(self) -> np.dtype[Any]:
        """Of numbers of parts; there is one more for none."""
        return np.min_scalar_type(len(self._parts))

    def _parts_of_keys(self) -> Parts:
        """Of each key: number of the part that has its newest row."""
        if self._part_of is None:
            nowhere = len(self._parts)
            part_of: Parts = np.full(self.num_keys, nowhere, self._part_type())
            for number in reversed(range(nowhere)):  # the newest last: it stays
                self._check_tensors(self._parts[number])
                self._mark(part_of, number)
            missing = np.flatnonzero(part_of == nowhere)
            if len(missing):
                raise CheckpointError(
                    f"{self._path}: no file has a row of key {missing[0]} of table {self.name!r}, nor of "
                    f"{len(missing) - 1} others: load an earlier checkpoint"
                )
            self._part_of = part_of
        return self._part_of

    def _mark(self, part_of: Parts, number: int) -> None:
        """The keys that a part has, each once."""
        part = self._parts[number]
        for _, keys in self._keys_of(part, KEYS_AT_ONCE):
            keys.sort()
            if not 0 <= keys[0] <= keys[-1] < self.num_keys:
                raise self._of_no_table(part)
            if (keys[1:] == keys[:-1]).any() or (part_of[keys] == number).any():
                raise self._of_no_table(part)
            part_of[keys] = number

    def _rows_of_keys(self) -> npt.NDArray[np.uint32]:
        """Of each key: which row that is of the part that has its newest."""
        if self._row_of is None:
            self._parts_of_keys()
            row_of = np.empty(self.num_keys, np.uint32)
            for part in reversed(self._parts):
                for first, keys in self._keys_of(part, KEYS_AT_ONCE):
                    row_of[keys] = np.arange(first, first + len(keys), dtype=np.uint32)
            self._row_of = row_of
        return self._row_of

    def _keys_of(self, part: Part, rows_at_once: int) -> Iterator[tuple[int, Keys]]:
        """A file's, as they lie, in stretches of a few pieces, each with the number of its first row."""
        name, count = tensor_name(self.name, "keys"), part.entry.rows[self.name]
        step = part.tensors.pieces_at_once * rows_at_once
        for first in range(0, count, step):
            end = min(first + step, count)
            keys = part.tensors.stretch(name, first, end).astype(np.int64)
            part.tensors.let_go(name, first, end)
            yield first, keys

    def _check_tensors(self, part: Part) -> None:
        """All that a file has of the table is as it must be."""
        for name, spec in tensors_of(self._entry, part.entry.rows[self.name]).items():
            if part.tensors.spec(name) != spec:
                raise CheckpointError(
                    f"{part.tensors.path}: its tensor {name} is {part.tensors.spec(name)}, and not {spec}: "
                    "load an earlier checkpoint"
                )

    def _of_no_table(self, part: Part) -> CheckpointError:
        return CheckpointError(f"{part.tensors.path}: its keys of table {self.name!r} are not those of a table")


def _cut(
    keys: Keys, columns: dict[str, Array], chosen: Flags, rows_at_once: int
) -> Iterator[tuple[Keys, dict[str, Array]]]:
    """The chosen rows of a stretch, in pieces."""
    for first in range(0, len(keys), rows_at_once):
        piece = slice(first, first + rows_at_once)
        which = chosen[piece]
        if which.all():
            yield keys[piece], {name: rows[piece] for name, rows in columns.items()}
        elif which.any():
            yield keys[piece][which], {name: rows[piece][which] for name, rows in columns.items()}


class Checkpoint:
    """A checkpoint that was opened; made by ``intentpm.checkpoint.open``. Any thread may read.

    Attributes: ``path``; ``tables``, names; ``number``, from 1 on in its folder; ``ranks``, who wrote it, ascending:
    all from 0 on, unless some had been lost; ``extra`` and ``clocks``, of each of them what ``save`` was given and its
    workers' clocks; ``seed``, of the job.
    """

    def __init__(self, path: Location) -> None:
        """Raises CheckpointError naming the file at fault."""
        self.path = path
        self.manifest = read_manifest(path)
        self.parts: list[Part] = []
        for folder in chain(path):
            self._add_parts(folder, read_manifest(folder))
        self.tables = tuple(table.name for table in self.manifest.tables)
        self.number = self.manifest.number
        self.ranks = [entry.rank for entry in self.manifest.ranks]
        self.seed = self.manifest.seed
        self.extra = [entry.extra for entry in self.manifest.ranks]
        self.clocks = [{int(worker): clock for worker, clock in entry.clocks.items()} for entry in self.manifest.ranks]

    def _add_parts(self, folder: Location, manifest: Manifest) -> None:
        if manifest.job != self.manifest.job:
            raise CheckpointError(f"{folder / MANIFEST}: is of another job than {self.path / MANIFEST}")
        for entry in manifest.files:
            tensors = open_tensor_file(folder / entry.name, entry.size_bytes, entry.checksums[""])
            self.parts.append(Part(folder, entry, tensors))

    def __getitem__(self, table: str) -> TableReader:
        entry = self.manifest.table(table)
        if entry is None:
            raise CheckpointError(f"{self.path}: has no table {table!r}, but {list(self.tables)}")
        return TableReader(self.path, entry, self.parts)

    def check(self, part: Part) -> None:
        """Looks at every byte of a file. Raises CheckpointError naming it."""
        for name, crc in part.entry.checksums.items():
            try:
                wrong = name and part.tensors.checksum(name) != crc
            except OSError as error:
                raise CheckpointError(f"{part.tensors.path}: cannot be read ({error.strerror or error})") from error
            if wrong:
                raise CheckpointError(f"{part.tensors.path}: its tensor {name} is damaged: load an earlier checkpoint")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.parts.clear()


def open_checkpoint(path: str | os.PathLike[str], *, verify: bool = True) -> Checkpoint:
    """Opens a checkpoint, or the newest of a folder of them, for reading with NumPy alone.

    verify: look at every byte first. False: sizes, headers and manifests are checked alone, and what is read later is
        taken as it is.
    Raises CheckpointError naming the file that is missing or damaged.
    """
    opened = Checkpoint(find(path))
    if verify:
        for part in opened.parts:
            opened.check(part)
    return opened
