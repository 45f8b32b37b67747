"""A rank's file at a URL, read in ranges: what ``TensorFile`` is for one of this machine."""

import numpy as np
import numpy.typing as npt

from intentpm.checkpoint.storage import Location, RemotePath
from intentpm.checkpoint.tensor_file import Array, Place, TensorFile

GAP_BYTES = 1 << 16
"""Rows that lie nearer to each other are read with what is between them: a request costs more than that."""
RANGES_AT_ONCE = 64
PIECES_AT_ONCE = 8
"""That is one request."""


class RemoteTensorFile(TensorFile):
    """A file to read. Any thread may read. What is not asked for is not read, and what is raises OSError, too."""

    path: RemotePath
    pieces_at_once = PIECES_AT_ONCE

    def _open(self) -> None:
        pass

    def tensor(self, name: str) -> Array:
        return self.stretch(name, 0, self._places[name].spec.shape[0])

    def stretch(self, name: str, first: int, end: int) -> Array:
        place = self._places[name]
        size = place.spec.row_bytes
        return _rows(place, self.path.read_bytes(place.offset + first * size, place.offset + end * size))

    def let_go(self, name: str, first: int, end: int) -> None:
        pass

    def take(self, name: str, rows: npt.NDArray[np.uint32]) -> Array:
        """Some rows of a tensor, one or more, in any order."""
        place = self._places[name]
        wanted, back = np.unique(rows.astype(np.int64), return_inverse=True)
        breaks = np.flatnonzero(np.diff(wanted) * place.spec.row_bytes > GAP_BYTES) + 1
        runs = np.split(wanted, breaks)
        read = self._read_runs(place, [(int(run[0]), int(run[-1]) + 1) for run in runs])
        return np.concatenate([stored[run - run[0]] for run, stored in zip(runs, read, strict=True)])[back]

    def _read_runs(self, place: Place, runs: list[tuple[int, int]]) -> list[Array]:
        size, read = place.spec.row_bytes, []
        for at in range(0, len(runs), RANGES_AT_ONCE):
            some = runs[at : at + RANGES_AT_ONCE]
            ranges = [(place.offset + first * size, place.offset + end * size) for first, end in some]
            read += [_rows(place, data) for data in self.path.read_ranges(ranges)]
        return read


def open_tensor_file(path: Location, size_bytes: int, header_crc: int) -> TensorFile:
    """size_bytes, header_crc: as the manifest has them. Raises CheckpointError naming the file."""
    kind = RemoteTensorFile if isinstance(path, RemotePath) else TensorFile
    return kind(path, size_bytes, header_crc)


def _rows(place: Place, data: bytes) -> Array:
    return np.frombuffer(data, place.spec.dtype).reshape(-1, *place.spec.shape[1:])
