"""What a training run shows on the terminal: a line per epoch while it runs, and a table at the end."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

LINE_COLUMNS = 120
"""Width taken when the output is no terminal (a file, or a launcher that prefixes it)."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the epoch lines."""

    title: str
    field: str
    """Attribute of the epoch's row."""
    form: str
    """Format specification for the number."""
    scale: float = 1
    """The number is multiplied by this before it is formatted."""

    @property
    def width(self) -> int:
        """Characters the column takes."""
        return max(len(self.title), 7)

    def text(self, row: Any) -> str:
        """The formatted number, "-" for nan."""
        value = getattr(row, self.field)
        return "-" if isinstance(value, float) and math.isnan(value) else format(value * self.scale, self.form)


EPOCH = Column("epoch", "epoch", "d")
TRAFFIC = (
    Column("seconds", "seconds", ".3f"),
    Column("MB sent", "bytes_sent", ".2f", 1e-6),
    Column("local %", "local_share", ".2f", 100.0),
)


class RunConsole(Console):
    """A console that says once when it can write no more, and is quiet from then on: the training goes on."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As Console.print, and flushed: behind a pipe the lines must still come out one by one."""
        if self.quiet:
            return
        try:
            super().print(*objects, **options)
            self.file.flush()
        except BrokenPipeError:  # nobody reads any more: the run ends, as that of any command
            raise
        except OSError as error:
            self.quiet = True
            click.echo(f"warning: standard output cannot be written ({error.strerror}); going on without", err=True)


def make_console(quiet: bool, plain: bool) -> Console:
    """The console of rank 0.

    A ``quiet`` one (the other ranks, ``--json``) prints nothing. A ``plain`` one takes what it writes to for a file: a
    launcher such as mpirun gives each rank a terminal of its own, and passes on to a file what comes out of it.
    """
    console = RunConsole(quiet=quiet, highlight=False)
    if plain or not console.is_terminal:
        console = RunConsole(quiet=quiet, highlight=False, width=LINE_COLUMNS, force_terminal=False)
    return console


class EpochLines:
    """Prints each epoch when it is done, and on a terminal a bar of the epochs to come."""

    def __init__(self, console: Console, columns: Sequence[Column], epochs: int) -> None:
        self.console, self.columns, self.epochs = console, columns, epochs

    def follow(self, rows: Iterable[Any]) -> Iterator[Any]:
        """Yields ``rows`` (the first is the untrained model's) and prints them on the way."""
        self._print(column.title for column in self.columns)
        with self._bar() as advance:
            for row in rows:
                self._print(column.text(row) for column in self.columns)
                yield row
                advance(row.epoch)

    def _print(self, cells: Iterable[str]) -> None:
        line = "  ".join(cell.rjust(column.width) for cell, column in zip(cells, self.columns, strict=True))
        self.console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def _bar(self) -> Iterator[Any]:
        if not self.console.is_terminal or self.console.quiet:
            yield lambda epoch: None
            return
        parts = (TextColumn("epochs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*parts, console=self.console, transient=True) as progress:
            task = progress.add_task("epochs", total=self.epochs)
            yield lambda epoch: progress.update(task, completed=epoch)


def summary_table(title: str, lines: Iterable[tuple[str, str]]) -> Table:
    """The final table: a name and a value per line."""
    table = Table(title=title, title_justify="left", show_header=False, title_style="bold")
    table.add_column(style="dim")
    table.add_column(overflow="fold")  # a path must not be cut
    for name, value in lines:
        table.add_row(name, Text(value))
    return table
