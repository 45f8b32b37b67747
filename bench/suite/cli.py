"""``intentpm bench suite`` and ``intentpm bench compare``."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from intentpm.bench.output import OutFolder
from intentpm.bench.suite.parts import PARTS

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
    """Run the benchmark suite: a JSON file, a page and a plot per part, then the table of targets."""
    from intentpm.bench.suite.report import summary, write_pages
    from intentpm.bench.suite.run import read_suite, run_suite
    from intentpm.bench.suite.targets import judge_all

    chosen = names or tuple(PARTS)
    results = read_suite(chosen, out) if no_run else run_suite(chosen, effort, repeats, out, click.echo)
    verdicts = judge_all(results.rows)
    if results.documents:
        write_pages(results, verdicts, out)
    _show_targets(verdicts)
    click.echo(f"{summary(verdicts)}; results: {out}/")
    for name, text in results.failures.items():
        click.echo(f"part {name} failed:\n{text}", err=True)
    if results.failures:
        sys.exit(1)


def _show_targets(verdicts: list[Any]) -> None:
    from rich import box
    from rich.table import Table

    from intentpm.bench.suite.report import COLUMNS, cells

    table = Table(box=box.SIMPLE_HEAD)
    for column in COLUMNS:
        justify: Any = "left" if column in ("what", "reached?") else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    missing: dict[str, list[str]] = {}
    colours = {True: "green", False: "red", None: "yellow"}
    for verdict in verdicts:
        *plain, last = cells(verdict)
        shown, _, why = last.partition(": ")
        table.add_row(*plain, f"[{colours[verdict.reached]}]{shown}[/]")
        if why:
            missing.setdefault(why, []).append(verdict.what)
    _console().print(table)
    for why, targets in missing.items():
        click.echo(f"{why}: {targets[0] if len(targets) == 1 else f'{len(targets)} targets'}")


@click.command()
@click.argument("old", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("new", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--threshold", type=click.FloatRange(0), default=0.05, show_default=True,
              help="Relative change of the median that does not count.")  # fmt: skip
@click.option("--all/--changed", "show_all", default=True, show_default=True, help="Which cases to print.")
def compare(old: Path, new: Path, threshold: float, show_all: bool) -> None:
    """Compare two results files case by case: OLD median, NEW median, ratio, and whether that is more than noise."""
    from rich import box
    from rich.table import Table

    from intentpm.bench.suite.compare import compare as compare_rows
    from intentpm.bench.suite.compare import rows_with_samples
    from intentpm.bench.suite.units import plain, with_unit

    documents = [_read(old), _read(new)]
    before, after = (rows_with_samples(document) for document in documents)
    compared = compare_rows(before, after, threshold)
    if not compared:
        raise click.ClickException(f"{old} and {new} have no measured case in common")
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("case", "old", "new", "ratio", "verdict"):
        justify: Any = "left" if column in ("case", "verdict") else "right"
        table.add_column(column, justify=justify, no_wrap=column != "case")
    for one in compared:
        if show_all or one.verdict in ("better", "worse"):
            sizes = (with_unit(one.old, one.unit), with_unit(one.new, one.unit))
            table.add_row(one.case, *sizes, plain(one.ratio), one.verdict)
    if table.row_count:
        _console().print(table)
    counts = {verdict: sum(one.verdict == verdict for one in compared) for verdict in ("better", "worse", "same")}
    few = len(compared) - sum(counts.values())
    text = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    click.echo(f"{len(compared)} cases in common: {text}" + (f", {few} with too few samples" if few else ""))
    _warn_of_other_machine(*documents)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise click.ClickException(f"{path}: is not a readable results file ({error})") from error
    if not isinstance(document, dict) or "rows" not in document:
        raise click.ClickException(f"{path}: is not a results file")
    return document


def _warn_of_other_machine(old: dict[str, Any], new: dict[str, Any]) -> None:
    for name in ("host", "cpu", "cores"):
        was, is_now = (document.get("environment", {}).get(name) for document in (old, new))
        if was != is_now:
            click.echo(f"note: measured on different machines ({name} {was} and {is_now})")


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDEST)
