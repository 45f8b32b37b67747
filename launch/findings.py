"""What a check of ``intentpm doctor`` reports."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from intentpm.launch.launchers import clean_environment

Verdict = Literal["ok", "warn", "missing", "broken"]
"""ok; works but could be better; optional and not there; intentpm cannot work."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    verdict: Verdict
    found: str
    fix: str = ""
    """What to do about it; "" where there is nothing to do."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Numbers and names for ``--json``."""


def run_tool(argv: Sequence[str], timeout_s: float, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a program as if no launcher had started us, and ends it with all its children at the deadline.

    Never raises: a program that cannot start has return code 127, one that was too slow 124.
    """
    environment = {name: value for name, value in clean_environment().items() if not name.startswith("INTENTPM_")}
    try:
        process = subprocess.Popen(
            argv,
            env={**environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return subprocess.CompletedProcess(argv, 127, "", str(error))
    try:
        out, err = process.communicate(timeout=timeout_s)
        code = process.returncode
    except subprocess.TimeoutExpired:
        _kill_session(process)
        out, err = process.communicate()
        code, err = 124, f"{err}\nno end within {timeout_s:g} s"
    except BaseException:
        _kill_session(process)
        process.communicate()
        raise
    return subprocess.CompletedProcess(argv, code, out, err)


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def format_bytes(size_bytes: float) -> str:
    """ "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.4g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.4g} TiB"


def _kill_session(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def version_of(*packages: str) -> str | None:
    """Of the first of some distributions that is installed."""
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None
