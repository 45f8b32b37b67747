"""What the ``intentpm train`` commands share: the job's options, its ranks, what it prints and what it saves."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from intentpm.bench.output import OutputError, check_file, check_folder
from intentpm.bench.relaunch import is_rank, run_ranks, shows_on_terminal
from intentpm.bench.tasks.checkpoints import CheckpointOptions, Duration
from intentpm.bench.tasks.progress import Column, EpochLines, make_console, summary_table
from intentpm.bench.tasks.saving import Saved, save
from intentpm.checkpoint.cli import Place
from intentpm.checkpoint.storage import Location

_OPTIONS = (
    click.option("-n", "ranks", type=click.IntRange(1), help="Ranks to start on this machine [1, or the launcher's]."),
    click.option("--transport", default="auto", show_default=True, help="auto, ucx or tcp."),
    click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("results"), show_default=True,
                 help="Folder for the JSON results and the plot."),
    click.option("--checkpoint-every", "every_s", type=Duration(), metavar="TIME",
                 help="Make a checkpoint so often: 30s, 5m, 1h [never]."),
    click.option("--checkpoints", type=Place(exists=False),
                 help="Folder, or URL, for the checkpoints [checkpoints-NAME in the folder of the results]."),
    click.option("--resume", is_flag=True, help="Go on from the newest checkpoint, if there is one."),
    click.option("--json", "as_json", is_flag=True, help="Print the results as JSON, and nothing else."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """The options every training command has."""

    ranks: int | None
    transport: str
    out: Path
    as_json: bool
    every_s: float | None = None
    checkpoints: Location | None = None
    resume: bool = False

    def checkpoints_of(self, name: str) -> CheckpointOptions:
        """Of ``intentpm train NAME``."""
        return CheckpointOptions(self.checkpoints or self.out / f"checkpoints-{name}", self.every_s, self.resume)

    def leave_to_ranks(self, check: Callable[[], object]) -> None:
        """Where several ranks are wanted and this process is none of them: starts them and exits with their exit code.

        Looks at the output, and by ``check`` at the input, first, so that what is bad is reported once.
        """
        if (self.ranks or 1) > 1 and not is_rank():
            check_folder(self.out)
            check()
            sys.exit(run_ranks(self.ranks or 1, self.transport))


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The innermost decorator of a command: adds the options of a job, which it takes as its first argument, a Job."""

    def with_job(**options: Any) -> Any:
        job = Job(**{field.name: options.pop(field.name) for field in fields(Job)})
        return command(job, **options)

    with_job.__name__, with_job.__doc__ = command.__name__, command.__doc__
    for option in reversed(_OPTIONS):
        with_job = option(with_job)
    return with_job


def _depth(context: click.Context, option: click.Parameter, value: str) -> int | str:
    if value != "auto" and not value.isdecimal():
        raise click.BadParameter(f"{value!r} is neither a number of batches nor auto.")
    return value if value == "auto" else int(value)


look_ahead_option = click.option(
    "--look-ahead", metavar="BATCHES", default="auto", show_default=True, callback=_depth,
    help="Batches signalled before use; 0: none; auto: as many as management needs.",
)  # fmt: skip


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
    notes: Sequence[str] = ()
    """What a reader of the data should know, a line each: rank 0 says it before it trains."""


def train(training: Training, job: Job) -> None:
    """Runs it on this rank; rank 0 prints and saves.

    Raises click.ClickException on rank 0 when the results are not where they were wanted. What speaks against training
    at all, such as a folder that cannot be written, rank 0 says; all ranks end in order then, with the same exit code.
    """
    import intentpm

    start = time.perf_counter()
    with intentpm.init(transport=job.transport) as pm:
        if refusal := _refusal(pm, job, _results(pm, training, job)):
            if pm.rank == 0:  # before the others end: a launcher may kill what is left after the first failure
                refusal.show()
        else:
            console = make_console(quiet=job.as_json or pm.rank != 0, plain=not shows_on_terminal())
            rows = _epochs(pm, training, console)
            saved = _save(pm, training, job, rows, time.perf_counter() - start) if pm.rank == 0 else None
    if refusal:
        sys.exit(refusal.exit_code)
    if saved:
        console.print(summary_table(training.title, [*_summary(training, rows), *saved.lines()]))
        if job.as_json or saved.only_in_memory:
            saved.print_json()
        if saved.problem:
            raise saved.problem


def _results(pm: Any, training: Training, job: Job) -> Path:
    return job.out / f"train-{training.name}-n{pm.size}.json"


def _refusal(pm: Any, job: Job, results: Path) -> click.ClickException | None:
    """Collective: why there will be no training, the same on every rank; None if there is nothing against it."""
    if job.ranks not in (None, pm.size):
        return click.UsageError(f"-n {job.ranks}, but the launcher started {pm.size} ranks; leave -n out")
    problem = _problem_of(results) if pm.rank == 0 else ""
    told = pm.allgather(problem.encode())[0].decode()
    return OutputError(told) if told else None


def _problem_of(results: Path) -> str:
    try:
        check_file(results)
    except OutputError as error:
        return error.message
    return ""


def _epochs(pm: Any, training: Training, console: Console) -> list[Any]:
    console.print(f"{training.data}; {pm.size} rank{'s'[: pm.size > 1]}", markup=False, soft_wrap=True)
    for note in training.notes if pm.rank == 0 else ():
        click.echo(f"note: {note}", err=True)
    return list(EpochLines(console, training.columns, training.epochs).follow(training.run(pm)))


def _save(pm: Any, training: Training, job: Job, rows: list[Any], wall_s: float) -> Saved:
    config = {**training.config, "ranks": pm.size, "transport": pm.transport_name}
    return save(training.name, _results(pm, training, job), config, rows, wall_s)


def _summary(training: Training, rows: list[Any]) -> list[tuple[str, str]]:
    trained = rows[1:]
    seconds = sum(row.seconds for row in trained)
    return [
        *training.quality(rows),
        ("epochs", f"{len(trained)} in {seconds:.2f} s of training"),
        ("bytes sent", f"{sum(row.bytes_sent for row in trained) / 1e6:.1f} MB by all ranks"),
        ("local accesses", f"{100 * trained[-1].local_share:.2f} % in the last epoch" if trained else "-"),
    ]
