"""Runs parts of the suite, several times if wanted, and keeps what they measured."""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from intentpm.bench.results import Row, write_results
from intentpm.bench.suite.cases import RUN, join_runs
from intentpm.bench.suite.parts import Part, PartNotFoundError, load

KIND = "suite"
"""``bench`` of the results files."""


@dataclass(slots=True)
class SuiteRun:
    """What came out so far."""

    effort: float
    repeats: int
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Part -> rows of all runs, as results files hold them."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Part -> how long each run took."""
    missing: list[str] = field(default_factory=list)
    """Parts whose module is not installed."""
    failures: dict[str, str] = field(default_factory=dict)
    """Part -> traceback of the run in which it failed."""


def run_suite(
    names: Sequence[str], effort: float, repeats: int, out: Path, report: Callable[[str], object]
) -> SuiteRun:
    """Measures the parts ``names``, one after the other, ``repeats`` times over.

    After each, ``out/NAME.json`` holds its rows of all runs so far. A part that fails is reported, keeps what it had
    measured before, and does not stop the others.
    """
    done = SuiteRun(effort, repeats)
    parts = _load_all(names, done, report)
    for run in range(repeats):
        for part in parts:
            if part.name in done.failures:
                continue
            start = time.perf_counter()
            try:
                rows = part.measure(effort)
            except Exception as error:
                done.failures[part.name] = traceback.format_exc()
                report(f"{part.name}: FAILED: {error}")
                continue
            seconds = time.perf_counter() - start
            _keep(done, part.name, run, rows, seconds)
            _write(done, part.name, out)
            times = f"run {run + 1} of {repeats}, " if repeats > 1 else ""
            report(f"{part.name}: {times}{len(rows)} cases in {seconds:.1f} s")
    return done


def _load_all(names: Sequence[str], done: SuiteRun, report: Callable[[str], object]) -> list[Part]:
    parts = []
    for name in names:
        try:
            parts.append(load(name))
        except PartNotFoundError:
            done.missing.append(name)
            report(f"{name}: is not part of this installation")
    return parts


def _keep(done: SuiteRun, name: str, run: int, rows: Sequence[Row], seconds: float) -> None:
    numbered = [asdict(replace(row, facts={**row.facts, RUN: run})) for row in rows]
    done.rows.setdefault(name, []).extend(numbered)
    done.seconds.setdefault(name, []).append(seconds)


def _write(done: SuiteRun, name: str, out: Path) -> None:
    config = {"part": name, "effort": done.effort, "repeats": done.repeats, "seconds": done.seconds[name]}
    write_results(out / f"{name}.json", KIND, config, done.rows[name])


def draw_part(part: Part, rows: Sequence[dict[str, Any]], figure: Any) -> None:
    """The part's plot, from rows of any number of runs."""
    if part.draw is None:
        raise LookupError(f"part {part.name} has no plot")
    part.draw(join_runs(rows), figure)
