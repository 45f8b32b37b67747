"""``intentpm bench remote`` and ``intentpm bench exactness``."""

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from intentpm.bench.results import Row, write_results
from intentpm.bench.runner import run_scenario
from intentpm.launch.seconds_option import Seconds

OUT = click.Path(path_type=Path, file_okay=False)
DTYPES = ["float32", "float64", "int32", "int64"]
US = 1e6
SITUATIONS = ("back to back", "spaced", "python loop")
START_S = 120.0
"""Time allowed for starting the ranks and creating the tables, on top of the measuring."""


@click.command()
@click.option("--transport", "transports", multiple=True, help="May be repeated [each that works here].")
@click.option("--keys", "batch_sizes", type=click.IntRange(1), multiple=True, default=(1, 100, 10_000),
              show_default=True, help="Keys per call; may be repeated.")  # fmt: skip
@click.option("--num-keys", type=click.IntRange(2), default=20_000, show_default=True, help="Rows of the table.")
@click.option("--dim", type=click.IntRange(1), default=64, show_default=True, help="float32 values per row.")
@click.option("--repeats", type=click.IntRange(1), default=100_000, show_default=True, help="Calls per case at most.")
@click.option("--seconds", "case_s", type=Seconds(least=0.1), default=1.0, show_default=True, help="Per case at most.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=OUT, default=Path("results"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON, and nothing else.")
def remote(transports: tuple[str, ...], out: Path, as_json: bool, **arguments: Any) -> None:
    """Remote pull and push between two ranks: back to back, spaced, and while the server runs a Python loop."""
    arguments["interval_s"] = 300e-6
    arguments["cases"] = list(product(SITUATIONS, ("pull", "push"), arguments.pop("batch_sizes")))
    rows: list[Row] = []
    for transport in transports or available_transports():
        results = run_scenario(
            "intentpm.bench.scenarios.remote_access", 2, arguments,
            transport=transport, timeout_s=START_S + 3 * len(arguments["cases"]) * arguments["case_s"],
        )  # fmt: skip
        rows += _remote_rows(transport, results[1]["cases"], arguments)
    path = out / "bench-remote.json"
    document = write_results(path, "bench remote", arguments, rows)
    if as_json:
        click.echo(json.dumps(document))
    else:
        _show_remote(rows, arguments["dim"], path)


def available_transports() -> list[str]:
    """The transports between processes that can be used here."""
    from intentpm.transports.registry import available

    return [name for name, found in available().items() if found.usable and name not in ("loopback", "sim")]


def _remote_rows(transport: str, cases: list[dict[str, Any]], arguments: dict[str, Any]) -> list[Row]:
    sizes = {"dim": arguments["dim"], "num_keys": arguments["num_keys"]}
    return [
        Row(case["operation"], case["samples"], transport=transport, ranks=2, sizes={"keys": case["keys"], **sizes},
            facts={"situation": case["situation"]})
        for case in cases
    ]  # fmt: skip


def _show_remote(rows: list[Row], dim: int, path: Path) -> None:
    table = Table(title=f"Remote access, {dim} float32 per row: us per call", title_justify="left")
    for title in ("transport", "situation", "operation", "keys", "p50", "p99", "calls"):
        table.add_column(title, justify="left" if title in ("transport", "situation", "operation") else "right")
    for row in rows:
        table.add_row(
            row.transport, row.facts["situation"], row.name, str(row.sizes["keys"]),
            f"{row.median * US:.1f}", f"{row.quantile(0.99) * US:.1f}", str(len(row.samples)),
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(table)
    console.print(f"results: {path}", markup=False)


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
@click.option("--out", type=OUT, default=Path("results"), show_default=True)
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
    keys, seconds = sum(result["keys"] for result in results), float(np.max([result["seconds"] for result in results]))
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


@click.command()
@click.option("-n", "ranks", type=click.IntRange(2), default=2, show_default=True)
@click.option("--transport", default="auto", show_default=True)
@click.option("--num-keys", type=click.IntRange(2), default=2_000_000, show_default=True)
@click.option("--dim", type=click.IntRange(1), default=16, show_default=True)
@click.option("--seconds", type=Seconds(least=0.1), default=5.0, show_default=True)
@click.option("--out", type=OUT, default=Path("results"), show_default=True)
def idle(ranks: int, transport: str, out: Path, **arguments: Any) -> None:
    """What a job costs in which all keys are replicated everywhere and nothing happens; fails if it sends bytes."""
    results = run_scenario(
        "intentpm.bench.scenarios.idle", ranks, arguments, transport=transport, timeout_s=START_S + arguments["seconds"]
    )
    write_results(out / f"bench-idle-n{ranks}.json", "bench idle", {"ranks": ranks, **arguments}, results)
    for result in results:
        click.echo(
            f"rank {result['rank']}: {result['replicas']} replicas (set up in {result['replicated_s']:.2f} s); "
            f"in {result['seconds']:g} s idle {result['bytes_sent']} bytes sent, "
            f"{100 * result['cpu_s'] / result['seconds']:.2f} % of a core"
        )
    if any(result["bytes_sent"] for result in results):
        sys.exit(1)
