"""``intentpm train ctr``."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from intentpm.bench.tasks.checkpoints import CheckpointOptions
from intentpm.bench.tasks.clicks import ClickData, ClickSpec, GeneratedClicks, LoadedClicks
from intentpm.bench.tasks.ctr_options import CtrOptions, CtrRow
from intentpm.bench.tasks.progress import EPOCH, TRAFFIC, Column
from intentpm.bench.tasks.task_options import check_source, check_torch, dense_option, schedule_options, source_options
from intentpm.bench.tasks.training import Job, Training, job_options, train

DEFAULTS = CtrOptions()
COLUMNS = (
    EPOCH,
    Column("train loss", "loss", ".4f"),
    Column("valid AUC", "valid_auc", ".4f"),
    Column("test AUC", "test_auc", ".4f"),
    Column("log loss", "test_log_loss", ".4f"),
    *TRAFFIC,
)


@click.command()
@source_options("data.npz, or its folder: labels, numbers and categories in three splits.",
                "Generate examples instead: rows=..,keys=..,fields=..,zipf=..")  # fmt: skip
@click.option("--dim", type=click.IntRange(1), default=DEFAULTS.dim, show_default=True,
              help="Length of a category's embedding.")  # fmt: skip
@click.option("--hidden", type=click.IntRange(1), default=DEFAULTS.hidden, show_default=True,
              help="Width of the hidden layers.")  # fmt: skip
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=DEFAULTS.dropout, show_default=True)
@click.option("--embedding-lr", type=click.FloatRange(0, min_open=True), default=DEFAULTS.embedding_lr,
              show_default=True, help="Learning rate of the categories' rows.")  # fmt: skip
@click.option("--reg", type=click.FloatRange(0), default=DEFAULTS.reg, show_default=True,
              help="L2 of the rows that a batch touches.")  # fmt: skip
@dense_option(DEFAULTS)
@schedule_options(DEFAULTS, "Examples per step and rank.")
@job_options
def ctr(job: Job, data: Path | None, generate: str | None, **chosen: Any) -> None:
    """Click-through rates: Wide & Deep."""
    check_source(data, generate)
    check_torch()
    spec = ClickSpec.parse(generate or "")
    job.leave_to_ranks(lambda: data is None or LoadedClicks(data))
    options = CtrOptions(**chosen)
    clicks: ClickData = LoadedClicks(data) if data else GeneratedClicks(spec, options.seed)
    sizes = {"keys": clicks.keys, "fields": clicks.fields, "numbers": clicks.numbers, "examples": clicks.rows["train"]}
    training = Training(
        name="ctr",
        title="Click-through rates",
        data=f"{clicks.source}: {clicks.rows['train']:,} examples, {clicks.numbers} numbers, {clicks.fields} fields, "
        f"{clicks.keys:,} keys",
        config={"data": clicks.source, **sizes, **asdict(options)},
        epochs=options.epochs,
        columns=COLUMNS,
        run=lambda pm: _run(pm, clicks, options, job.checkpoints_of("ctr")),
        quality=_quality,
    )
    train(training, job)


def _run(pm: Any, clicks: ClickData, options: CtrOptions, checkpoints: CheckpointOptions) -> Iterator[CtrRow]:
    from intentpm.bench.tasks.ctr import ClickThroughRate

    return ClickThroughRate(pm, clicks, options, checkpoints).run()


def _quality(rows: Sequence[CtrRow]) -> list[tuple[str, str]]:
    best = max(rows, key=lambda row: row.valid_auc)
    lines = [
        ("test AUC", f"{rows[-1].test_auc:.4f} (with the best of validation, epoch {best.epoch}: {best.test_auc:.4f})"),
        ("test log loss", f"{rows[-1].test_log_loss:.4f}"),
    ]
    if not math.isnan(rows[-1].reachable_auc):
        lines.append(("best reachable AUC", f"{rows[-1].reachable_auc:.4f}"))
    return lines
