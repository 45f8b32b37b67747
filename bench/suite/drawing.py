"""What the plots of the suite's parts share."""

from collections.abc import Mapping
from typing import Any

import numpy as np


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
