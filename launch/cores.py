"""How many cores this process may use."""

import math
import os
from pathlib import Path


def usable_cores() -> int:
    """Cores of the affinity mask, or the cgroup's quota rounded up where that is less; at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = cgroup_cores()
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def cgroup_cores(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The CPU quota of this process's cgroup in cores (v2 or v1); None: unlimited or unknown."""
    try:
        quota, period = (root / _cgroup_path() / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((root / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((root / "cpu/cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else None
    except (OSError, ValueError):
        return None


def _cgroup_path() -> str:
    """This process's path below the v2 root ("" in a container, where the root is its own group)."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line[3:].strip("/")
    return ""
