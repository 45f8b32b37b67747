"""What the plots of the suite's parts share."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

PALETTE = (
    "#1f5fbf", "#d9711c", "#2b8a57", "#8d4fb3", "#b3394b", "#5b6472", "#c9a227", "#2aa7b8", "#7a5230", "#e377c2",
)  # fmt: skip

LEGEND_POINTS = 8
LEGEND_ENTRY_INCHES, LEGEND_LETTER_INCHES = 0.5, 0.068
"""Width of a legend's entry without its text, and of a letter on average."""


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, in the order in which they first appear."""
    return {name: PALETTE[n % len(PALETTE)] for n, name in enumerate(dict.fromkeys(names))}


def median(row: Mapping[str, Any]) -> float:
    """Median of a row's samples, in its unit."""
    return float(np.median(row["samples"]))


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
