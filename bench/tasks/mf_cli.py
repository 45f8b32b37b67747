"""``intentpm train mf``."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from intentpm.bench.relaunch import is_rank, run_ranks, shows_on_terminal
from intentpm.bench.tasks.mf import EpochRow, MatrixFactorisation, MfOptions
from intentpm.bench.tasks.progress import EPOCH, TRAFFIC, Column, EpochLines, make_console, summary_table
from intentpm.bench.tasks.ratings import GeneratorSpec, Ratings, generate_ratings, load_ratings

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
@click.option("--generate", metavar="SPEC", help="Generate ratings instead: users=..,items=..,ratings=..,rank=..")
@click.option("-n", "ranks", type=click.IntRange(1), help="Ranks to start on this machine [1, or the launcher's].")
@click.option("--transport", default="auto", show_default=True, help="auto, ucx or tcp.")
@click.option("--dim", type=click.IntRange(0), default=DEFAULTS.dim, show_default=True, help="Factors per key.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=DEFAULTS.lr, show_default=True,
              help="Learning rate of the first epoch; falls to a tenth.")  # fmt: skip
@click.option("--reg", type=click.FloatRange(0), default=DEFAULTS.reg, show_default=True, help="L2 per rating.")
@click.option("--epochs", type=click.IntRange(0), default=DEFAULTS.epochs, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=DEFAULTS.batch, show_default=True, help="Ratings per batch.")
@click.option("--look-ahead", type=click.IntRange(0), default=DEFAULTS.look_ahead, show_default=True,
              help="Batches signalled before use; 0: none.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=DEFAULTS.seed, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("results"), show_default=True,
              help="Folder for the JSON results and the plot.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON, and nothing else.")
def mf(
    data: Path | None,
    generate: str | None,
    ranks: int | None,
    transport: str,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Matrix factorisation: SGD with L2 on (user, item, rating)."""
    if (data is None) == (generate is None):
        raise click.UsageError("give either --data FILE or --generate SPEC (--generate '' takes its defaults)")
    spec = GeneratorSpec.parse(generate) if generate is not None else None
    if (ranks or 1) > 1 and not is_rank():
        if data is not None:
            load_ratings(data)  # A bad file is reported once, here, before any rank starts.
        sys.exit(run_ranks(ranks or 1, transport))
    seed = options["seed"]
    ratings = load_ratings(data, seed) if data is not None else generate_ratings(spec or GeneratorSpec(), seed)
    _train(ratings, MfOptions(**options), ranks, transport, out, as_json)


def _train(ratings: Ratings, options: MfOptions, ranks: int | None, transport: str, out: Path, as_json: bool) -> None:
    import intentpm

    start = time.perf_counter()
    with intentpm.init(transport=transport) as pm:
        if ranks not in (None, pm.size):
            raise click.UsageError(f"-n {ranks}, but the launcher started {pm.size} ranks; leave -n out")
        console = make_console(quiet=as_json or pm.rank != 0, plain=not shows_on_terminal())
        console.print(
            f"{ratings.source}: {ratings.users:,} users, {ratings.items:,} items, {len(ratings):,} ratings; "
            f"{pm.size} rank{'s'[: pm.size > 1]}",
            markup=False,
            soft_wrap=True,
        )
        lines = EpochLines(console, COLUMNS, options.epochs)
        rows = list(lines.follow(MatrixFactorisation(pm, ratings, options).run()))
        if pm.rank == 0:
            sizes = {"users": ratings.users, "items": ratings.items, "ratings": len(ratings)}
            job = {"ranks": pm.size, "transport": pm.transport_name}
            config = {"data": ratings.source, **sizes, **job, **asdict(options)}
            document, results, picture = _save(out, config, rows, time.perf_counter() - start)
            console.print(summary_table("Matrix factorisation", _summary(rows, results, picture)))
            if as_json:
                click.echo(json.dumps(document))


def _save(out: Path, config: dict[str, Any], rows: list[EpochRow], wall_s: float) -> tuple[dict[str, Any], Path, Path]:
    from intentpm.bench import plots
    from intentpm.bench.results import write_results

    results = out / f"train-mf-n{config['ranks']}.json"
    document = write_results(results, "train mf", config, rows, wall_s=wall_s)
    picture = results.with_suffix(".png")
    plots.save(document, picture)
    return document, results, picture


def _summary(rows: list[EpochRow], results: Path, picture: Path) -> list[tuple[str, str]]:
    trained = rows[1:]
    seconds = sum(row.seconds for row in trained)
    return [
        ("test RMSE", f"{rows[-1].test_rmse:.4f} (untrained {rows[0].test_rmse:.4f})"),
        ("validation RMSE", f"{rows[-1].valid_rmse:.4f}"),
        ("epochs", f"{len(trained)} in {seconds:.2f} s of training"),
        ("bytes sent", f"{sum(row.bytes_sent for row in trained) / 1e6:.1f} MB by all ranks"),
        ("local accesses", f"{100 * trained[-1].local_share:.2f} % in the last epoch" if trained else "-"),
        ("results", str(results)),
        ("plot", str(picture)),
    ]
