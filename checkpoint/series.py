"""Checkpoints that follow each other in one folder, numbered from 1 on.

    runs/7/000012/manifest.json      the newest
    runs/7/000012/rank-0000.safetensors ...
    runs/7/000013/                   being written, or left behind by a save that was killed: no manifest

A save makes the folder of the next number, by which it is the only one that writes there; the manifest ends it. The
next save of the same job removes what earlier ones left behind.

``rank 0`` alone makes, ends and removes checkpoints; the other ranks only write files into the folder they are told.
"""

import os
from collections.abc import Callable
from contextlib import suppress

from intentpm.checkpoint.manifest import MANIFEST, Manifest, NewerFormatError, read_manifest
from intentpm.checkpoint.remote_tensor_file import open_tensor_file
from intentpm.checkpoint.storage import (
    Location,
    RemotePath,
    folders_in,
    is_file,
    located,
    make_folder,
    put_last,
    remove_whole,
)
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
        return is_file(path / MANIFEST)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be looked at ({error.strerror or error})") from error


def latest(folder: str | os.PathLike[str]) -> Location | None:
    """The newest checkpoint in a folder of them whose manifest is not damaged; None: there is none yet.

    Looks at names and manifests alone: ``verify`` says whether every byte is right.
    Raises CheckpointError where the folder cannot be looked at, where all manifests there are damaged, and where the
    newest is of a later intentpm: who would begin anew then, or go back, has to say so.
    """
    place, damage = located(folder), None
    for path in _newest_first(place):
        try:
            read_manifest(path)
        except NewerFormatError:
            raise
        except CheckpointError as error:
            damage = damage or error
        else:
            return path
    if damage is not None:
        raise damage
    return None


def _newest_first(folder: Location) -> list[Location]:
    """Those that were ended. Raises CheckpointError."""
    try:
        found = numbered(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be looked at ({error.strerror or error})") from error
    return [path for path in reversed(found) if is_whole(path)]


def find(path: str | os.PathLike[str]) -> Location:
    """The checkpoint that ``path`` is, or the newest of those in it. Raises CheckpointError: none is; as ``latest``."""
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
    there = numbered(folder)
    if _is_of_job(folder, job):
        _remove_unfinished(folder)  # they may take what room there is
    first = int(there[-1].name) + 1 if there else 1
    for number in range(first, first + MOST_TAKEN):
        path = folder / f"{number:0{DIGITS}d}"
        # Else it was taken by another save of this moment, or it is a file.
        with suppress(FileExistsError):
            make_folder(path)
            return path
    raise CheckpointError(f"{folder}: the numbers from {first} to {number} are taken by what is no checkpoint")


def _is_of_job(folder: Location, job: str) -> bool:
    """False: it has no checkpoints yet. Raises CheckpointError: they are another's, or cannot be read."""
    newest = latest(folder)
    if newest is not None and read_manifest(newest).job != job:
        raise CheckpointError(
            f"{newest / MANIFEST}: is a checkpoint of another job: save into a folder of its own, or go on from it "
            "(pm.load) before saving"
        )
    return newest is not None


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


def is_right(path: Location, place: int, size: int, live: Callable[[], None]) -> bool:
    """That no byte of it is damaged, of this rank's share of its files; at a URL that is taken for granted. Does not
    raise.

    place: of this rank among the ``size`` that share them. live: called now and then.
    """
    if isinstance(path, RemotePath):
        return True
    try:
        for file in read_manifest(path).files[place::size]:
            tensors = open_tensor_file(path / file.name, file.size_bytes, file.checksums[""])
            if any(tensors.checksum(name, live) != crc for name, crc in file.checksums.items() if name):
                return False
    except (CheckpointError, OSError):
        return False
    return True


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
    killed have left behind; nothing that it cannot read. Raises OSError, CheckpointError; what was to be kept is.
    """
    _remove_unfinished(folder)
    if keep is None:
        return
    newest_first = [path for path in _newest_first(folder) if _is_readable(path)]
    kept = {needed for path in newest_first[:keep] for needed in chain(path)}
    for path in reversed(newest_first):
        if path not in kept:
            remove(path)


def _remove_unfinished(folder: Location) -> None:
    for path in numbered(folder):
        if not is_whole(path):
            remove(path)


def _is_readable(path: Location) -> bool:
    try:
        read_manifest(path)
    except CheckpointError:
        return False
    return True


def remove(path: Location) -> None:
    """A checkpoint, whole or not: first its manifest, so that at no time half of one looks whole. Raises OSError."""
    remove_whole(path, MANIFEST)
