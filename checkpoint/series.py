"""Checkpoints that follow each other in one folder, numbered from 1 on.

    runs/7/000012/manifest.json      the newest
    runs/7/000012/rank-0000.safetensors ...
    runs/7/000013/                   being written, or left behind by a save that was killed: no manifest

A save makes the folder of the next number, by which it is the only one that writes there; the manifest ends it. A
later save of the same job removes what earlier ones left behind.

``rank 0`` alone makes, ends and removes checkpoints; the other ranks only write files into the folder they are told.
"""

import os
from collections.abc import Iterator
from contextlib import suppress

from intentpm.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from intentpm.checkpoint.remote_tensor_file import open_tensor_file
from intentpm.checkpoint.storage import Location, folders_in, located, make_folder, put_last, remove_whole
from intentpm.foundation.errors import CheckpointError

DIGITS = 6
MOST_CHAINED = 32
"""Checkpoints that one may need: each has some rows, and all their files are open while it is read."""
MOST_TAKEN = 100
"""Numbers that are tried for the next checkpoint."""


def numbered(folder: Location) -> list[Location]:
    """The folders of checkpoints, whole or not, oldest first. Raises OSError."""
    found = [path for path in folders_in(folder) if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def is_whole(path: Location) -> bool:
    """It was ended by its manifest (which may be damaged). Raises CheckpointError where that cannot be looked at."""
    try:
        return (path / MANIFEST).is_file()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be looked at ({error.strerror or error})") from error


def latest(folder: str | os.PathLike[str]) -> Location | None:
    """The newest checkpoint in a folder of them whose manifest can be read; None if there is none.

    Looks at names and manifests alone: ``verify`` says whether every byte is right.
    Raises CheckpointError where the folder itself cannot be looked at.
    """
    return next(_readable(located(folder)), None)


def _readable(folder: Location) -> Iterator[Location]:
    try:
        newest_first = reversed(numbered(folder)) if folder.exists() else iter(())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be looked at ({error.strerror or error})") from error
    for path in newest_first:
        if is_whole(path):
            with suppress(CheckpointError):
                read_manifest(path)
                yield path


def find(path: str | os.PathLike[str]) -> Location:
    """The checkpoint that ``path`` is, or the newest of those in it. Raises CheckpointError if there is none."""
    folder = located(path)
    if is_whole(folder):
        return folder
    found = latest(folder)
    if found is None:
        raise CheckpointError(f"{folder}: holds no checkpoint")
    return found


def begin(folder: Location, job: str) -> Location:
    """Makes the folder of the next checkpoint. Raises CheckpointError, OSError.

    job: whose checkpoints these are; those of another would be taken for this one's, or removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_job(folder, job)
    there = numbered(folder)
    first = int(there[-1].name) + 1 if there else 1
    for number in range(first, first + MOST_TAKEN):
        path = folder / f"{number:0{DIGITS}d}"
        # Else it was taken by another save of this moment, or it is a file.
        with suppress(FileExistsError):
            make_folder(path)
            return path
    raise CheckpointError(f"{folder}: the numbers from {first} to {number} are taken by what is no checkpoint")


def _check_job(folder: Location, job: str) -> None:
    newest = latest(folder)
    if newest is not None and read_manifest(newest).job != job:
        raise CheckpointError(
            f"{newest / MANIFEST}: is a checkpoint of another job: save into a folder of its own, or go on from it "
            "(pm.load) before saving"
        )


def commit(path: Location, manifest: Manifest) -> None:
    """Makes ``path`` a checkpoint: all its files are on disk. Raises OSError; it is none then."""
    put_last(path / MANIFEST, manifest.encode())


def chain(path: Location) -> list[Location]:
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


def may_build_on(base: Location) -> bool:
    """Whether a checkpoint of what has changed since ``base`` is worth it: else one with every row is made, which later
    ones build on. All that ``base`` needs is looked at. Does not raise."""
    try:
        needed = chain(base)
        manifests = [read_manifest(path) for path in needed]
        sizes = [sum(file.size_bytes for file in manifest.files) for manifest in manifests]
        for path, manifest in zip(needed, manifests, strict=True):
            for file in manifest.files:
                open_tensor_file(path / file.name, file.size_bytes, file.checksums[""])
    except (CheckpointError, OSError):
        return False
    return len(needed) < MOST_CHAINED and sum(sizes[:-1]) <= sizes[-1]


def prune(folder: Location, keep: int | None) -> None:
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


def remove(path: Location) -> None:
    """A checkpoint, whole or not: first its manifest, so that at no time half of one looks whole. Raises OSError."""
    remove_whole(path, MANIFEST)
