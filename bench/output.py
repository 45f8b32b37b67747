"""Output files: tried before the work that fills them, kept somewhere when they cannot be written after it."""

import errno
import os
import uuid
from pathlib import Path
from typing import Any

import click

from intentpm.foundation.errors import NotWrittenError
from intentpm.foundation.whole_file import write_or_keep, write_whole

TRIAL_BYTES = 256 * 1024
"""More than any results file with its plot takes."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OutputError(click.ClickException):
    """Output that cannot be written; the message names the place and the cause.

    ``kept``: where the contents are instead; None where there is no such place, or nothing to keep yet.
    """

    def __init__(self, message: str, kept: Path | None = None) -> None:
        super().__init__(message)
        self.kept = kept


class OutFolder(click.Path):
    """The type of a command's ``--out``: a folder, tried when the command line is read."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The folder as a Path. Raises OutputError when no file can be written there."""
        folder = Path(os.fsdecode(super().convert(value, param, ctx)))
        if ctx is None or not ctx.resilient_parsing:
            check_folder(folder)
        return folder


def check_folder(folder: Path) -> None:
    """Writes a file there and removes it; the folder is made if need be. Raises OutputError."""
    trial = folder / f".{uuid.uuid4().hex}.trial"
    try:
        try:
            write_whole(trial, os.urandom(TRIAL_BYTES))  # random: some file systems compress, or leave out zeros
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(_refused(folder, error)) from error


def check_file(path: Path) -> None:
    """Finds out whether ``path`` can be written, and leaves it as it is. Raises OutputError."""
    check_folder(path.parent)
    if path.is_dir():
        raise OutputError(f"{path}: cannot be written (there is a folder of this name)")
    if path.exists() and not os.access(path, os.W_OK):
        raise OutputError(f"{path}: cannot be written (it is there already, and write-protected)")


def save_file(path: Path, contents: bytes) -> None:
    """Writes the file whole. Raises OutputError, which says where the contents were kept instead."""
    try:
        write_or_keep(path, contents)
    except NotWrittenError as error:
        raise OutputError(str(error), error.kept) from error


def _refused(folder: Path, error: OSError) -> str:
    need = f"; {TRIAL_BYTES // 1024} KB are tried" if error.errno in _FULL else ""
    return f"{folder}: no results can be written there ({error.strerror or error}{need}); choose another --out"
