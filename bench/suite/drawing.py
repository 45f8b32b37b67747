"""What the plots of the suite's parts share."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

PALETTE = (
    "#1f5fbf", "#d9711c", "#2b8a57", "#8d4fb3", "#b3394b", "#5b6472", "#c9a227", "#2aa7b8", "#7a5230", "#e377c2",
)  # fmt: skip


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, in the order in which they first appear."""
    return {name: PALETTE[n % len(PALETTE)] for n, name in enumerate(dict.fromkeys(names))}


def median(row: Mapping[str, Any]) -> float:
    """Median of a row's samples, in its unit."""
    return float(np.median(row["samples"]))


def legend_below(figure: Any) -> None:
    """One legend for all panels of ``figure``, under them."""
    labels: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=min(6, len(labels)), fontsize=8)
