"""``intentpm train kge``."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from intentpm.bench.tasks.kge import KgeOptions, KgeRow, KnowledgeGraphEmbedding
from intentpm.bench.tasks.kge_models import LOSSES, MODELS
from intentpm.bench.tasks.knowledge_graph import GraphSpec, generate_knowledge_graph, load_knowledge_graph
from intentpm.bench.tasks.progress import EPOCH, TRAFFIC, Column
from intentpm.bench.tasks.task_options import check_source, schedule_options, source_options
from intentpm.bench.tasks.training import Job, Training, job_options, train

DEFAULTS = KgeOptions()
SCHEMES = ("naive", "preloc", "pool", "local")
COLUMNS = (
    EPOCH,
    Column("train loss", "loss", ".4f"),
    Column("MRR", "mrr", ".4f"),
    Column("Hits@1", "hits_1", ".4f"),
    Column("Hits@3", "hits_3", ".4f"),
    Column("Hits@10", "hits_10", ".4f"),
    *TRAFFIC,
)


def _even(context: click.Context, option: click.Parameter, value: int) -> int:
    if value % 2:
        raise click.BadParameter(
            f"{value} is odd: embeddings of complex and rotate are half real and half imaginary parts."
        )
    return value


@click.command()
@source_options("Folder: triples.npz, or train, valid, test as text.",
                "Generate triples instead: entities=..,relations=..,triples=..,types=..")  # fmt: skip
@click.option("--keep-ids", is_flag=True, help="Rows for the ids in between too [number what is used without gaps].")
@click.option("--model", type=click.Choice(MODELS), default=DEFAULTS.model, show_default=True)
@click.option("--dim", type=click.IntRange(2), default=DEFAULTS.dim, show_default=True, callback=_even,
              help="Length of an entity's embedding.")  # fmt: skip
@click.option("--reg", type=click.FloatRange(0), default=DEFAULTS.reg, show_default=True,
              help="Of the cubes of the numbers of a triple's embeddings.")  # fmt: skip
@click.option("--negatives", type=click.IntRange(1), default=DEFAULTS.negatives, show_default=True,
              help="Sampled entities per batch.")  # fmt: skip
@click.option("--loss", type=click.Choice(LOSSES), default=DEFAULTS.loss, show_default=True)
@click.option("--sampling", type=click.Choice(SCHEMES), default=DEFAULTS.sampling, show_default=True,
              help="How negatives are sampled.")  # fmt: skip
@click.option("--evaluate", type=click.Choice(("valid", "test")), default=DEFAULTS.evaluate, show_default=True,
              help="Split that is ranked.")  # fmt: skip
@click.option("--evaluate-triples", type=click.IntRange(0), default=DEFAULTS.evaluate_triples, show_default=True,
              help="How many of its triples, from the first on; 0: all.")  # fmt: skip
@click.option("--evaluate-every", type=click.IntRange(1), default=DEFAULTS.evaluate_every, show_default=True,
              help="Epochs from one ranking to the next; the untrained model and the last are ranked too.")  # fmt: skip
@schedule_options(DEFAULTS, "Triples per batch.")
@job_options
def kge(job: Job, data: Path | None, generate: str | None, keep_ids: bool, **chosen: Any) -> None:
    """Knowledge graph embeddings: ComplEx, DistMult, RotatE or RESCAL, AdaGrad, negative sampling."""
    check_source(data, generate)
    spec = GraphSpec.parse(generate or "")
    job.leave_to_ranks(lambda: data is None or load_knowledge_graph(data, keep_ids))
    options = KgeOptions(**chosen)
    graph = load_knowledge_graph(data, keep_ids) if data else generate_knowledge_graph(spec, options.seed)
    sizes = {"entities": graph.entities, "relations": graph.relations, "triples": len(graph.train)}
    described = f"{graph.entities:,} entities, {graph.relations:,} relations, {len(graph.train):,} training triples"
    training = Training(
        name="kge",
        title="Knowledge graph embeddings",
        data=f"{graph.source}: {described}",
        config={"data": graph.source, **sizes, **asdict(options)},
        epochs=options.epochs,
        columns=COLUMNS,
        run=lambda pm: KnowledgeGraphEmbedding(pm, graph, options, job.checkpoints_of("kge")).run(),
        quality=lambda rows: _quality(rows, options),
        notes=graph.notes,
    )
    train(training, job)


def _quality(rows: Sequence[KgeRow], options: KgeOptions) -> list[tuple[str, str]]:
    last = rows[-1]
    return [
        (f"filtered MRR ({options.evaluate})", f"{last.mrr:.4f} (untrained {rows[0].mrr:.4f})"),
        ("Hits@1, 3, 10", f"{last.hits_1:.4f}, {last.hits_3:.4f}, {last.hits_10:.4f}"),
    ]
