"""Files that appear whole or not at all, and a place for what could not be written where it was wanted."""

import errno
import os
import shutil
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

from intentpm.foundation.errors import NotWrittenError


def write_whole(path: Path, contents: bytes) -> None:
    """Writes a file; its folder is made if need be. Until everything is on disk, the name keeps what it had before.

    A link is followed. What is no file (a pipe, a device) is written to as it is: it must not be replaced.
    Raises OSError; ``path`` is as it was then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        path.write_bytes(contents)
        return
    path = Path(os.path.realpath(path))
    if path.exists() and not os.access(path, os.W_OK):  # to replace it, the right to its folder would do
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, part)
        part.replace(path)
    except BaseException:
        if part.exists():
            part.unlink()
        raise


def write_or_keep(path: Path, contents: bytes) -> None:
    """As ``write_whole``; where that fails, the contents go to a temporary folder.

    Raises NotWrittenError, which says where.
    """
    try:
        write_whole(path, contents)
    except OSError as error:
        kept = _keep(path.name, contents)
        where = f"its contents were kept as {kept}" if kept else "nor could a temporary file"
        raise NotWrittenError(f"{path} could not be written ({error.strerror or error}); {where}", kept) from error


def _keep(name: str, contents: bytes) -> Path | None:
    for find in (tempfile.gettempdir, lambda: "/var/tmp", Path.home):
        with suppress(OSError, RuntimeError):  # no such folder, or no room there either
            folder = Path(tempfile.mkdtemp(prefix="intentpm-kept-", dir=find()))
            try:
                write_whole(folder / name, contents)
            except OSError:
                folder.rmdir()
                raise
            return folder / name
    return None
