"""The commands ``train``, ``bench`` and ``plot`` of ``intentpm``."""

from pathlib import Path

import click

from intentpm.bench.scenarios.checkpoints_cli import checkpoints
from intentpm.bench.scenarios.device_cli import device
from intentpm.bench.scenarios.evaluation_cli import tasks
from intentpm.bench.scenarios.exactness_cli import exactness
from intentpm.bench.scenarios.management_cli import management
from intentpm.bench.scenarios.simulate_cli import simulate
from intentpm.bench.suite.cli import suite
from intentpm.bench.tasks.ctr_cli import ctr
from intentpm.bench.tasks.gnn_cli import gnn
from intentpm.bench.tasks.kge_cli import kge
from intentpm.bench.tasks.mf_cli import mf
from intentpm.bench.tasks.wv_cli import wv


@click.group()
def train() -> None:
    """Train a model on this machine or cluster, through the parameter manager."""


@click.group()
def bench() -> None:
    """Measure what takes more than timing calls. Latencies: pytest bench/latency."""


@click.command()
@click.argument("results", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="PNG to write [RESULTS with .png].")
def plot(results: Path, out: Path | None) -> None:
    """Draw a RESULTS file (JSON, as train and bench write it) or a trace (as pm.write_trace writes it) as PNG."""
    from intentpm.bench.plots import draw

    picture = out or results.with_suffix(".png")
    draw(results, picture)
    click.echo(picture)


for _command in (ctr, gnn, kge, mf, wv):
    train.add_command(_command)
for _command in (suite, exactness, management, device, checkpoints, tasks, simulate):
    bench.add_command(_command)
