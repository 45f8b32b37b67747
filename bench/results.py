"""Results as JSON files: of training tasks, and of benches that time nothing.

A file holds ``bench`` (what ran), ``environment`` (where), ``config`` (its options) and ``rows`` (what came out), such
as one per epoch. Measured times are in files of pytest-benchmark's: ``benchmarks.py``.
"""

import json
import math
import os
import platform
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from intentpm.bench.output import save_file

GIT_TIMEOUT_S = 5
PACKAGES = ("intentpm", "numpy", "torch", "mpi4py", "ucxx-cu12", "libucx-cu12")


def describe_environment() -> dict[str, Any]:
    """The commit, machine and versions a result belongs to."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": source_commit(),
        "host": socket.gethostname(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def source_commit() -> str | None:
    """The commit of the source tree this module lies in, "+" appended if it was changed since; None if there is none.

    An editable install points into its source tree; an ordinary one has only its version.
    """
    folder = Path(__file__).resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit or not _git(folder, "ls-files", Path(__file__).name):
        return None
    return commit[:12] + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def cpu_model() -> str:
    """The processor's name, as the kernel reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def write_results(
    path: Path, bench: str, config: Mapping[str, Any], rows: Sequence[Any], **more: Any
) -> dict[str, Any]:
    """Writes the results file (its folder is made if need be) and returns what it holds, a ``results_document``.

    Raises OutputError, which says where the contents were kept instead.
    """
    document = results_document(bench, config, rows, **more)
    save_file(path, as_json(document))
    return document


def results_document(bench: str, config: Mapping[str, Any], rows: Sequence[Any], **more: Any) -> dict[str, Any]:
    """What a results file holds.

    ``rows`` are dataclass objects or mappings. A number that JSON cannot hold (nan) becomes null.
    """
    document = {
        "bench": bench,
        "environment": describe_environment(),
        "config": dict(config),
        "rows": [row if isinstance(row, Mapping) else asdict(row) for row in rows],
        **more,
    }
    plain: dict[str, Any] = _plain(document)
    return plain


def as_json(document: Mapping[str, Any]) -> bytes:
    """The text of a results file."""
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    """The same value in types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str:
    try:
        run = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()
