"""``intentpm bench simulate``: the modes of management on simulated ranks, any number, any network."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from intentpm.bench.output import OutFolder
from intentpm.bench.results import write_results
from intentpm.bench.scenarios.regret import MODES, compare, table
from intentpm.bench.scenarios.scaling import simulate_zipf
from intentpm.transports.sim import OverBudgetError
from intentpm.transports.sim_model import NetworkModel

BENCH = "bench simulate"
MOST_RANKS = 65_535
MOST_COPIES = 5_000_000
"""Ranks times keys: with more, full replication would not fit in memory."""
TIMES_US = {"ns": 1e-3, "us": 1.0, "ms": 1e3}
GBYTES_PER_S = {"MB": 1e-3, "GB": 1.0, "mbit": 1e-3 / 8, "gbit": 1.0 / 8}


def _quantity(units: dict[str, float]) -> Callable[[click.Context, click.Parameter, str], float]:
    """Reads a number with a unit, as a multiple of the unit that counts as 1."""

    def read(context: click.Context, option: click.Parameter, value: str) -> float:
        parts = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]+)", value)
        if parts is None or parts[2] not in units or float(parts[1]) == 0:
            raise click.BadParameter(f"{value!r}: needs a number above 0 and one of {', '.join(units)}")
        return float(parts[1]) * units[parts[2]]

    return read


def _sizes(context: click.Context, option: click.Parameter, value: str) -> list[int]:
    parts = value.split(",")
    if not all(part.isdecimal() and 0 < int(part) <= MOST_RANKS for part in parts):
        raise click.BadParameter(f"{value!r}: needs numbers from 1 to {MOST_RANKS}, separated by commas")
    return [int(part) for part in parts]


@click.command()
@click.option("--ranks", default="16,64,256,1024", show_default=True, callback=_sizes, help="Sizes of jobs.")
@click.option("--latency", default="2us", callback=_quantity(TIMES_US), show_default=True)
@click.option(
    "--bandwidth", default="10GB", callback=_quantity(GBYTES_PER_S), show_default=True, help="Of a rank, per second."
)
@click.option("--keys", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True)
@click.option("--out", type=OutFolder(), default=Path("docs"), show_default=True)
def simulate(ranks: Sequence[int], latency: float, bandwidth: float, keys: int, steps: int, out: Path) -> None:
    """Compare the modes of management on simulated ranks: virtual time and bytes of the zipf workload."""
    from intentpm.bench.plots import save

    model = NetworkModel(latency_us=latency, bandwidth_gbytes_per_s=bandwidth)
    arguments = {
        "num_keys": keys, "dim": 32, "batch": 64, "steps": steps, "seed": 0, "look_ahead": "auto", "step_us": 100.0
    }  # fmt: skip
    runs = []
    for run in _measure(ranks, arguments, model):
        runs.append(run)
        click.echo(
            f"{run['network']:>12} {run['mode']:17} {run['seconds'] / steps * 1e6:9.1f} us/step "
            f"{run['megabytes'] * 1e3 / steps:9.1f} KB/step by all  (took {run['real_s']:.1f} s)"
        )
    document = write_results(
        out / "simulate.json", BENCH, {**arguments, "latency_us": latency, "gbytes_per_s": bandwidth}, runs
    )
    save(document, out / "simulate.png")
    lines = table(compare(runs))
    (out / "simulate.md").write_text("\n".join(lines) + "\n")
    click.echo("\n".join(["", *lines, "", f"written: {out}/simulate.md, simulate.json, simulate.png"]))


def _measure(sizes: Sequence[int], arguments: dict[str, Any], model: NetworkModel) -> Iterator[dict[str, Any]]:
    for ranks in sizes:
        for mode in MODES:
            if mode == "full_replication" and ranks * arguments["num_keys"] > MOST_COPIES:
                click.echo(
                    f"{ranks:>6} ranks full_replication left out: {ranks * arguments['num_keys']:,} copies", err=True
                )
                continue
            try:
                run = simulate_zipf(ranks, mode, arguments, model)
            except OverBudgetError as error:  # "relocate" with 1,024 ranks
                click.echo(f"{ranks:>6} ranks {mode} left out: {str(error).splitlines()[0]}", err=True)
                continue
            yield {
                "workload": "zipf", "network": f"{ranks} ranks", "mode": mode, "seconds": run["seconds"],
                "megabytes": run["bytes_sent"] * ranks / 1e6, "quality": None, "real_s": run["real_s"],
            }  # fmt: skip
