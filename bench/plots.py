"""Plots drawn from results files and traces, as PNG."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from intentpm.bench.benchmark_plot import draw_benchmarks
from intentpm.bench.benchmarks import Benchmark
from intentpm.bench.trace_plot import draw_trace, is_trace
from intentpm.foundation.whole_file import write_whole

WIDTH_INCHES, HEIGHT_INCHES, DPI = 7.2, 4.2, 150
INK, GRID = "#1f2430", "#d9dce3"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": GRID, "axes.grid": True, "axes.axisbelow": True, "axes.labelcolor": INK,
    "axes.spines.right": False, "axes.spines.top": False, "grid.color": GRID, "grid.linewidth": 0.7,
    "font.size": 10, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "legend.frameon": False,
    "axes.prop_cycle": cycler(color=["#1f5fbf", "#d9711c", "#2b8a57", "#8d4fb3", "#b3394b", "#5b6472"]),
}  # fmt: skip


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


def rmse_over_time(document: Mapping[str, Any], axes: Axes) -> None:
    """Test and validation RMSE of a matrix factorisation over the training time."""
    rows, config = document["rows"], document["config"]
    seconds = list(accumulate(row["seconds"] for row in rows))
    lows, highs = [], []
    for name, label, line in (("valid_rmse", "validation", "--"), ("test_rmse", "test", "-")):
        values = [row[name] for row in rows]
        if None in values:
            continue
        text = f"{label}: {values[-1]:.4f} (untrained {values[0]:.4f})"
        axes.plot(seconds, values, line, marker="o", markersize=3, label=text)
        lows.append(min(values))
        highs.append(max(values[1:], default=values[0]))
    _zoom_in(axes, min(lows), max(highs))
    ranks = config["ranks"]
    sizes = f"{config['users']:,} x {config['items']:,}, {config['ratings']:,} ratings"
    title = f"Matrix factorisation, {ranks} rank{'s'[: ranks > 1]}\n{config['data']}, {sizes}"
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("training time in s")
    axes.set_ylabel("RMSE")
    axes.set_xlim(left=0)
    axes.legend(title="after the last epoch", title_fontsize=9, alignment="left", loc="upper right")


def mrr_over_time(document: Mapping[str, Any], axes: Axes) -> None:
    """Filtered MRR and hits of a knowledge graph embedding over the training time."""
    rows, config = document["rows"], document["config"]
    seconds = list(accumulate(row["seconds"] for row in rows))
    for name, label, line in (("mrr", "MRR", "-"), ("hits_1", "Hits@1", "--"), ("hits_10", "Hits@10", ":")):
        values = [row[name] for row in rows]
        axes.plot(seconds, values, line, marker="o", markersize=3, label=f"{label}: {values[-1]:.4f}")
    ranks = config["ranks"]
    sizes = f"{config['entities']:,} entities, {config['relations']:,} relations, {config['triples']:,} triples"
    title = f"Knowledge graph embeddings, {ranks} rank{'s'[: ranks > 1]}\n{config['data']}, {sizes}"
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("training time in s")
    axes.set_ylabel(f"filtered ranking, {config['evaluate']} triples")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(title="after the last epoch", title_fontsize=9, alignment="left", loc="best")


def _zoom_in(axes: Axes, low: float, high: float) -> None:
    """Shows ``low`` to ``high`` only, if the rest (the untrained model) would take more than half of the height."""
    if 0 < high - low < 0.5 * (axes.get_ylim()[1] - low):
        margin = 0.08 * (high - low)
        axes.set_ylim(low - margin, high + 4 * margin)


PLOTS: dict[str, Callable[[Mapping[str, Any], Axes], None]] = {
    "train kge": mrr_over_time,
    "train mf": rmse_over_time,
}
