"""The manifest: what a checkpoint holds and which files it is made of, with their checksums.

A JSON file that is renamed into place last, when all it speaks of is on disk: a folder without one is no checkpoint.
It is written in one form only, so that a single changed bit shows: either it is no JSON, or not in that form, or its
checksum is another.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from intentpm.checkpoint.storage import Location
from intentpm.foundation.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT = "intentpm checkpoint"
VERSION = 1
"""Of the format; raised when readers of the version before could not read it."""


class NewerFormatError(CheckpointError):
    """A checkpoint of a later intentpm: nothing is wrong with it."""


@dataclass(frozen=True, slots=True)
class TableEntry:
    """A table, as ``create_table`` was told."""

    name: str
    num_keys: int
    row_shape: tuple[int, ...]
    dtype: str
    optimizer: str | None
    """How it is written in Python, for people and for comparison."""
    state: Mapping[str, tuple[str, tuple[int, ...]]]
    """What the optimizer keeps per row: name -> (dtype, shape)."""

    def differs_from(self, other: "TableEntry") -> str | None:
        """What keeps rows of the one from being rows of the other; an optimizer's numbers may differ."""
        for what in ("num_keys", "row_shape", "dtype", "state"):
            mine, its = getattr(self, what), getattr(other, what)
            if mine != its:
                return f"{what} is {mine} here and {its} there"
        return None


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A rank's file."""

    name: str
    size_bytes: int
    rows: Mapping[str, int]
    """Table -> how many of its rows are in it."""
    checksums: Mapping[str, int]
    """Tensor -> CRC-32 of its bytes; "": of the header."""


@dataclass(frozen=True, slots=True)
class RankEntry:
    """What a rank had besides rows."""

    rank: int
    clocks: Mapping[str, int] = field(default_factory=dict)
    """Number of the worker -> its clock."""
    extra: Any = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of it. ``base``: the name of the checkpoint of which this one has the changes; None: it has every row."""

    job: str
    number: int
    written_by: str
    base: str | None
    seed: int | None
    tables: Sequence[TableEntry]
    files: Sequence[FileEntry]
    ranks: Sequence[RankEntry]

    def table(self, name: str) -> TableEntry | None:
        return next((table for table in self.tables if table.name == name), None)

    def rows(self, table: str) -> int:
        """How many rows of a table all files have."""
        return sum(file.rows.get(table, 0) for file in self.files)

    def encode(self) -> bytes:
        return _encode({"format": FORMAT, "version": VERSION, **asdict(self)})


def read_manifest(folder: Location) -> Manifest:
    """The manifest of a checkpoint. Raises CheckpointError naming the file; NewerFormatError."""
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}): is this a checkpoint?") from error
    body = _decode(path, raw)
    tables = [
        TableEntry(
            table["name"],
            table["num_keys"],
            tuple(table["row_shape"]),
            table["dtype"],
            table["optimizer"],
            {name: (dtype, tuple(shape)) for name, (dtype, shape) in table["state"].items()},
        )
        for table in body["tables"]
    ]
    return Manifest(
        body["job"],
        body["number"],
        body["written_by"],
        body["base"],
        body["seed"],
        tables,
        [FileEntry(**file) for file in body["files"]],
        [RankEntry(**rank) for rank in body["ranks"]],
    )


def _encode(body: Mapping[str, Any]) -> bytes:
    text = json.dumps(body, separators=(",", ":"), sort_keys=True)
    return f'{{"crc32":"{zlib.crc32(text.encode()):08x}",\n"manifest":{text}}}\n'.encode()


def _decode(path: Location, raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw)
        body = document["manifest"]
        found, version = body["format"], body["version"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: is damaged, or no manifest: load an earlier checkpoint") from None
    if found != FORMAT:
        raise CheckpointError(f"{path}: is a manifest of {found!r}, not of {FORMAT!r}")
    if isinstance(version, int) and version > VERSION:  # in whatever form
        raise NewerFormatError(
            f"{path}: has version {version} of the format, this intentpm reads up to {VERSION}: upgrade intentpm, or "
            "name an earlier checkpoint"
        )
    if raw != _encode(body):
        raise CheckpointError(f"{path}: is damaged: load an earlier checkpoint")
    assert isinstance(body, dict)
    return body
