"""Tells the process that is a rank from those that inherited its variables: children, theirs, workers of a pool.

A launcher's variables say "you are rank 1 of that job" to whoever inherits them. The process that joins as that rank
therefore leaves a mark: in its environment, where what it starts will find it; and as a name in its memory map, for
what was given a copy of the environment from before (``subprocess`` with ``env=``, a forkserver that started earlier).
The mark names the rank of every launcher whose variables are set, so that a child under a launcher of its own is free.

Assumptions
    * Linux's /proc. Where an ancestor cannot be read there (another user's), its mark is not seen.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path

from intentpm.foundation.errors import ConfigError
from intentpm.launch.launchers import LAUNCHER_VARIABLES, launchers_set

MARK_VARIABLE = "INTENTPM_RANK_PROCESS"
_MAP_NAME = "intentpm-rank:"
_ANCESTORS = 64
_LAUNCHER_NAMES = {"local": "`intentpm run`", "torchrun": "torchrun", "mpi": "mpirun", "slurm": "srun"}

_marks: set[str] = set()
"""The names in this process's memory map, for as long as it lives; changed by the thread that calls ``init``."""


def find_launcher(environment: Mapping[str, str]) -> str:
    """The launcher of this process: the innermost whose rank no other process is; "alone" when none is set.

    Raises ConfigError when this process has only inherited its variables from a rank.
    """
    launchers = launchers_set(environment)
    if not launchers:
        return "alone"
    taken = _ranks_of_others(environment)
    for launcher in launchers:
        if _identity(launcher, environment) not in taken:
            return launcher
    raise ConfigError(_explain(launchers[0], environment, taken[_identity(launchers[0], environment)]))


def mark_process(environment: MutableMapping[str, str]) -> None:
    """Marks this process as the rank that ``environment`` says it is; nothing where no launcher is set."""
    identities = ",".join(_identity(launcher, environment) for launcher in launchers_set(environment))
    if not identities:
        return
    environment[MARK_VARIABLE] = f"{_process(os.getpid())} {identities}"
    if identities not in _marks:
        _write_into_memory_map(_MAP_NAME + identities)
        _marks.add(identities)


def _write_into_memory_map(name: str) -> None:
    """Maps a page that has no other use than its name; /proc/<pid>/maps shows it."""
    import ctypes
    import mmap

    map_page = ctypes.CDLL(None).mmap
    map_page.restype = ctypes.c_void_p
    map_page.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    descriptor = os.memfd_create(name)
    try:
        os.ftruncate(descriptor, mmap.PAGESIZE)
        # Not mmap.mmap, which keeps the descriptor.
        map_page(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_PRIVATE, descriptor, 0)
    finally:
        os.close(descriptor)


def _ranks_of_others(environment: Mapping[str, str]) -> dict[str, str]:
    """Identity -> the process that is that rank, as far as this process can see."""
    found: dict[str, str] = {}
    process, _, identities = environment.get(MARK_VARIABLE, "").partition(" ")
    if process and process != _process(os.getpid()):
        found.update(dict.fromkeys(identities.split(","), process.partition(".")[0]))
    for ancestor in _ancestors():
        found.update(dict.fromkeys(_names_in_map(ancestor), str(ancestor)))
    return found


def _identity(launcher: str, environment: Mapping[str, str]) -> str:
    """Of the rank that ``launcher`` says this process is."""
    said = "\0".join(f"{name}={environment.get(name, '')}" for name in LAUNCHER_VARIABLES[launcher])
    return f"{launcher}={hashlib.sha256(said.encode()).hexdigest()[:16]}"


def _process(pid: int) -> str:
    """Names process ``pid`` for ever: its number and when it started. It keeps both when it becomes another program."""
    try:
        # After the name, which is in brackets and may contain anything, field 3 comes first.
        return f"{pid}.{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return f"{pid}."


def _ancestors() -> Iterable[int]:
    pid = os.getppid()
    for _ in range(_ANCESTORS):
        if pid <= 0:
            return
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            return


def _names_in_map(pid: int) -> Iterable[str]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, found, name = line.partition(f"/memfd:{_MAP_NAME}")
        if found:
            yield from name.removesuffix(" (deleted)").split(",")


def _explain(launcher: str, environment: Mapping[str, str], process: str) -> str:
    said = ", ".join(f"{name}={environment[name]}" for name in LAUNCHER_VARIABLES[launcher] if name in environment)
    return (
        f"this process ({os.getpid()}) has inherited the variables of a rank that {_LAUNCHER_NAMES[launcher]} started "
        f"({said}), but process {process} is that rank. For a job of its own: set INTENTPM_LAUNCHER=alone (one rank), "
        "or start it with env=intentpm.clean_environment(), under a launcher of its own where it needs several ranks"
    )
