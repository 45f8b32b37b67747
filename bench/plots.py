"""Plots drawn from results files and traces, as PNG."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from intentpm.bench.benchmark_plot import draw_benchmarks
from intentpm.bench.benchmarks import Benchmark
from intentpm.bench.scenarios.checkpoints import draw_steps
from intentpm.bench.scenarios.regret import draw_regret
from intentpm.bench.trace_plot import draw_trace, is_trace
from intentpm.bench.training_plot import TASK_PLOTS, draw_training
from intentpm.foundation.whole_file import write_whole

WIDTH_INCHES, HEIGHT_INCHES, DPI = 7.2, 4.2, 150
INK, GRID = "#1f2430", "#d9dce3"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": GRID, "axes.grid": True, "axes.axisbelow": True, "axes.labelcolor": INK,
    "axes.spines.right": False, "axes.spines.top": False, "grid.color": GRID, "grid.linewidth": 0.7,
    "font.size": 10, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "legend.frameon": False,
    "axes.prop_cycle": cycler(color=["#1f5fbf", "#d9711c", "#2b8a57", "#8d4fb3", "#b3394b", "#5b6472"]),
}  # fmt: skip

PLOTS: dict[str, Callable[[Mapping[str, Any], Axes], None]] = {
    **dict.fromkeys(TASK_PLOTS, draw_training),
    "bench checkpoints": draw_steps,
    "bench management --network": draw_regret,
    "bench simulate": draw_regret,
}


def draw(results: Path, picture: Path) -> None:
    """Draws a results file or a trace into ``picture``; its folder is made. Raises click.ClickException."""
    try:
        document = json.loads(results.read_bytes())  # of bytes, it tells the encoding
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise click.ClickException(f"{results}: is not a readable results file ({error})") from error
    known = isinstance(document, dict) and (document.get("bench") in PLOTS or document.get("benchmarks"))
    if not known and not is_trace(document):
        kind = document.get("bench") if isinstance(document, dict) else None
        plots = ", ".join((*PLOTS, "pytest-benchmark's files", "traces"))
        raise click.ClickException(f"{results}: nothing to draw for {kind!r}; there are plots of {plots}")
    try:
        save(document, picture)
    except OSError as error:
        raise click.ClickException(f"{picture}: cannot be written ({error.strerror or error})") from error
    except (LookupError, TypeError, ValueError) as error:
        raise click.ClickException(f"{results}: is incomplete or of another version ({error!r})") from error


def save(document: Mapping[str, Any], picture: Path) -> None:
    """Draws what ``write_results`` returned, a file of pytest-benchmark's, or a trace.

    The suffix of ``picture`` says in which format, PNG if none. KeyError: no plot for its kind, or a part is missing.
    ClickException: no such format. OSError: nothing was written.
    """

    def fill(figure: Figure) -> None:
        if is_trace(document):
            draw_trace(document, figure)
        elif "benchmarks" in document:
            draw_benchmarks(document["benchmarks"], figure)
        else:
            PLOTS[document["bench"]](document, figure.add_subplot())

    _save(fill, picture)


def save_benchmarks(benchmarks: Sequence[Benchmark], picture: Path) -> None:
    """Draws the cases of one or several files of pytest-benchmark's."""
    _save(lambda figure: draw_benchmarks(benchmarks, figure), picture)


def _save(fill: Callable[[Figure], object], picture: Path) -> None:
    drawn = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI, layout="constrained")
        fill(figure)
        figure.savefig(drawn, format=_format(figure, picture))
    write_whole(picture, drawn.getvalue())


def _format(figure: Figure, picture: Path) -> str:
    found, known = picture.suffix[1:].lower() or "png", figure.canvas.get_supported_filetypes()
    if found not in known:
        raise click.ClickException(f"{picture}: no plot is written as .{found}; there are {', '.join(sorted(known))}")
    return found
