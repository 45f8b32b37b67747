"""What a run of the suite leaves for people: the table of targets, a page of all cases, and plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intentpm.bench.plots import save
from intentpm.bench.suite.cases import describe_case, join_runs
from intentpm.bench.suite.parts import PARTS, load
from intentpm.bench.suite.run import SuiteResults
from intentpm.bench.suite.targets import Verdict
from intentpm.bench.suite.units import plain, scaled, shown_unit

COLUMNS = ("what", "limit", "baseline", "intentpm", "ratio", "target", "reached?")
ALIGNMENT = "| --- | ---: | ---: | ---: | ---: | ---: | --- |"


def cells(verdict: Verdict) -> tuple[str, ...]:
    """The row of the table."""
    return (
        verdict.what, verdict.limit, verdict.baseline, verdict.own, verdict.ratio, verdict.target, verdict.verdict
    )  # fmt: skip


def summary(verdicts: Sequence[Verdict]) -> str:
    """Such as "12 of 15 targets reached, 17 not measured"."""
    measured = [verdict for verdict in verdicts if verdict.reached is not None]
    reached = sum(verdict.reached is True for verdict in measured)
    missing = len(verdicts) - len(measured)
    return f"{reached} of {len(measured)} measured targets reached" + (f", {missing} not measured" if missing else "")


def markdown_table(verdicts: Sequence[Verdict]) -> str:
    """The table of targets."""
    lines = ["| " + " | ".join(COLUMNS) + " |", ALIGNMENT]
    lines += ["| " + " | ".join(cells(verdict)) + " |" for verdict in verdicts]
    return "\n".join(lines) + "\n"


def write_pages(results: SuiteResults, verdicts: Sequence[Verdict], out: Path) -> None:
    """Writes ``targets.md``, and ``NAME.md`` and ``NAME.png`` of each part."""
    out.mkdir(parents=True, exist_ok=True)
    heading = _heading(list(results.documents.values()))
    page = f"# Targets\n\n{heading}\n\n{markdown_table(verdicts)}\n{summary(verdicts)}.\n"
    (out / "targets.md").write_text(page)
    for name, document in results.documents.items():
        _write_part(name, document, out)


def _heading(documents: Sequence[Mapping[str, Any]]) -> str:
    """Machine, versions, number of runs."""

    def all_of(place: str, name: str) -> str:
        return ", ".join(dict.fromkeys(str(document[place][name]) for document in documents))

    return (
        f"{all_of('environment', 'cpu')}, {all_of('environment', 'cores')} cores, {all_of('environment', 'system')}, "
        f"Python {all_of('environment', 'python')}, commit {all_of('environment', 'commit')}. "
        f"Runs: {all_of('config', 'repeats')}; effort {all_of('config', 'effort')}."
    )


def _write_part(name: str, document: Mapping[str, Any], out: Path) -> None:
    lines = ["| case | unit | median | 99 % | samples |", "| --- | --- | ---: | ---: | ---: |"]
    for row in join_runs(document["rows"]):
        unit, samples = row["unit"], row["samples"]
        middle, tail = (
            plain(scaled(float(np.quantile(samples, share)), unit)) if samples else "-" for share in (0.5, 0.99)
        )
        lines.append(f"| {describe_case(row)} | {shown_unit(unit)} | {middle} | {tail} | {len(samples)} |")
    heading = _heading([document])
    (out / f"{name}.md").write_text(f"# {name}: {PARTS[name]}\n\n{heading}\n\n" + "\n".join(lines) + "\n")
    if load(name).draw is not None:
        save(document, out / f"{name}.png")
