"""What remains of a training run: the results file and its plot. Nothing that fails here loses the results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from intentpm.bench.output import OutputError, save_file
from intentpm.bench.results import as_json, results_document


@dataclass(frozen=True, slots=True)
class Saved:
    """Where the results of a run are."""

    document: Mapping[str, Any]
    """What the results file holds."""
    results: Path | None
    """The file; elsewhere than asked for if there is a problem, None if it could be written nowhere."""
    picture: Path | None
    """The plot; None if there is none."""
    problem: OutputError | None

    @property
    def only_in_memory(self) -> bool:
        """Whether nothing holds the results but this process."""
        return self.results is None

    def lines(self) -> list[tuple[str, str]]:
        """Of the summary."""
        return [("results", str(self.results or "below")), ("plot", str(self.picture or "-"))]

    def print_json(self) -> None:
        """Prints the results on standard output. Raises OutputError, which says where else they are."""
        try:
            click.echo(json.dumps(self.document))
        except BrokenPipeError:
            raise
        except OSError as error:
            where = f"the results are in {self.results}" if self.results else "the results are lost"
            raise OutputError(f"standard output cannot be written ({error.strerror}); {where}") from error


def save(name: str, results: Path, config: Mapping[str, Any], rows: Sequence[Any], wall_s: float) -> Saved:
    """Writes ``results`` and the plot beside it. A plot that fails is a warning; nothing is raised for a full disk."""
    document = results_document(f"train {name}", config, rows, wall_s=wall_s)
    try:
        save_file(results, as_json(document))
    except OutputError as error:
        return Saved(document, error.kept, None, error)
    return Saved(document, results, _plot(document, results.with_suffix(".png")), None)


def _plot(document: Mapping[str, Any], picture: Path) -> Path | None:
    try:
        from intentpm.bench import plots

        plots.save(document, picture)
    except Exception as error:  # of any kind: Matplotlib missing, no fonts, a full disk
        click.echo(f"warning: no plot ({error}); intentpm plot draws it from the results", err=True)
        return None
    return picture
