"""``intentpm train gnn``."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from intentpm.bench.tasks.checkpoints import CheckpointOptions
from intentpm.bench.tasks.gnn_options import INPUTS, MODELS, GnnOptions, GnnRow
from intentpm.bench.tasks.graph_data import Graph, GraphSpec, generate_graph, load_graph
from intentpm.bench.tasks.node_partition import WAYS
from intentpm.bench.tasks.progress import EPOCH, TRAFFIC, Column
from intentpm.bench.tasks.task_options import (
    check_source,
    check_torch,
    dense_option,
    schedule_options,
    source_options,
)
from intentpm.bench.tasks.training import Job, Training, job_options, train

DEFAULTS = GnnOptions()
COLUMNS = (
    EPOCH,
    Column("train loss", "loss", ".4f"),
    Column("valid accuracy", "valid_accuracy", ".4f"),
    Column("test accuracy", "test_accuracy", ".4f"),
    *TRAFFIC,
)


@click.command()
@source_options("graph.npz, or its folder: edges, features, labels and splits.",
                "Generate a graph instead: nodes=..,edges=..,classes=..")  # fmt: skip
@click.option("--model", type=click.Choice(MODELS), default=DEFAULTS.model, show_default=True)
@click.option("--inputs", type=click.Choice(INPUTS), default=DEFAULTS.inputs, show_default=True,
              help="What a node begins with.")  # fmt: skip
@click.option("--dim", type=click.IntRange(1), default=DEFAULTS.dim, show_default=True,
              help="Length of the vectors of nodes and features.")  # fmt: skip
@click.option("--fan-out", type=click.IntRange(0), nargs=2, default=DEFAULTS.fan_out, show_default=True,
              help="Neighbours sampled per node, in both hops; 0: all.")  # fmt: skip
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=DEFAULTS.dropout, show_default=True)
@click.option("--embedding-lr", type=click.FloatRange(0, min_open=True), default=DEFAULTS.embedding_lr,
              show_default=True, help="Learning rate of the nodes' own vectors.")  # fmt: skip
@click.option("--reg", type=click.FloatRange(0), default=DEFAULTS.reg, show_default=True, help="L2.")
@click.option("--partition", type=click.Choice(WAYS), default=DEFAULTS.partition, show_default=True,
              help="How training nodes are dealt to ranks.")  # fmt: skip
@dense_option(DEFAULTS)
@schedule_options(DEFAULTS, "Nodes per step and rank.")
@job_options
def gnn(job: Job, data: Path | None, generate: str | None, **chosen: Any) -> None:
    """Graph networks: GCN and GraphSAGE."""
    check_source(data, generate)
    check_torch()
    spec = GraphSpec.parse(generate or "")
    job.leave_to_ranks(lambda: data is None or load_graph(data))
    options = GnnOptions(**chosen)
    graph = load_graph(data) if data else generate_graph(spec, options.seed)
    sizes = {"nodes": graph.nodes, "edges": graph.edges, "features": graph.feature_count, "classes": graph.classes}
    training = Training(
        name="gnn",
        title="Graph networks",
        data=f"{graph.source}: {graph.nodes:,} nodes, {graph.edges:,} edges, {graph.feature_count:,} features, "
        f"{graph.classes} classes",
        config={"data": graph.source, **sizes, **asdict(options)},
        epochs=options.epochs,
        columns=COLUMNS,
        run=lambda pm: _run(pm, graph, options, job.checkpoints_of("gnn")),
        quality=_quality,
    )
    train(training, job)


def _run(pm: Any, graph: Graph, options: GnnOptions, checkpoints: CheckpointOptions) -> Iterator[GnnRow]:
    from intentpm.bench.tasks.gnn import GraphTraining

    return GraphTraining(pm, graph, options, checkpoints).run()


def _quality(rows: Sequence[GnnRow]) -> list[tuple[str, str]]:
    best = max(rows, key=lambda row: row.valid_accuracy)
    return [
        ("test accuracy", f"{rows[-1].test_accuracy:.4f}"),
        (f"with the best of validation, epoch {best.epoch}", f"{best.test_accuracy:.4f}"),
    ]
