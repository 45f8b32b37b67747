"""``intentpm train kge``."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from intentpm.bench.tasks._kge import LOSSES
from intentpm.bench.tasks.kge import EpochRow, KgeOptions, KnowledgeGraphEmbedding
from intentpm.bench.tasks.knowledge_graph import GraphSpec, generate_knowledge_graph, load_knowledge_graph
from intentpm.bench.tasks.progress import EPOCH, TRAFFIC, Column
from intentpm.bench.tasks.training import Job, Training, job_options, look_ahead_option, train

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
        raise click.BadParameter(f"{value} is odd: an embedding is half real and half imaginary parts.")
    return value


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder: triples.npz, or train, valid, test as text.")
@click.option("--keep-ids", is_flag=True, help="Rows for the ids in between too [number what is used without gaps].")
@click.option(
    "--generate", metavar="SPEC", help="Generate triples instead: entities=..,relations=..,triples=..,types=.."
)
@click.option("--dim", type=click.IntRange(2), default=DEFAULTS.dim, show_default=True, callback=_even,
              help="Length of an embedding: half as many complex numbers.")  # fmt: skip
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=DEFAULTS.lr, show_default=True,
              help="Learning rate of AdaGrad.")  # fmt: skip
@click.option("--reg", type=click.FloatRange(0), default=DEFAULTS.reg, show_default=True, help="L2 per triple.")
@click.option("--negatives", type=click.IntRange(1), default=DEFAULTS.negatives, show_default=True,
              help="Sampled heads, and tails, per triple.")  # fmt: skip
@click.option("--loss", type=click.Choice(LOSSES), default=DEFAULTS.loss, show_default=True)
@click.option("--sampling", type=click.Choice(SCHEMES), default=DEFAULTS.sampling, show_default=True,
              help="How negatives are sampled.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(0), default=DEFAULTS.epochs, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=DEFAULTS.batch, show_default=True, help="Triples per batch.")
@look_ahead_option
@click.option("--evaluate", type=click.Choice(("valid", "test")), default=DEFAULTS.evaluate, show_default=True,
              help="Split that is ranked after each epoch.")  # fmt: skip
@click.option("--evaluate-triples", type=click.IntRange(0), default=DEFAULTS.evaluate_triples, show_default=True,
              help="How many of its triples, from the first on; 0: all.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=DEFAULTS.seed, show_default=True)
@job_options
def kge(job: Job, data: Path | None, generate: str | None, keep_ids: bool, **chosen: Any) -> None:
    """Knowledge graph embeddings: ComplEx, AdaGrad, negative sampling."""
    if (data is None) == (generate is None):
        raise click.UsageError("give either --data FOLDER or --generate SPEC (--generate '' takes its defaults)")
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


def _quality(rows: Sequence[EpochRow], options: KgeOptions) -> list[tuple[str, str]]:
    last = rows[-1]
    return [
        (f"filtered MRR ({options.evaluate})", f"{last.mrr:.4f} (untrained {rows[0].mrr:.4f})"),
        ("Hits@1, 3, 10", f"{last.hits_1:.4f}, {last.hits_3:.4f}, {last.hits_10:.4f}"),
    ]
