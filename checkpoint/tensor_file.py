"""One rank's rows in one file, in the safetensors format: written in one pass, read through memory maps.

The format is a length, a JSON header with each tensor's place, and the tensors, one after the other; any safetensors
library reads it. It is written here, because a library's ``save_file`` wants every tensor in memory at once: here the
numbers of rows are known first, then rows come in pieces, each tensor's in order. Every tensor has a checksum (CRC-32)
of its own, made as its bytes go by, and so has the header.
"""

import json
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from intentpm.checkpoint.long_file import LongFile
from intentpm.checkpoint.storage import Location
from intentpm.foundation.errors import CheckpointError

Array = npt.NDArray[Any]

_CODES = {
    "float64": "F64", "int64": "I64", "float32": "F32", "int32": "I32", "uint32": "U32", "float16": "F16",
    "bfloat16": "BF16",
}  # fmt: skip
_NAMES = {code: name for name, code in _CODES.items()}
_LENGTH = struct.Struct("<Q")
ALIGNMENT = 64
"""Of the first tensor; the others follow by falling size of their numbers, so that each lies aligned."""
MAX_HEADER_BYTES = 100 << 20
READ_BYTES = 1 << 20
MAPPED_BYTES = 2 << 20
"""At most, and so aligned, the system maps around a byte that is looked at."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's dtype and shape."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in its file."""

    spec: TensorSpec
    offset: int


def dtype_named(name: str) -> np.dtype[Any]:
    """numpy.dtype of a name; "bfloat16" needs the package ml_dtypes. Raises CheckpointError."""
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise CheckpointError("rows of bfloat16 need the package ml_dtypes: pip install ml_dtypes") from None
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


class TensorFileWriter:
    """Writes a file of the given tensors, whose rows come by ``append``; use it in a with block.

    The end of the block does not make the file whole: ``finish`` does, or the file is of no use.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec]) -> None:
        """Makes the file, which must not exist. Raises OSError."""
        self.path = path
        header, self._places = _layout(specs)
        self._at = {name: place.offset for name, place in self._places.items()}
        self._crcs = dict.fromkeys(specs, 0)
        self.checksums: dict[str, int] = {"": zlib.crc32(header)}
        self.size_bytes = len(header) + sum(spec.size_bytes for spec in specs.values())
        self._file = LongFile(path)
        try:
            self._file.write(np.frombuffer(header, np.uint8), 0)
        except BaseException:
            self.close()
            raise

    def append(self, name: str, rows: Array) -> None:
        """The next rows of a tensor, of its dtype. Raises OSError."""
        if rows.nbytes == 0:
            return
        written = self._file.write(rows, self._at[name])
        self._crcs[name] = zlib.crc32(written, self._crcs[name])
        self._at[name] += rows.nbytes

    def finish(self) -> None:
        """Everything has come and is on disk when this returns. Raises OSError; Error when rows are missing."""
        for name, place in self._places.items():
            wanted = place.offset + place.spec.size_bytes
            if self._at[name] != wanted:
                raise CheckpointError(
                    f"{self.path}: {name} has got {self._at[name] - place.offset} bytes of {place.spec.size_bytes}"
                )
        self._file.sync()
        self.checksums.update(self._crcs)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TensorFile:
    """A file to read. Its tensors are memory-mapped: what is not looked at is not read.

    Attributes: ``pieces_at_once``: so many pieces are best read together.
    """

    pieces_at_once = 1

    def __init__(self, path: Location, size_bytes: int, header_crc: int) -> None:
        """size_bytes, header_crc: as the manifest has them. Raises CheckpointError naming the file."""
        self.path = path
        header = _read_header(path, size_bytes)
        if zlib.crc32(header) != header_crc:
            raise CheckpointError(f"{path}: its header is damaged: load an earlier checkpoint")
        self._places = _places_of(header)
        if any(place.offset + place.spec.size_bytes > size_bytes for place in self._places.values()):
            raise CheckpointError(f"{path}: its tensors do not lie within it: load an earlier checkpoint")
        self._open()

    def _open(self) -> None:
        with open(self.path, "rb") as file:
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._map = np.frombuffer(self._mapping, np.uint8)

    def spec(self, name: str) -> TensorSpec | None:
        """None: it has no such tensor."""
        place = self._places.get(name)
        return None if place is None else place.spec

    def tensor(self, name: str) -> Array:
        """Not writable; it looks into the file."""
        place = self._places[name]
        data = self._map[place.offset : place.offset + place.spec.size_bytes]
        return data.view(place.spec.dtype).reshape(place.spec.shape)

    def stretch(self, name: str, first: int, end: int) -> Array:
        """Rows of a tensor; not writable."""
        return self.tensor(name)[first:end]

    def let_go(self, name: str, first: int, end: int) -> None:
        """These rows need not stay in this process's memory: they are read again where they are looked at again."""
        place = self._places[name]
        begin = (place.offset + first * place.spec.row_bytes) // MAPPED_BYTES * MAPPED_BYTES
        past = -(-(place.offset + end * place.spec.row_bytes) // MAPPED_BYTES) * MAPPED_BYTES
        self._mapping.madvise(mmap.MADV_DONTNEED, begin, min(past, len(self._mapping)) - begin)

    def take(self, name: str, rows: npt.NDArray[np.uint32]) -> Array:
        """A copy of rows of a tensor, in any order."""
        return self.tensor(name)[rows]

    def checksum(self, name: str, live: Callable[[], None] = lambda: None) -> int:
        """CRC-32 of a tensor, of every byte as it is on disk now. live: called now and then. Raises OSError."""
        place, crc = self._places[name], 0
        with self.path.open("rb", buffering=0) as file:
            file.seek(place.offset)
            left = place.spec.size_bytes
            while left > 0:
                piece = file.read(min(left, READ_BYTES))
                if not piece:
                    raise CheckpointError(f"{self.path}: ends before its tensor {name} does")
                crc = zlib.crc32(piece, crc)
                left -= len(piece)
                live()
        return crc


def _layout(specs: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, Place]]:
    described: dict[str, Any] = {"__metadata__": {"format": "intentpm"}}
    at = 0
    for name in sorted(specs, key=lambda name: -specs[name].dtype.itemsize):
        spec = specs[name]
        end = at + spec.size_bytes
        described[name] = {"dtype": _CODES[spec.dtype.name], "shape": list(spec.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + _LENGTH.size) % ALIGNMENT)
    header = _LENGTH.pack(len(text)) + text
    return header, _places_of(header)


def _read_header(path: Location, size_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            found = file.seek(0, os.SEEK_END)
            file.seek(0)
            if found != size_bytes:
                raise CheckpointError(
                    f"{path}: has {found} bytes where {size_bytes} were written: load an earlier checkpoint"
                )
            length = file.read(_LENGTH.size)
            (count,) = _LENGTH.unpack(length)
            if count > min(MAX_HEADER_BYTES, size_bytes):
                raise CheckpointError(f"{path}: its header is damaged: load an earlier checkpoint")
            return length + file.read(count)
    except CheckpointError:
        raise
    except (OSError, struct.error) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}): load an earlier checkpoint") from error


def _places_of(header: bytes) -> dict[str, Place]:
    described = json.loads(header[_LENGTH.size :])
    described.pop("__metadata__", None)
    return {
        name: Place(
            TensorSpec(dtype_named(_NAMES[entry["dtype"]]), tuple(entry["shape"])),
            len(header) + entry["data_offsets"][0],
        )
        for name, entry in described.items()
    }
