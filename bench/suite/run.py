"""Runs parts of the suite, several times if wanted, and keeps what they measured."""

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from intentpm.bench.results import Row, write_results
from intentpm.bench.suite.cases import RUN, join_runs
from intentpm.bench.suite.parts import PARTS, Part, load

KIND = "suite"
"""``bench`` of the results files."""


@dataclass(slots=True)
class SuiteResults:
    """What parts measured: the results files' content, in the order in which the parts ran."""

    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Part -> what its results file holds; rows of all runs."""
    failures: dict[str, str] = field(default_factory=dict)
    """Part -> traceback of the run in which it failed."""

    @property
    def rows(self) -> Mapping[str, list[dict[str, Any]]]:
        """Part -> rows of all runs."""
        return {name: document["rows"] for name, document in self.documents.items()}


def run_suite(
    names: Sequence[str], effort: float, repeats: int, out: Path, report: Callable[[str], object]
) -> SuiteResults:
    """Measures the parts ``names``, one after the other, ``repeats`` times over.

    After each, ``out/NAME.json`` holds its rows of all runs so far. A part that fails is reported, keeps what it had
    measured before, and does not stop the others.
    """
    results = SuiteResults()
    parts = _load_all(names)
    rows: dict[str, list[dict[str, Any]]] = {part.name: [] for part in parts}
    seconds: dict[str, list[float]] = {part.name: [] for part in parts}
    for run in range(repeats):
        for part in parts:
            name, start = part.name, time.perf_counter()
            if name in results.failures:
                continue
            try:
                measured = part.measure(effort)
            except Exception as error:
                results.failures[name] = traceback.format_exc()
                report(f"{name}: FAILED: {error}")
                continue
            rows[name] += _numbered(measured, run)
            seconds[name].append(time.perf_counter() - start)
            config = {"part": name, "effort": effort, "repeats": run + 1, "seconds": seconds[name]}
            results.documents[name] = write_results(out / f"{name}.json", KIND, config, rows[name])
            times = f"run {run + 1} of {repeats}, " if repeats > 1 else ""
            report(f"{name}: {times}{len(measured)} cases in {seconds[name][-1]:.1f} s")
    return results


def read_suite(names: Sequence[str], out: Path) -> SuiteResults:
    """What earlier runs left in ``out``, of those parts that have a file there. Raises click.ClickException."""
    results = SuiteResults()
    for name in names:
        path = out / f"{name}.json"
        if not path.exists():
            continue
        try:
            document = json.loads(path.read_text())
            if (document["bench"], document["config"]["part"]) != (KIND, name):
                raise ValueError("it is of something else")
            results.documents[name] = document
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise click.ClickException(f"{path}: is not a results file of part {name} ({error})") from error
    if not results.documents:
        raise click.ClickException(f"{out}: has no results of {', '.join(names)}")
    return results


def _load_all(names: Sequence[str]) -> list[Part]:
    return [load(name) for name in sorted(dict.fromkeys(names), key=list(PARTS).index)]


def _numbered(rows: Sequence[Row], run: int) -> list[dict[str, Any]]:
    return [asdict(replace(row, facts={**row.facts, RUN: run})) for row in rows]


def draw_part(part: Part, rows: Sequence[dict[str, Any]], figure: Any) -> None:
    """The part's plot, from rows of any number of runs."""
    if part.draw is None:
        raise LookupError(f"part {part.name} has no plot")
    part.draw(join_runs(rows), figure)
