"""Area under the ROC curve of scores that lie on several ranks, by histograms: those of ranks add up."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 8_192
RANGE = 16.0
"""Scores (logits) beyond +- this count as this."""


def score_histograms(scores: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """How many negatives, and how many positives, have a score in each bin: float64 (2, BINS).

    Parameters:
        scores: (n,), higher is likelier positive.
        labels: (n,), 0 or 1.
    """
    places = (np.asarray(scores, np.float64).clip(-RANGE, RANGE) + RANGE) * ((BINS - 1) / (2 * RANGE))
    codes = np.rint(places).astype(np.int64) + BINS * np.asarray(labels).astype(np.int64)
    return np.bincount(codes, minlength=2 * BINS).reshape(2, BINS).astype(np.float64)


def area_under_curve(histograms: NDArray[np.float64]) -> float:
    """The probability that a positive scores higher than a negative; half of it where they share a bin, nan without
    either. ``histograms``: float64 (2, BINS), sums of ``score_histograms``.
    """
    negatives, positives = histograms
    pairs = negatives.sum() * positives.sum()
    if not pairs:
        return float("nan")
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + 0.5 * negatives)).sum() / pairs)
