"""What the plots of the suite's parts share."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from intentpm.bench.suite.parts import SUBJECT

PALETTE = (
    "#1f5fbf", "#d9711c", "#2b8a57", "#8d4fb3", "#b3394b", "#5b6472", "#c9a227", "#2aa7b8", "#7a5230", "#e377c2",
)  # fmt: skip

SUBJECT_COLOUR, OTHER_COLOUR = "#1f5fbf", "#b8bec8"
LABEL_POINTS = 8
LEGEND_POINTS = 8
LEGEND_ENTRY_INCHES, LEGEND_LETTER_INCHES = 0.5, 0.068
"""Width of a legend's entry without its text, and of a letter on average."""


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, in the order in which they first appear."""
    return {name: PALETTE[n % len(PALETTE)] for n, name in enumerate(dict.fromkeys(names))}


def median(row: Mapping[str, Any]) -> float:
    """Median of a row's samples, in its unit."""
    return float(np.median(row["samples"]))


def bars_by_contender(
    figure: Any, labels: Sequence[str], rows: Sequence[Mapping[str, Any]], scale: float, fmt: str, xlabel: str
) -> None:
    """Horizontal bars of ``scale`` times each row's median, labelled with the number; intentpm's stand out.

    labels: of the rows, from the top; all different.
    fmt: of the numbers, as in ``Axes.bar_label``.
    """
    axes = figure.subplots()
    bars = axes.barh(labels, [scale * median(row) for row in rows])
    for bar, row in zip(bars, rows, strict=True):
        bar.set_color(SUBJECT_COLOUR if row["facts"]["by"] == SUBJECT else OTHER_COLOUR)
    axes.bar_label(bars, fmt=fmt, padding=3, fontsize=LABEL_POINTS)
    axes.tick_params(labelsize=LABEL_POINTS)
    axes.invert_yaxis()
    axes.set_xlabel(xlabel)


def legend_below(figure: Any) -> None:
    """One legend for all panels of ``figure``, under them, with as many columns as fit.

    The figure's x label, which it would cover, becomes its title.
    """
    title = figure.get_supxlabel()
    if title:
        figure.supxlabel("")
    labels: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    widest = LEGEND_ENTRY_INCHES + LEGEND_LETTER_INCHES * max(map(len, labels), default=0)
    columns = max(1, min(len(labels), int(figure.get_size_inches()[0] / widest)))
    figure.legend(
        labels.values(), labels.keys(), loc="outside lower center", ncols=columns, fontsize=LEGEND_POINTS,
        title=title or None, title_fontsize=LEGEND_POINTS + 1,
    )  # fmt: skip
