"""``intentpm bench suite``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from intentpm.bench.benchmarks import require_pytest_benchmark
from intentpm.bench.output import OutFolder
from intentpm.bench.results import describe_environment, source_commit
from intentpm.bench.suite.run import PARTS, read_runs, run_suite
from intentpm.bench.suite.targets import COLUMNS, TARGETS, Verdict, judge

WIDEST = 200
"""Columns of a table that goes into a file or a pipe."""


@click.command()
@click.option("--part", "names", type=click.Choice(list(PARTS)), multiple=True, help="May be repeated [all].")
@click.option("--effort", type=click.FloatRange(0.01), default=1.0, show_default=True,
              help="1: the full run; less takes fewer samples and smaller sizes.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Runs; their median counts.")
@click.option("--out", type=OutFolder(), default=Path("results/bench"),
              show_default=True)  # fmt: skip
@click.option("--no-run", is_flag=True, help="Measure nothing: judge and draw what earlier runs left in OUT.")
def suite(names: tuple[str, ...], effort: float, repeats: int, out: Path, no_run: bool) -> None:
    """Run the benchmark suite: a file of pytest-benchmark's per part and run, a plot per part, the table of targets."""
    from intentpm.bench.plots import save_benchmarks

    if not no_run:
        require_pytest_benchmark()
    failures = {} if no_run else run_suite(names or tuple(PARTS), effort, repeats, out, click.echo)
    try:
        runs = read_runs(out)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if not runs and not failures:
        raise click.ClickException(f"{out}: has no results")
    verdicts = [judge(target, [[case for part in run.values() for case in part] for run in runs.values()])
                for target in TARGETS]  # fmt: skip
    if runs:
        (out / "targets.md").write_text(_page(verdicts, len(runs)))
    for name in {name: None for run in runs.values() for name in run}:
        save_benchmarks([case for run in runs.values() for case in run.get(name, [])], out / f"{name}.png")
    _show(verdicts)
    click.echo(f"{summary(verdicts)}; results: {out}/")
    for name, text in failures.items():
        click.echo(f"part {name} failed:\n{text}", err=True)
    if failures:
        sys.exit(1)


def summary(verdicts: Sequence[Verdict]) -> str:
    """Such as "12 of 15 measured targets reached, 17 not measured"."""
    measured = [verdict for verdict in verdicts if verdict.reached is not None]
    reached, missing = sum(verdict.reached is True for verdict in measured), len(verdicts) - len(measured)
    return f"{reached} of {len(measured)} measured targets reached" + (f", {missing} not measured" if missing else "")


def _page(verdicts: Sequence[Verdict], runs: int) -> str:
    machine = describe_environment()
    lines = [
        "# Targets", "", f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python "
        f"{machine['python']}, commit {source_commit()}. Runs: {runs}.", "",
        *("| " + " | ".join(cells) + " |" for cells in (COLUMNS, ("---", *["---:"] * 5, "---"))),
        *("| " + " | ".join(verdict.cells) + " |" for verdict in verdicts), "", f"{summary(verdicts)}.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _show(verdicts: Sequence[Verdict]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in COLUMNS:
        justify: Any = "left" if column in ("what", "reached?") else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    missing: dict[str, list[str]] = {}
    colours = {True: "green", False: "red", None: "yellow"}
    for verdict in verdicts:
        *plain, last = verdict.cells
        shown, _, why = last.partition(": ")
        table.add_row(*plain, f"[{colours[verdict.reached]}]{shown}[/]")
        if why:
            missing.setdefault(why, []).append(verdict.cells[0])
    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=WIDEST)).print(table)
    for why, targets in missing.items():
        click.echo(f"{why}: {targets[0] if len(targets) == 1 else f'{len(targets)} targets'}")
