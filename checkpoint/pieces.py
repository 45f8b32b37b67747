"""The few things that are done to files and folders: each is a point at which a save may be killed, or fail."""

import os
import shutil
from contextlib import suppress
from pathlib import Path


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """All of ``data``. Raises OSError."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest = rest[written:]
        offset += written


def sync_folder(folder: Path) -> None:
    """What was made, renamed or removed in it is on disk. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def put_in_place(path: Path, contents: bytes) -> None:
    """A small file that is there whole or not at all, and then on disk. Raises OSError."""
    part = path.with_name(f"{path.name}.part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_at(fd, contents, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(part, path)
    sync_folder(path.parent)


def remove_folder(folder: Path, first: str) -> None:
    """With all that is in it, the file ``first`` before all else, and not there any more on disk. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(folder / first)
    sync_folder(folder)
    shutil.rmtree(folder)
