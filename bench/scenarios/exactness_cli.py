"""``intentpm bench exactness``."""

import sys
from pathlib import Path
from typing import Any

import click

from intentpm.bench.output import OutFolder
from intentpm.bench.results import write_results
from intentpm.bench.runner import run_scenario
from intentpm.launch.seconds_option import Seconds

DTYPES = ["float32", "float64", "int32", "int64"]
START_S = 120.0
"""Time allowed for starting the ranks and creating the tables, on top of the measuring."""


@click.command()
@click.option("-n", "ranks", type=click.IntRange(1), default=4, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads per rank.")
@click.option("--seconds", type=Seconds(least=0.1), default=20.0, show_default=True)
@click.option("--transport", default="auto", show_default=True)
@click.option("--num-keys", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--owned-keys", type=click.IntRange(1), default=500, show_default=True, help="Set by one worker each.")
@click.option("--dim", type=click.IntRange(1), default=4, show_default=True)
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
@click.option("--intents/--no-intents", default=True, show_default=True, help="Signal intents of random windows.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=OutFolder(), default=Path("results"), show_default=True)
def exactness(ranks: int, transport: str, out: Path, **arguments: Any) -> None:
    """Push and set random integers from all ranks and threads, then compare every value; fails on any difference."""
    results = run_scenario(
        "intentpm.bench.scenarios.exactness", ranks, arguments,
        transport=transport, timeout_s=START_S + 3 * arguments["seconds"],
    )  # fmt: skip
    path = out / f"bench-exactness-n{ranks}-{transport}.json"
    write_results(path, "bench exactness", {"ranks": ranks, "transport": transport, **arguments}, results)
    wrong = sum(result[table]["values"] for result in results for table in ("wrong_sums", "wrong_owned"))
    stale = sum(result["stale_reads"] for result in results)
    keys, seconds = sum(result["keys"] for result in results), max(result["seconds"] for result in results)
    click.echo(
        f"{ranks} ranks x {arguments['workers']} workers over {transport}: {keys} keys pushed in {seconds:.1f} s "
        f"({keys / seconds / 1e6:.2f} M/s); {results[0]['compared']} values compared on each rank: "
        f"{wrong} wrong, {stale} reads missed an own write"
    )
    moved = {
        name: sum(result[name] for result in results)
        for name in ("relocations", "replicas_set_up", "replicas_compared")
    }
    click.echo("; ".join(f"{count} {name.replace('_', ' ')}" for name, count in moved.items()))
    misplaced = sum(result["replicas_left"] for result in results)
    misplaced += results[0]["keys_without_owner"] + results[0]["keys_with_two_owners"]
    click.echo(
        f"after the last intent: {sum(result['replicas_left'] for result in results)} replicas left, "
        f"{results[0]['keys_without_owner']} keys without owner, {results[0]['keys_with_two_owners']} with two"
    )
    if wrong or stale or misplaced:
        for result in results:
            click.echo(f"rank {result['rank']}: {result['wrong_sums']} {result['wrong_owned']}", err=True)
        sys.exit(1)
