"""``intentpm bench checkpoints``."""

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from intentpm.bench.output import OutFolder
from intentpm.bench.results import write_results
from intentpm.bench.runner import run_scenario
from intentpm.bench.scenarios.checkpoints import STEPS

START_S = 600.0
PERCENTILES = (50, 90, 99, 100)


@click.command()
@click.option("-n", "ranks", type=click.IntRange(1), default=2, show_default=True)
@click.option("--transport", default="auto", show_default=True)
@click.option("--rows", type=click.IntRange(1000), default=4_000_000, show_default=True)
@click.option("--dim", type=click.IntRange(1), default=64, show_default=True)
@click.option(
    "--batch", type=click.IntRange(1), default=500, show_default=True, help="Rows pulled and pushed per step."
)
@click.option("--compute-ms", type=click.FloatRange(0), default=5.0, show_default=True, help="Of a step.")
@click.option("--steps", type=click.IntRange(10), default=500, show_default=True, help="Without a save.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the checkpoints go [a temporary folder].")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=OutFolder(), default=Path("results"), show_default=True)
def checkpoints(ranks: int, transport: str, folder: Path | None, out: Path, **arguments: Any) -> None:
    """Save a table while ranks train on it: what steps notice, write rate, memory, incremental saves."""
    with tempfile.TemporaryDirectory(prefix="intentpm-checkpoints-", dir=folder) as made:
        results = run_scenario(
            "intentpm.bench.scenarios.checkpoints", ranks, {**arguments, "folder": made},
            transport=transport, timeout_s=START_S,
        )  # fmt: skip
    path = out / f"bench-checkpoints-n{ranks}-{transport}.json"
    write_results(path, "bench checkpoints", {"ranks": ranks, "transport": transport, **arguments}, results)
    for line in describe(results):
        click.echo(line)


def describe(results: list[dict[str, Any]]) -> list[str]:
    """The figures, for people."""
    before, during, beside_dd = (np.concatenate([result[when] for result in results]) * 1e3 for when in STEPS)
    size, saved, plain = results[0]["bytes"], *(max(result[what] for result in results) for what in ("saved", "dd"))
    memory = sum(result["memory"] for result in results) / sum(result["table"] for result in results)
    slower, beside = (100 * (times.mean() / before.mean() - 1) for times in (during, beside_dd))
    return [
        f"step, ms at {PERCENTILES} %: without {_percentiles(before)}, while saving {_percentiles(during)} "
        f"({len(during)} steps; {slower:+.0f} % on average), beside dd {_percentiles(beside_dd)} ({beside:+.0f} %)",
        f"save(wait=False) returned after {max(result['call'] for result in results) * 1e3:.1f} ms",
        f"{size / 1e9:.2f} GB in {saved:.2f} s: {size / saved / 1e9:.2f} GB/s; dd: {size / plain / 1e9:.2f} GB/s",
        f"memory while saving: {100 * memory:+.1f} % of the rows",
        f"1 % of the rows changed: {100 * results[0]['incremental_bytes'] / size:.2f} % of the bytes, "
        f"{max(result['incremental'] for result in results):.2f} s",
    ]


def _percentiles(values: Any) -> str:
    return " / ".join(f"{value:.1f}" for value in np.percentile(values, PERCENTILES))
