"""What the ``intentpm train`` commands share: the job's options, its ranks, what it prints and what it saves."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from intentpm.bench.relaunch import is_rank, run_ranks, shows_on_terminal
from intentpm.bench.tasks.progress import Column, EpochLines, make_console, summary_table

_OPTIONS = (
    click.option("-n", "ranks", type=click.IntRange(1), help="Ranks to start on this machine [1, or the launcher's]."),
    click.option("--transport", default="auto", show_default=True, help="auto, ucx or tcp."),
    click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("results"), show_default=True,
                 help="Folder for the JSON results and the plot."),
    click.option("--json", "as_json", is_flag=True, help="Print the results as JSON, and nothing else."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """The options every training command has."""

    ranks: int | None
    transport: str
    out: Path
    as_json: bool

    def leave_to_ranks(self, check: Callable[[], object]) -> None:
        """Where several ranks are wanted and this process is none of them: starts them and exits with their exit code.

        ``check`` looks at the input first, so that a bad file is reported once.
        """
        if (self.ranks or 1) > 1 and not is_rank():
            check()
            sys.exit(run_ranks(self.ranks or 1, self.transport))


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The innermost decorator of a command: adds the options of a job, which it takes as its first argument, a Job."""

    def with_job(ranks: int | None, transport: str, out: Path, as_json: bool, **options: Any) -> Any:
        return command(Job(ranks, transport, out, as_json), **options)

    with_job.__name__, with_job.__doc__ = command.__name__, command.__doc__
    for option in reversed(_OPTIONS):
        with_job = option(with_job)
    return with_job


@dataclass(frozen=True, slots=True)
class Training:
    """One training run, the same on every rank."""

    name: str
    """As in ``intentpm train NAME``."""
    title: str
    data: str
    """What is trained on, for people."""
    config: Mapping[str, Any]
    """What goes into the results file: source and sizes of the data, hyper-parameters."""
    epochs: int
    columns: Sequence[Column]
    run: Callable[[Any], Iterable[Any]]
    """Given the parameter manager: the rows of the epochs, the first of the untrained model. They have the fields
    ``seconds``, ``bytes_sent`` and ``local_share`` besides the task's own."""
    quality: Callable[[Sequence[Any]], list[tuple[str, str]]]
    """First lines of the summary, from the rows."""


def train(training: Training, job: Job) -> None:
    """Runs it on this rank; rank 0 prints and saves."""
    import intentpm

    start = time.perf_counter()
    with intentpm.init(transport=job.transport) as pm:
        if job.ranks not in (None, pm.size):
            raise click.UsageError(f"-n {job.ranks}, but the launcher started {pm.size} ranks; leave -n out")
        console = make_console(quiet=job.as_json or pm.rank != 0, plain=not shows_on_terminal())
        console.print(f"{training.data}; {pm.size} rank{'s'[: pm.size > 1]}", markup=False, soft_wrap=True)
        rows = list(EpochLines(console, training.columns, training.epochs).follow(training.run(pm)))
        if pm.rank == 0:
            shared = {"ranks": pm.size, "transport": pm.transport_name}
            config = {**training.config, **shared}
            document, results, picture = _save(training.name, job.out, config, rows, time.perf_counter() - start)
            console.print(summary_table(training.title, _summary(training, rows, results, picture)))
            if job.as_json:
                click.echo(json.dumps(document))


def _save(
    name: str, out: Path, config: dict[str, Any], rows: list[Any], wall_s: float
) -> tuple[dict[str, Any], Path, Path]:
    from intentpm.bench import plots
    from intentpm.bench.results import write_results

    results = out / f"train-{name}-n{config['ranks']}.json"
    document = write_results(results, f"train {name}", config, rows, wall_s=wall_s)
    picture = results.with_suffix(".png")
    plots.save(document, picture)
    return document, results, picture


def _summary(training: Training, rows: list[Any], results: Path, picture: Path) -> list[tuple[str, str]]:
    trained = rows[1:]
    seconds = sum(row.seconds for row in trained)
    return [
        *training.quality(rows),
        ("epochs", f"{len(trained)} in {seconds:.2f} s of training"),
        ("bytes sent", f"{sum(row.bytes_sent for row in trained) / 1e6:.1f} MB by all ranks"),
        ("local accesses", f"{100 * trained[-1].local_share:.2f} % in the last epoch" if trained else "-"),
        ("results", str(results)),
        ("plot", str(picture)),
    ]
