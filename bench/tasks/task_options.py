"""Command line options that several training tasks have."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from intentpm.bench.tasks.training import look_ahead_option

Command = Callable[..., Any]


def source_options(data: str, generate: str) -> Callable[[Command], Command]:
    """``--data`` and ``--generate`` with these help texts; ``check_source`` sees to it that one of them is given."""

    def decorate(command: Command) -> Command:
        command = click.option("--generate", metavar="SPEC", help=generate)(command)
        return click.option("--data", type=click.Path(path_type=Path), help=data)(command)

    return decorate


def check_source(data: Path | None, generate: str | None, what: str = "FOLDER") -> None:
    """Raises UsageError unless exactly one is given."""
    if (data is None) == (generate is None):
        raise click.UsageError(f"give either --data {what} or --generate SPEC (--generate '' takes its defaults)")


def schedule_options(defaults: Any, batch: str) -> Callable[[Command], Command]:
    """``--lr --epochs --batch --look-ahead --seed`` with the ``defaults`` of a task's options.

    batch: what ``--batch`` counts.
    """
    options = (
        click.option("--lr", type=click.FloatRange(0, min_open=True), default=defaults.lr, show_default=True,
                     help="Learning rate."),
        click.option("--epochs", type=click.IntRange(0), default=defaults.epochs, show_default=True),
        click.option("--batch", type=click.IntRange(1), default=defaults.batch, show_default=True, help=batch),
        look_ahead_option,
        click.option("--seed", type=click.IntRange(0), default=defaults.seed, show_default=True),
    )  # fmt: skip

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def check_torch() -> None:
    """Raises UsageError where PyTorch is not installed."""
    if find_spec("torch") is None:
        raise click.UsageError("this task needs PyTorch: pip install 'intentpm[torch]'")


def dense_option(defaults: Any) -> Callable[[Command], Command]:
    """``--dense`` with the default of a task's options."""
    return click.option("--dense", type=click.Choice(("allreduce", "keys")), default=defaults.dense, show_default=True,
                        help="How ranks share the dense layers.")  # fmt: skip
