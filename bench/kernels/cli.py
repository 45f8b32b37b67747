"""``intentpm bench local``."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from intentpm.bench.results import Row, write_results

US = 1e6


@click.command()
@click.option("--num-keys", type=click.IntRange(1), default=1_000_000, show_default=True, help="Rows of the table.")
@click.option("--dim", type=click.IntRange(1), default=64, show_default=True, help="float32 values per row.")
@click.option("--keys", "batch_sizes", type=click.IntRange(1), multiple=True, help="Keys per call; may be repeated.")
@click.option("--zipf", is_flag=True, help="Also keys of a zipf distribution.")
@click.option("--fresh", is_flag=True, help="Also other keys in every call.")
@click.option("--repeats", type=click.IntRange(1), default=15, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("results"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON, and nothing else.")
def local(batch_sizes: tuple[int, ...], zipf: bool, fresh: bool, out: Path, as_json: bool, **options: Any) -> None:
    """Local pull, push and set of random rows, next to NumPy and PyTorch."""
    import intentpm
    from intentpm.bench.kernels.local_access import LocalAccessOptions, measure

    if batch_sizes:
        options["batch_sizes"] = batch_sizes
    chosen = LocalAccessOptions(**options, distributions=("uniform", "zipf")[: 1 + zipf])
    if fresh:
        chosen = replace(chosen, fresh=chosen.batch_sizes)
    with intentpm.init() as pm:
        rows = measure(pm, chosen)
    path = out / "bench-local.json"
    document = write_results(path, "bench local", asdict(chosen), rows)
    if as_json:
        click.echo(json.dumps(document))
    else:
        _show(rows, chosen.dim, path)


def _show(rows: list[Row], dim: int, path: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from intentpm.bench.kernels.local_access import SUBJECT

    table = Table(title=f"Local access, {dim} float32 per row: median us per call", title_justify="left")
    for title in ("operation", "keys drawn", "keys", SUBJECT, "baseline", "", "ratio"):
        table.add_column(title, justify="left" if title in ("operation", "keys drawn", "baseline") else "right")
    own: Row | None = None
    for row in rows:
        if row.facts["by"] == SUBJECT:
            own = row
        elif own is not None:
            table.add_row(
                row.name, _drawn(row), f"{row.sizes['keys']}", f"{own.median * US:.2f}",
                row.facts["by"], f"{row.median * US:.2f}", f"{own.median / row.median:.2f}",
            )  # fmt: skip
    console = Console(highlight=False)
    console.print(table)
    console.print(f"results: {path}", markup=False)


def _drawn(row: Row) -> str:
    from intentpm.bench.kernels.local_access import FRESH

    distribution: str = row.facts["distribution"]
    return f"{distribution}, fresh" if row.facts["situation"] == FRESH else distribution
