"""``python -m intentpm.bench.scenarios.transport_pingpong``: latency and bandwidth of the transport layer.

Two polling processes on this host; every contender of ``transport_contenders`` in turn, several rounds, medians.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from intentpm.bench.results import Row, write_results
from intentpm.bench.scenarios.transport_contenders import CONTENDERS, Measured, Plan, UnavailableError

KIB, MIB = 1 << 10, 1 << 20
LATENCY_BYTES = (8, 64, 512, 1 * KIB, 4 * KIB)
BANDWIDTH_BYTES = (64 * KIB, 256 * KIB, 1 * MIB, 4 * MIB, 16 * MIB)


@click.command()
@click.option("--contender", "names", multiple=True, type=click.Choice(list(CONTENDERS)), help="May be repeated [all].")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--iterations", type=click.IntRange(10), default=5_000, show_default=True, help="Round trips per latency."
)
@click.option("--stream-mib", type=click.IntRange(1), default=128, show_default=True, help="MiB moved per bandwidth.")
@click.option("--latency-bytes", type=click.IntRange(1), multiple=True, default=LATENCY_BYTES, help="May be repeated.")
@click.option(
    "--bandwidth-bytes", type=click.IntRange(1), multiple=True, default=BANDWIDTH_BYTES, help="May be repeated."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("results"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON, and nothing else.")
def main(
    names: tuple[str, ...], rounds: int, iterations: int, stream_mib: int,
    latency_bytes: tuple[int, ...], bandwidth_bytes: tuple[int, ...], out: Path, as_json: bool,
) -> None:  # fmt: skip
    """Half round trips and bandwidths between two processes of this host, ours next to others."""
    plan = Plan(latency_bytes, bandwidth_bytes, iterations, stream_mib * MIB)
    runs, refused = measure(names or tuple(CONTENDERS), rounds, plan)
    rows = [row for name, measured in runs.items() for row in _rows(name, measured)]
    path = out / "bench-transport-pingpong.json"
    config = {"rounds": rounds, "iterations": iterations, "stream_bytes": plan.stream_bytes}
    document = write_results(path, "bench transport-pingpong", config, rows, unavailable=refused)
    if as_json:
        click.echo(json.dumps(document))
    else:
        _show(rows, refused, plan, path)


def measure(names: Sequence[str], rounds: int, plan: Plan) -> tuple[dict[str, list[Measured]], dict[str, str]]:
    """Runs each contender ``rounds`` times, in turn, so that a disturbance hits them all alike.

    Returns what each measured, and why others could not.
    """
    runs: dict[str, list[Measured]] = {}
    refused: dict[str, str] = {}
    for _ in range(rounds):
        for name in names:
            if name in refused:
                continue
            try:
                runs.setdefault(name, []).append(CONTENDERS[name](plan))
            except UnavailableError as error:
                refused[name] = str(error)
    return {name: found for name, found in runs.items() if found}, refused


def _rows(name: str, runs: Sequence[Measured]) -> list[Row]:
    facts = runs[-1].facts
    latency = [
        Row("latency", [run.latency_us[size] for run in runs], "us", name, 2, {"bytes": size}, facts)
        for size in runs[0].latency_us
    ]
    bandwidth = [
        Row("bandwidth", [run.bandwidth_gb_s[size] for run in runs], "GB/s", name, 2, {"bytes": size}, facts)
        for size in runs[0].bandwidth_gb_s
    ]
    return latency + bandwidth


def _show(rows: Sequence[Row], refused: dict[str, str], plan: Plan, path: Path) -> None:
    console = Console(width=120)
    names = list(dict.fromkeys(row.transport for row in rows))
    for kind, unit, sizes in (("latency", "us", plan.latency_bytes), ("bandwidth", "GB/s", plan.bandwidth_bytes)):
        table = Table(title=f"{kind}, {unit} (median of rounds)")
        table.add_column("bytes", justify="right", no_wrap=True)
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        for size in sizes:
            found = {row.transport: row.median for row in rows if row.name == kind and row.sizes["bytes"] == size}
            table.add_row(f"{size:,}", *(f"{found[name]:.3g}" if name in found else "-" for name in names))
        console.print(table)
    for name, reason in refused.items():
        console.print(f"{name}: not measured: {reason}")
    console.print(f"raw samples: {path}")


if __name__ == "__main__":
    main()
