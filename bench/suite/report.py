"""What a run of the suite leaves for people: the table of targets, a page of all cases, and plots."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from intentpm.bench.results import describe_environment
from intentpm.bench.suite.cases import describe_case, join_runs
from intentpm.bench.suite.parts import PARTS, load
from intentpm.bench.suite.run import SuiteRun
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


def write_pages(done: SuiteRun, verdicts: Sequence[Verdict], out: Path) -> list[Path]:
    """Writes ``targets.md``, and ``NAME.md`` and ``NAME.png`` of each part; returns what it wrote."""
    out.mkdir(parents=True, exist_ok=True)
    machine = describe_environment()
    runs = f"medians of {done.repeats} runs" if done.repeats > 1 else "one run"
    heading = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}, "
        f"commit {machine['commit']}, {machine['time']}; {runs}, effort {done.effort:g}.\n"
    )
    table = out / "targets.md"
    table.write_text(f"# Targets\n\n{heading}\n{markdown_table(verdicts)}\n{summary(verdicts)}.\n")
    return [table, *(path for name in done.rows for path in _write_part(done, name, heading, out))]


def _write_part(done: SuiteRun, name: str, heading: str, out: Path) -> list[Path]:
    lines = ["| case | unit | median | 99 % | samples |", "| --- | --- | ---: | ---: | ---: |"]
    for row in join_runs(done.rows[name]):
        unit, samples = row["unit"], row["samples"]
        middle, tail = (
            plain(scaled(float(np.quantile(samples, share)), unit)) if samples else "-" for share in (0.5, 0.99)
        )
        lines.append(f"| {describe_case(row)} | {shown_unit(unit)} | {middle} | {tail} | {len(samples)} |")
    page = out / f"{name}.md"
    page.write_text(f"# {PARTS[name]}\n\n{heading}\n" + "\n".join(lines) + "\n")
    if load(name).draw is None:
        return [page]
    from intentpm.bench.plots import draw

    picture = out / f"{name}.png"
    draw(out / f"{name}.json", picture)
    return [page, picture]
