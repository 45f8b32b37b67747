"""Where checkpoints lie: in a folder of this machine, a ``pathlib.Path``, or at a URL that fsspec reaches.

Both are a ``Location``: the code that knows what a checkpoint is made of asks either for names, folders and bytes in
the same words. What differs is here, and in ``remote_tensor_file``.

A path of this machine: files are on disk before the manifest is renamed into place (``pieces``), and are read through
memory maps.

A URL, "s3://bucket/runs/7" say: an object is there whole or not at all, nothing is renamed, and there are no folders.
The manifest is put last; before it a checkpoint is none. A rank's file is written on this machine first (in
``TMPDIR``), because its tensors grow side by side, and then copied. That it is kept is for the store to see to. The
number of a checkpoint is taken by an object ``begun``, made only if there is none: where the store cannot do that in
one step, two jobs that begin to save into one empty folder at once may take the same number.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EEXIST, EIO, ENOENT, ENOTDIR
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeAlias

from intentpm.checkpoint.pieces import put_in_place, remove_folder, sync_folder
from intentpm.foundation.errors import CheckpointError

BEGUN = "begun"
BLOCK_BYTES = 1 << 16
"""Read at least, and ahead: a header is mostly shorter."""
_ON_THIS_MACHINE = "file://"


class RemotePath:
    """A place at a URL: the part of ``pathlib.Path`` that checkpoints need, with the same meaning. Raises OSError."""

    def __init__(self, url: str) -> None:
        """Raises CheckpointError: fsspec, or what it needs for such URLs, is not installed."""
        self._url = url.rstrip("/")
        try:
            from fsspec.core import url_to_fs

            self.fs, self.path = url_to_fs(self._url)
        except (ImportError, ValueError) as error:  # ValueError: there is no such protocol
            raise CheckpointError(
                f"{url}: cannot be reached ({error}): pip install 'intentpm[fsspec]', and the package of fsspec for "
                "this kind of URL (s3fs, gcsfs, adlfs, ...)"
            ) from error

    @property
    def name(self) -> str:
        return self._url.rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self._url.rpartition("/")[0])

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self._url}/{name}")

    def __str__(self) -> str:
        return self._url

    __fspath__ = __str__

    def __repr__(self) -> str:
        return f"RemotePath({self._url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self._url == other._url

    def __hash__(self) -> int:
        return hash(self._url)

    def exists(self) -> bool:
        return self._kind() is not None

    def is_file(self) -> bool:
        return self._kind() == "file"

    def _kind(self) -> str | None:
        """fsspec's own ``exists`` and ``isfile`` take a store that cannot be reached for one that has nothing: then a
        checkpoint would be removed."""
        try:
            with self._reaching() as fs:
                return str(fs.info(self.path)["type"])
        except (FileNotFoundError, NotADirectoryError):
            return None

    def folders(self) -> list["RemotePath"]:
        """Those in it; none where there is nothing: stores of objects have no empty folders."""
        try:
            with self._reaching() as fs:
                found = fs.ls(self.path, detail=True)
        except FileNotFoundError:
            return []
        names = (entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "directory")
        return [self / name for name in names]

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Of a store that has folders, or buckets. Takes ``parents`` and ``exist_ok`` for granted."""
        with self._reaching() as fs:
            fs.makedirs(self.path, exist_ok=True)

    @contextmanager
    def open(self, mode: str, buffering: int = -1) -> Iterator[Any]:
        """A file to read from anywhere; ``buffering`` means nothing here."""
        with self._reaching() as fs, fs.open(self.path, mode, block_size=BLOCK_BYTES) as file:
            yield file

    def read_bytes(self, first: int | None = None, end: int | None = None) -> bytes:
        if first is not None and first == end:
            return b""  # a range that no store understands
        with self._reaching() as fs:
            data: bytes = fs.cat_file(self.path, start=first, end=end)
        if first is not None and end is not None and len(data) != end - first:
            raise OSError(EIO, f"{len(data)} bytes came where {end - first} were asked for", self._url)
        return data

    def read_ranges(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Of each its bytes from the first to before the end, as many at a time as the store gives."""
        with self._reaching() as fs:
            firsts, ends = [first for first, _ in ranges], [end for _, end in ranges]
            found: list[bytes] = fs.cat_ranges([self.path] * len(ranges), firsts, ends, on_error="raise")
        if any(len(data) != end - first for data, (first, end) in zip(found, ranges, strict=True)):
            raise OSError(EIO, "fewer bytes came than were asked for", self._url)
        return found

    def write_bytes(self, contents: bytes, only_if_new: bool = False) -> None:
        """Raises FileExistsError, too."""
        with self._reaching() as fs:
            fs.pipe_file(self.path, contents, mode="create" if only_if_new else "overwrite")

    def upload(self, file: Path) -> None:
        with self._reaching() as fs:
            fs.put_file(os.fspath(file), self.path)
        wanted, found = file.stat().st_size, self._size_bytes()
        if found != wanted:
            raise OSError(EIO, f"{found} bytes are there of the {wanted} that were sent", self._url)

    def _size_bytes(self) -> int:
        with self._reaching() as fs:
            return int(fs.size(self.path))

    def remove(self, recursive: bool = False) -> None:
        with self._reaching() as fs:
            fs.rm(self.path, recursive=recursive)

    @contextmanager
    def _reaching(self) -> Iterator[Any]:
        """The file system, without what it remembers of it: other ranks write. All that it raises is an OSError."""
        self.fs.invalidate_cache()
        try:
            yield self.fs
        except CheckpointError:
            raise
        except OSError as error:
            if error.filename is not None and error.strerror is not None:
                raise
            raise OSError(_number_of(error), error.strerror or repr(error), self._url) from error
        except Exception as error:  # of the store's own client
            raise OSError(EIO, repr(error), self._url) from error


def _number_of(error: OSError) -> int:
    """By which OSError makes one of the same kind: clients raise them with a text alone, or of classes of their own."""
    kinds = {FileNotFoundError: ENOENT, FileExistsError: EEXIST, NotADirectoryError: ENOTDIR, PermissionError: EACCES}
    of_kind = next((number for kind, number in kinds.items() if isinstance(error, kind)), EIO)
    return error.errno or of_kind


Location: TypeAlias = Path | RemotePath


def located(path: str | os.PathLike[str]) -> Location:
    """What is meant by a path or URL that a user gives. Raises CheckpointError for a URL that cannot be reached."""
    if isinstance(path, Path | RemotePath):
        return path
    given = os.fspath(path)
    if given.startswith(_ON_THIS_MACHINE):
        return Path(given.removeprefix(_ON_THIS_MACHINE))
    return RemotePath(given) if "://" in given else Path(given)


def is_file(path: Location) -> bool:
    """Raises OSError where that cannot be told, which ``pathlib.Path.is_file`` takes for False from Python 3.14 on."""
    if isinstance(path, RemotePath):
        return path.is_file()
    try:
        return S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def folders_in(folder: Location) -> list[Location]:
    if isinstance(folder, RemotePath):
        return [*folder.folders()]
    return [path for path in folder.iterdir() if path.is_dir()]


def make_folder(path: Location) -> None:
    """Its parent is there, and it was not. Raises FileExistsError."""
    if isinstance(path, RemotePath):
        path.mkdir()
        (path / BEGUN).write_bytes(b"", only_if_new=True)
    else:
        path.mkdir()
        sync_folder(path.parent)


@contextmanager
def new_file(path: Location) -> Iterator[Path]:
    """Where a file of this machine is to be made, which then lies at ``path``."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="intentpm-") as folder:
        file = Path(folder, path.name)
        yield file
        path.upload(file)


def put_last(path: Location, contents: bytes) -> None:
    """The file that makes what lies beside it whole, which is there when it is."""
    if isinstance(path, RemotePath):
        path.write_bytes(contents)
    else:
        sync_folder(path.parent)
        put_in_place(path, contents)


def remove_whole(path: Location, first: str) -> None:
    """A folder with what is in it, the file ``first`` before all else."""
    if isinstance(path, Path):
        remove_folder(path, first)
        return
    with suppress(FileNotFoundError):
        (path / first).remove()
    with suppress(FileNotFoundError):
        path.remove(recursive=True)
