"""Measured cases in the JSON of pytest-benchmark, whether that or ``intentpm bench suite`` has measured them.

``extra_info`` of a case holds

* ``operation``: what was done, such as "pull" or "due to local"; ``situation``, where there are several.
* ``by``: "intentpm", or the baseline or limit measured in the same run ("np.take", "memcpy", "mpi4py Win.Get").
* ``transport``: "ucx-shm", "ucx-tcp", "ucx" (the way it chooses itself), "tcp", "sim" or "none". ``ranks``: of the job.
* sizes: ``keys`` (per call), ``dim``, ``num_keys``, ``threads``, ``replicas`` and the like; whole numbers.
* ``unit`` of the data: "s", "s/row" (a throughput), "B", "share", "messages". Less is better in all of them.
* ``commit``, ``notes``: neither tells cases apart.

Cases that differ in ``by`` only share a group.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from intentpm.bench.output import save_file
from intentpm.bench.results import source_commit

SUBJECT = "intentpm"
"""``by`` of what is ours."""
UNNAMED = ("operation", "by", "unit", "commit", "notes")
"""Not in the description of a case, or in another place of it."""

Benchmark = Mapping[str, Any]
"""One of ``benchmarks`` of a file."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a part of the suite has measured."""

    operation: str
    samples: Sequence[float]
    """In ``unit``, in the order they were taken."""
    by: str = SUBJECT
    unit: str = "s"
    info: Mapping[str, Any] = field(default_factory=dict)
    """The rest of ``extra_info``."""


def describe_case(info: Mapping[str, Any]) -> str:
    """The group of a case: all but who did it, such as "pull, keys 100, dim 64, uniform"."""
    parts = [
        (f"{name} {value:,}" if isinstance(value, int) else str(value))
        for name, value in info.items()
        if name not in UNNAMED and value != "none"
    ]
    unit = info["unit"]
    return ", ".join([info["operation"], *parts]) + (f" [{unit}]" if unit != "s" else "")


def require_pytest_benchmark() -> None:
    """Raises click.ClickException, before anything is measured, where the results could not be written."""
    if find_spec("pytest_benchmark") is None:
        raise click.ClickException("pytest-benchmark is not installed: pip install 'intentpm[bench]'")


def write_benchmarks(path: Path, name: str, cases: Iterable[Case]) -> None:
    """Writes the file, as pytest-benchmark would. ``name``: of the part. Cases without a finite sample are left out.

    Raises OutputError, which says where the contents were kept instead.
    """
    from pytest_benchmark import __version__
    from pytest_benchmark.plugin import pytest_benchmark_generate_machine_info
    from pytest_benchmark.utils import get_commit_info, safe_dumps

    commit = source_commit()
    document = {
        "machine_info": pytest_benchmark_generate_machine_info(),
        "commit_info": get_commit_info(),
        "benchmarks": [found for case in cases if (found := _benchmark(name, case, commit))],
        "datetime": datetime.now(UTC).isoformat(),
        "version": __version__,
    }
    save_file(path, safe_dumps(document, indent=1).encode())


def _benchmark(name: str, case: Case, commit: str | None) -> dict[str, Any] | None:
    from pytest_benchmark.stats import Stats

    stats = Stats()
    stats.data = [float(sample) for sample in case.samples if math.isfinite(sample)]
    if not stats:
        return None
    info = {"operation": case.operation, "by": case.by, "unit": case.unit, **case.info, "commit": commit}
    group = describe_case(info)
    return {
        "group": group, "name": case.by, "fullname": f"{name}::{group}[{case.by}]", "params": None, "param": None,
        "extra_info": info, "options": {}, "stats": {**stats.as_dict(), "data": stats.data, "iterations": 1},
    }  # fmt: skip


def read_benchmarks(path: Path) -> list[Benchmark]:
    """The cases of a file of pytest-benchmark's. Raises ValueError: it is none, or does not hold our ``extra_info``."""
    document = json.loads(path.read_text())
    try:
        found = document["benchmarks"]
        for benchmark in found:
            benchmark["extra_info"]["operation"], benchmark["extra_info"]["by"], benchmark["stats"]["data"]
    except (LookupError, TypeError) as error:
        raise ValueError(f"{path}: is not a file of measured cases ({error!r})") from error
    return list(found)
