"""Plots of training runs: their quality over the training time."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class TaskPlot:
    """How the results of a task are drawn."""

    title: str
    """A format string over the run's configuration, as the next two."""
    sizes: str
    """Of the data."""
    measure: str
    """Of the vertical axis."""
    lines: tuple[tuple[str, str, str], ...]
    """Per line: field of the epochs' rows, label, style. Lines without a last value are left out, as are epochs without
    one."""
    from_zero: bool = False
    """Whether the vertical axis begins at 0; else the untrained model is left out where it is far off."""


TASK_PLOTS = {
    "train mf": TaskPlot(
        "Matrix factorisation", "{users:,} x {items:,}, {ratings:,} ratings", "RMSE",
        (("valid_rmse", "validation", "--"), ("test_rmse", "test", "-")),
    ),
    "train kge": TaskPlot(
        "Knowledge graph embeddings", "{entities:,} entities, {relations:,} relations, {triples:,} triples",
        "filtered ranking, {evaluate} triples",
        (("mrr", "MRR", "-"), ("hits_1", "Hits@1", "--"), ("hits_10", "Hits@10", ":")), from_zero=True,
    ),
    "train ctr": TaskPlot(
        "Click-through rates", "{examples:,} examples, {fields} fields, {keys:,} keys", "area under the ROC curve",
        (("valid_auc", "validation", "--"), ("test_auc", "test", "-"), ("reachable_auc", "best reachable", ":")),
    ),
    "train gnn": TaskPlot(
        "Graph networks ({model})", "{nodes:,} nodes, {edges:,} edges, {classes} classes", "accuracy",
        (("valid_accuracy", "validation", "--"), ("test_accuracy", "test", "-")), from_zero=True,
    ),
    "train wv": TaskPlot(
        "Word vectors", "{words:,} words, {tokens:,} tokens", "Spearman's correlation",
        (("ws353", "WS-353", "-"), ("simlex", "SimLex-999", "--"), ("topics", "same topic", "-")), from_zero=True,
    ),
}  # fmt: skip


def draw_training(document: Mapping[str, Any], axes: Axes) -> None:
    """Draws the results of a training run. KeyError: a part is missing."""
    plot, rows, config = TASK_PLOTS[document["bench"]], document["rows"], document["config"]
    seconds = list(accumulate(row["seconds"] for row in rows))
    trained: list[float] = []
    for name, label, style in plot.lines:
        if rows[-1][name] is None:
            continue
        known = [(time, row[name]) for time, row in zip(seconds, rows, strict=True) if row[name] is not None]
        times, values = zip(*known, strict=True)
        trained += values[1:] or values
        axes.plot(times, values, style, marker="o", markersize=3, label=f"{label}: {values[-1]:.4f}")
    if plot.from_zero:
        axes.set_ylim(bottom=min([0, *trained]))
    else:
        _zoom_in(axes, min(trained), max(trained))
    ranks = config["ranks"]
    title, sizes, measure = (text.format_map(config) for text in (plot.title, plot.sizes, plot.measure))
    heading = f"{title}, {ranks} rank{'s'[: ranks > 1]}\n{config['data']}, {sizes}"
    axes.set_title(heading, loc="left", fontsize=10)
    axes.set_xlabel("training time in s")
    axes.set_ylabel(measure)
    axes.set_xlim(left=0)
    axes.legend(title="after the last epoch", title_fontsize=9, alignment="left", loc="best")


def _zoom_in(axes: Axes, low: float, high: float) -> None:
    """Shows ``low`` to ``high`` only, if the rest (the untrained model) would take more than half of the height."""
    if 0 < high - low < 0.5 * (axes.get_ylim()[1] - low):
        margin = 0.08 * (high - low)
        axes.set_ylim(low - margin, high + 4 * margin)
