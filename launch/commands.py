"""The click commands of ``intentpm``; import through ``intentpm.launch.cli.main``."""

import importlib
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from intentpm.foundation.errors import Error
from intentpm.launch.seconds_option import Seconds


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for.

    ``lazy``: command name -> (module, attribute, one line of help).
    """

    def __init__(self, *args: object, lazy: Mapping[str, tuple[str, str, str]], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        module, attribute, _ = self._lazy[cmd_name]
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name and error.name.partition(".")[0] == "intentpm":
                raise
            raise click.ClickException(
                f"`intentpm {cmd_name}` needs the package {error.name}: pip install 'intentpm[cli]'"
            ) from None
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing the lazy ones."""
        rows = []
        for name in self.list_commands(ctx):
            command = None if name in self._lazy else super().get_command(ctx, name)
            rows.append((name, command.get_short_help_str(80) if command else self._lazy[name][2]))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> object:
        """Runs the command; an intentpm error is a message, not a traceback."""
        try:
            return super().invoke(ctx)
        except Error as error:
            raise click.ClickException(f"{type(error).__name__}: {error}") from error


@click.group(
    cls=LazyGroup,
    lazy={
        "doctor": ("intentpm.launch.doctor", "doctor", "Report what works on this machine, and how to fix the rest."),
        "train": ("intentpm.bench.cli", "train", "Train one of the bundled tasks."),
        "bench": ("intentpm.bench.cli", "bench", "Measure kernels and transports on this machine."),
        "checkpoint": ("intentpm.checkpoint.cli", "checkpoint", "Look at checkpoints, verify and export them."),
        "plot": ("intentpm.bench.cli", "plot", "Draw results of train and bench."),
    },
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="intentpm")
def intentpm() -> None:
    """Adaptive parameter management for distributed training of sparse models."""


@intentpm.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-n", "--ranks", type=click.IntRange(1), required=True, help="How many ranks to start.")
@click.option("--transport", metavar="NAME", help="Transport of the ranks: auto, ucx or tcp. [default: auto]")
@click.option("--prefix/--no-prefix", default=True, help="Put [rank] before each line of output.")
@click.option("--timeout", "timeout_s", type=Seconds(), metavar="SECONDS", help="Kill the job after this long.")
@click.option(
    "--grace",
    "grace_s",
    type=Seconds(),
    metavar="SECONDS",
    help="Time for the other ranks to end after a first failure. [default: peer timeout + 2]",
)
@click.option("--restarts", type=click.IntRange(0), default=0, help="Start a job that fails anew, so many times.")
@click.option(
    "--on-loss",
    type=click.Choice(["stop", "continue"]),
    default=None,
    help="When a rank is lost: end the job, or let the others go on. [default: INTENTPM_ON_LOSS, or stop]",
)
@click.option("-m", "--module", is_flag=True, help="PROGRAM is the name of a module, as in python -m.")
@click.argument("program")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(
    ranks: int,
    transport: str | None,
    prefix: bool,
    timeout_s: float | None,
    grace_s: float | None,
    restarts: int,
    on_loss: str | None,
    module: bool,
    program: str,
    args: tuple[str, ...],
) -> None:
    """Run PROGRAM (a Python script, or any command) as several ranks on this machine.

    Ends with the exit code of the first rank to fail (128 + signal number for one that was killed), and leaves no
    process of the job behind.
    """
    from intentpm.launch.local import ON_LOSS_VARIABLE, run_local

    argv = [sys.executable, "-m", program, *args] if module else [*command_for(program), *args]
    sys.exit(
        run_local(
            ranks,
            argv,
            transport=transport,
            prefix=prefix,
            timeout_s=timeout_s,
            grace_s=grace_s,
            restarts=restarts,
            on_loss=on_loss or os.environ.get(ON_LOSS_VARIABLE, "stop"),
        )
    )


def command_for(program: str) -> list[str]:
    """The command line that starts ``program``: a Python script by this interpreter, anything else as it is."""
    if Path(program).exists():
        is_command = Path(program).is_file() and Path(program).suffix != ".py" and shutil.which(program) is not None
        return [str(Path(program).absolute())] if is_command else [sys.executable, program]
    if shutil.which(program):
        return [program]
    raise click.ClickException(f"{program}: no such script or command")
