"""Limits of this machine that slow UCX down or stop it, recognised and explained in plain words."""

import os
import pathlib
import resource

SMALL_SHARED_MEMORY_BYTES = 64 << 20
"""Below this, a few ranks' receive queues (about 4 MiB each) and bounce buffers may not fit."""


def explain_limits() -> list[str]:
    """One line per limit found, each with its remedy; empty when nothing stands in the way."""
    lines = (_shared_memory(), _locked_memory(), _single_copy())
    return [line for line in lines if line]


def _shared_memory(folder: str = "/dev/shm") -> str | None:
    if not os.access(folder, os.W_OK):
        return f"{folder} is missing or not writable: ranks of one host cannot share POSIX memory; mount a tmpfs there"
    status = os.statvfs(folder)
    free_bytes = status.f_bavail * status.f_frsize
    if free_bytes < SMALL_SHARED_MEMORY_BYTES:
        return (
            f"{folder} has {free_bytes >> 20} MiB free: too little for shared memory between ranks (they fall back to "
            "System V memory or TCP, or fail to start); enlarge it (docker run --shm-size=1g) or set UCX_TLS=tcp"
        )
    return None


def has_rdma_devices(folder: str = "/sys/class/infiniband") -> bool:
    """Whether this host has InfiniBand or RoCE devices."""
    try:
        return any(pathlib.Path(folder).iterdir())
    except OSError:
        return False


def _locked_memory(devices: str = "/sys/class/infiniband") -> str | None:
    limit_bytes = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    # Only RDMA devices pin memory.
    if not has_rdma_devices(devices) or limit_bytes == resource.RLIM_INFINITY or limit_bytes >= 1 << 30:
        return None
    return (
        f"only {limit_bytes >> 10} KiB may be locked in memory, and this host has RDMA devices: raise it (ulimit -l "
        "unlimited, or docker run --ulimit memlock=-1), or registration fails and UCX uses slower transports"
    )


def _single_copy(scope: str = "/proc/sys/kernel/yama/ptrace_scope") -> str | None:
    try:
        restricted = pathlib.Path(scope).read_text().strip() != "0"
    except OSError:
        return None
    if not restricted or os.geteuid() == 0:
        return None
    return (
        "the kernel's yama/ptrace_scope keeps one process from reading another's memory (CMA): large messages between "
        "ranks of one host are copied twice; allow it with: sysctl kernel.yama.ptrace_scope=0"
    )
