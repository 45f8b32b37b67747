"""Checkpoints that follow each other in one folder, numbered from 1 on.

    runs/7/000012/manifest.json      the newest
    runs/7/000012/rank-0000.safetensors ...
    runs/7/000013/                   being written, or left behind by a save that was killed: no manifest

A save makes the folder of the next number, by which it is the only one that writes there; the manifest ends it. A
later save of the same job removes what earlier ones left behind.

``rank 0`` alone makes, ends and removes checkpoints; the other ranks only write files into the folder they are told.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from intentpm.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from intentpm.checkpoint.pieces import put_in_place, sync_folder
from intentpm.checkpoint.tensor_file import TensorFile
from intentpm.foundation.errors import CheckpointError

DIGITS = 6
MOST_CHAINED = 32
"""Checkpoints that one may need: each has some rows, and all their files are open while it is read."""


def numbered(folder: Path) -> list[Path]:
    """The folders of checkpoints, whole or not, oldest first. Raises OSError."""
    found = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def is_whole(path: Path) -> bool:
    """It was ended by its manifest (which may be damaged)."""
    return (path / MANIFEST).is_file()


def latest(folder: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint in a folder of them whose manifest can be read; None if there is none.

    Looks at names and manifests alone: ``verify`` says whether every byte is right.
    Raises CheckpointError where the folder itself cannot be looked at.
    """
    return next(_readable(Path(folder)), None)


def _readable(folder: Path) -> Iterator[Path]:
    try:
        newest_first = reversed(numbered(folder)) if folder.exists() else iter(())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be looked at ({error.strerror or error})") from error
    for path in newest_first:
        if is_whole(path):
            with suppress(CheckpointError):
                read_manifest(path)
                yield path


def find(path: str | os.PathLike[str]) -> Path:
    """The checkpoint that ``path`` is, or the newest of those in it. Raises CheckpointError if there is none."""
    folder = Path(path)
    if is_whole(folder):
        return folder
    found = latest(folder)
    if found is None:
        raise CheckpointError(f"{folder}: holds no checkpoint")
    return found


def begin(folder: Path, job: str) -> Path:
    """Makes the folder of the next checkpoint. Raises CheckpointError, OSError.

    job: whose checkpoints these are; those of another would be taken for this one's, or removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_job(folder, job)
    while True:
        there = numbered(folder)
        path = folder / f"{int(there[-1].name) + 1 if there else 1:0{DIGITS}d}"
        try:
            path.mkdir()
        except FileExistsError:  # another save of this moment: it has that number, this one the next
            continue
        sync_folder(folder)
        return path


def _check_job(folder: Path, job: str) -> None:
    newest = latest(folder)
    if newest is not None and read_manifest(newest).job != job:
        raise CheckpointError(
            f"{newest / MANIFEST}: is a checkpoint of another job: save into a folder of its own, or go on from it "
            "(pm.load) before saving"
        )


def commit(path: Path, manifest: Manifest) -> None:
    """Makes ``path`` a checkpoint: all its files are on disk. Raises OSError; it is none then."""
    sync_folder(path)
    put_in_place(path / MANIFEST, manifest.encode())


def chain(path: Path) -> list[Path]:
    """The checkpoints that ``path`` needs: itself, the one whose changes it has, and so on to one with every row.

    Raises CheckpointError naming what is missing or damaged.
    """
    found = [path]
    while (base := read_manifest(found[-1]).base) is not None:
        before = path.parent / base
        if int(before.name) >= int(found[-1].name):
            raise CheckpointError(f"{found[-1] / MANIFEST}: names {base} as its base, which is no earlier one")
        if not is_whole(before):
            raise CheckpointError(f"{found[-1] / MANIFEST}: needs the checkpoint {before}, which is not there")
        found.append(before)
    return found


def may_build_on(base: Path) -> bool:
    """Whether a checkpoint of what has changed since ``base`` is worth it: else one with every row is made, which later
    ones build on. All that ``base`` needs is looked at. Does not raise."""
    try:
        needed = chain(base)
        manifests = [read_manifest(path) for path in needed]
        sizes = [sum(file.size_bytes for file in manifest.files) for manifest in manifests]
        for path, manifest in zip(needed, manifests, strict=True):
            for file in manifest.files:
                TensorFile(path / file.name, file.size_bytes, file.checksums[""])
    except (CheckpointError, OSError):
        return False
    return len(needed) < MOST_CHAINED and sum(sizes[:-1]) <= sizes[-1]


def prune(folder: Path, keep: int | None) -> None:
    """Removes checkpoints but the ``keep`` newest and those they need (None: removes none), and what saves that were
    killed have left behind. Raises OSError, CheckpointError; what was to be kept is.
    """
    whole = [path for path in numbered(folder) if is_whole(path)]
    if not whole:
        return
    kept = set(whole)
    if keep is not None:
        kept = {needed for path in whole[-keep:] for needed in chain(path)}
    for path in numbered(folder):
        if path not in kept and int(path.name) < int(whole[-1].name):
            remove(path)


def remove(path: Path) -> None:
    """A checkpoint, whole or not: first its manifest, so that at no time half of one looks whole. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(path / MANIFEST)
    sync_folder(path)
    shutil.rmtree(path)
