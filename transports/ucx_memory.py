"""Shared memory that UCX will take on this host, compared with what there is before UCX is opened.

UCX opens a receive queue per rank in POSIX shared memory and one in System V's, and uses either. Where one of them runs
out while it opens, UCX 1.22 dies of a null pointer (POSIX: fewer than 16 MiB left after the first of two segments), or
fails as a whole although the other would do. So what will not fit is left out by ``UCX_TLS``.
"""

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from intentpm.foundation.errors import TransportUnavailableError

MIB = 1 << 20
SEGMENTS_PER_RANK = 3  # of each kind: queue, buffers, and one for a moment
BUFFERS = 512  # of a queue, at first
_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SHARED = ("posix", "sysv", "xpmem")
_ALIASES = {"mm": _SHARED, "sm": (*_SHARED, "knem", "cma"), "shm": (*_SHARED, "knem", "cma")}
_DEVICES = {"xpmem": "/dev/xpmem", "knem": "/dev/knem"}
_CARRIES_NOTHING = {"self", "cma", "knem", "cuda_copy", "cuda_ipc", "gdr_copy", "rocm_copy", "rocm_ipc", "rocm_gdr"}
"""Between ranks, alone."""


@dataclass(frozen=True)
class UcxPlan:
    """How to open UCX here."""

    options: Mapping[str, str] = field(default_factory=dict)
    """For ``UcxTransport(options=...)``."""
    note: str = ""
    """What is left out, and why."""


@dataclass(frozen=True)
class _Host:
    """Where the limits of shared memory are read; of tests, other places."""

    shm: str
    kernel: Path = Path("/proc/sys/kernel")
    sysv_segments: Path = Path("/proc/sysvipc/shm")


def plan_ucx(local_ranks: int, environment: Mapping[str, str] = os.environ) -> UcxPlan:
    """What ``local_ranks`` ranks of this host, none of which has opened UCX yet, should leave out; normally nothing.

    Raises TransportUnavailableError where UCX_TLS allows no way between ranks, or none but what has to be left out.
    """
    host = _Host(environment.get("UCX_POSIX_DIR") or "/dev/shm")
    objections = {
        "posix": _posix_objection(host.shm, local_ranks, environment),
        "sysv": _sysv_objection(host, local_ranks, environment),
    }
    wanted = environment.get("UCX_TLS") or "all"
    if set(wanted.split(",")) <= _CARRIES_NOTHING:
        raise TransportUnavailableError(f"UCX_TLS={wanted} allows ucx no way between ranks: add tcp, or unset it")
    left_out = [name for name, why in objections.items() if why and _is_wanted(name, wanted)]
    if not left_out:
        return UcxPlan()
    reasons = "; ".join(f"without {name} shared memory, because {objections[name]}" for name in left_out)
    return UcxPlan({"TLS": _without(left_out, wanted, reasons)}, reasons)


def bytes_per_rank(kind: str, environment: Mapping[str, str]) -> int:
    """Of shared memory of one kind; twice what a rank takes at first, as UCX adds buffers when they run out."""

    def size(name: str, default: int) -> int:
        value = environment.get(f"UCX_{kind.upper()}_{name}") or environment.get(f"UCX_MM_{name}")
        return default if value is None else _parse_size(value, default)

    queue = size("FIFO_SIZE", 256)
    buffers = max(queue, size("RX_BUFS_GROW", BUFFERS))
    return 2 * (queue * size("FIFO_ELEM_SIZE", 128) + buffers * (size("SEG_SIZE", 8256) + 128))


def _posix_objection(folder: str, local_ranks: int, environment: Mapping[str, str]) -> str:
    if not os.access(folder, os.W_OK):
        return f"{folder} is missing or not writable"
    status = os.statvfs(folder)
    free_bytes = status.f_bavail * status.f_frsize
    # UCX turns away from less than this, but looks anew for every segment.
    floor = _parse_size(environment.get("UCX_POSIX_SHM_MIN_SIZE", ""), 16 * MIB)
    needed_bytes = floor + local_ranks * bytes_per_rank("posix", environment)
    if free_bytes < needed_bytes:
        return (
            f"{folder} has {free_bytes // MIB} MiB free and {local_ranks} ranks may need {-(-needed_bytes // MIB)} "
            "(docker run --shm-size=1g gives more)"
        )
    if status.f_files and status.f_favail < SEGMENTS_PER_RANK * local_ranks:
        return f"{folder} has room for {status.f_favail} files{_and_needs(local_ranks, SEGMENTS_PER_RANK)}"
    return ""


def _sysv_objection(host: _Host, local_ranks: int, environment: Mapping[str, str]) -> str:
    try:
        largest, pages, segments = (int((host.kernel / name).read_text()) for name in ("shmmax", "shmall", "shmmni"))
        taken = [int(line.split()[3]) for line in host.sysv_segments.read_text().splitlines()[1:]]
    except (OSError, ValueError, IndexError):
        return "this kernel has none"
    per_rank = bytes_per_rank("sysv", environment)
    if largest < per_rank:
        return f"kernel.shmmax={largest} and a segment may need {per_rank}"
    left = segments - len(taken)
    if left < SEGMENTS_PER_RANK * local_ranks:
        return f"kernel.shmmni={segments} leaves {left} segments{_and_needs(local_ranks, SEGMENTS_PER_RANK)}"
    free_bytes = pages * resource.getpagesize() - sum(taken)
    if free_bytes < local_ranks * per_rank:
        return f"kernel.shmall={pages} leaves {free_bytes // MIB} MiB{_and_needs(local_ranks, -(-per_rank // MIB))}"
    return ""


def _and_needs(local_ranks: int, of_each: int) -> str:
    return f" and {local_ranks} ranks may need {of_each} each"


def _is_wanted(name: str, wanted: str) -> bool:
    listed = [part for item in wanted.lstrip("^").split(",") for part in _ALIASES.get(item, (item,))]
    return (name in listed) != wanted.startswith("^") or wanted == "all"


def _without(left_out: list[str], wanted: str, reasons: str) -> str:
    """``wanted`` as UCX_TLS, without ``left_out``."""
    if wanted == "all":
        return f"^{','.join(left_out)}"
    if wanted.startswith("^"):
        return f"{wanted},{','.join(left_out)}"
    kept: list[str] = []
    for item in wanted.split(","):
        there = [part for part in _ALIASES.get(item, ()) if os.path.exists(_DEVICES.get(part, "/"))]
        kept += [part for part in there or [item] if part not in left_out and part not in kept]
    if set(kept) <= _CARRIES_NOTHING:
        raise TransportUnavailableError(f"UCX_TLS={wanted} leaves ucx no way {reasons}")
    return ",".join(kept)


def _parse_size(text: str, default: int) -> int:
    """ "64k" -> 65536; ``default`` for what UCX alone understands."""
    number = text.strip().lower().removesuffix("b")
    unit = _UNITS.get(number[-1:], 0)
    digits = number[:-1] if unit else number
    return int(digits) * (unit or 1) if digits.isdecimal() else default
