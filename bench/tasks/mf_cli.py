"""``intentpm train mf``."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from intentpm.bench.tasks.mf import ORDERS, MatrixFactorisation, MfOptions, MfRow
from intentpm.bench.tasks.progress import EPOCH, TRAFFIC, Column
from intentpm.bench.tasks.ratings import GeneratorSpec, generate_ratings, load_ratings
from intentpm.bench.tasks.training import Job, Training, job_options, look_ahead_option, train

DEFAULTS = MfOptions()
COLUMNS = (
    EPOCH,
    Column("train loss", "loss", ".4f"),
    Column("valid RMSE", "valid_rmse", ".4f"),
    Column("test RMSE", "test_rmse", ".4f"),
    *TRAFFIC,
)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Ratings: .npz (user, item, rating[, split]) or .mtx.")
@click.option("--keep-ids", is_flag=True, help="Rows for the ids in between too [number what is rated without gaps].")
@click.option("--generate", metavar="SPEC", help="Generate ratings instead: users=..,items=..,ratings=..,rank=..")
@click.option("--dim", type=click.IntRange(0), default=DEFAULTS.dim, show_default=True, help="Factors per key.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=DEFAULTS.lr, show_default=True,
              help="Learning rate of the first epoch; falls to a tenth.")  # fmt: skip
@click.option("--reg", type=click.FloatRange(0), default=DEFAULTS.reg, show_default=True, help="L2 per rating.")
@click.option("--epochs", type=click.IntRange(0), default=DEFAULTS.epochs, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=DEFAULTS.batch, show_default=True, help="Ratings per batch.")
@look_ahead_option
@click.option("--order", type=click.Choice(ORDERS), default=DEFAULTS.order, show_default=True,
              help="Of a rank's ratings; blocked: no item at two ranks at a time.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=DEFAULTS.seed, show_default=True)
@job_options
def mf(job: Job, data: Path | None, generate: str | None, keep_ids: bool, **chosen: Any) -> None:
    """Matrix factorisation: SGD with L2 on (user, item, rating)."""
    if (data is None) == (generate is None):
        raise click.UsageError("give either --data FILE or --generate SPEC (--generate '' takes its defaults)")
    spec = GeneratorSpec.parse(generate or "")
    job.leave_to_ranks(lambda: data is None or load_ratings(data, keep_ids=keep_ids))
    options = MfOptions(**chosen)
    seed = options.seed
    ratings = load_ratings(data, seed, keep_ids) if data is not None else generate_ratings(spec, seed)
    sizes = {"users": ratings.users, "items": ratings.items, "ratings": len(ratings)}
    described = f"{ratings.users:,} users, {ratings.items:,} items, {len(ratings):,} ratings"
    training = Training(
        name="mf",
        title="Matrix factorisation",
        data=f"{ratings.source}: {described}",
        config={"data": ratings.source, **sizes, **asdict(options)},
        epochs=options.epochs,
        columns=COLUMNS,
        run=lambda pm: MatrixFactorisation(pm, ratings, options, job.checkpoints_of("mf")).run(),
        quality=_quality,
        notes=ratings.notes,
    )
    train(training, job)


def _quality(rows: Sequence[MfRow]) -> list[tuple[str, str]]:
    return [
        ("test RMSE", f"{rows[-1].test_rmse:.4f} (untrained {rows[0].test_rmse:.4f})"),
        ("validation RMSE", f"{rows[-1].valid_rmse:.4f}"),
    ]
