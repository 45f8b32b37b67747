"""Two results files against each other, case by case, with a verdict that respects the noise.

A case differs when two things hold: a Mann-Whitney test finds that the samples of one file tend to be larger, and the
ratio of the medians is further from 1 than a threshold that covers what two runs of the same code differ by. The first
alone would call any difference of a quiet machine a change; the second alone would believe a noisy one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intentpm.bench.suite.cases import RowMapping, case_key, describe_case, join_runs
from intentpm.bench.suite.units import MORE_IS_BETTER

ALPHA = 0.01
"""Chance of finding a difference where there is none, per case."""
MIN_SAMPLES = 5
"""Fewer on either side cannot reach ALPHA."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One case in both files."""

    case: str
    unit: str
    old: float
    new: float
    """Medians, in ``unit``."""
    ratio: float
    """new / old; nan where old is 0."""
    p_value: float
    verdict: str
    """"same", "better", "worse" (of times, bytes and shares less is better; of rates more is), or "too few samples"."""


def compare(old: Sequence[RowMapping], new: Sequence[RowMapping], threshold: float) -> list[Comparison]:
    """The cases that both have, in the order of ``old``. threshold: relative change of medians that does not count."""
    news = {case_key(row): row for row in join_runs(new)}
    pairs = ((row, news.get(case_key(row))) for row in join_runs(old))
    return [_compare_case(row, other, threshold) for row, other in pairs if other is not None]


def rows_with_samples(document: Mapping[str, Any]) -> list[RowMapping]:
    """The rows of a results file that can be compared; empty for a training run's."""
    rows = document.get("rows", [])
    return [row for row in rows if isinstance(row, Mapping) and row.get("samples") and "unit" in row]


def _compare_case(old: RowMapping, new: RowMapping, threshold: float) -> Comparison:
    before, after = float(np.median(old["samples"])), float(np.median(new["samples"]))
    ratio = after / before if before else (1.0 if after == before else np.nan)
    p_value = _p_value(old["samples"], new["samples"])
    verdict = _verdict(old, new, ratio, p_value, threshold)
    return Comparison(describe_case(old), old["unit"], before, after, ratio, p_value, verdict)


def _p_value(old: Sequence[float], new: Sequence[float]) -> float:
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(old, new).pvalue)


def _verdict(old: RowMapping, new: RowMapping, ratio: float, p_value: float, threshold: float) -> str:
    if min(len(old["samples"]), len(new["samples"])) < MIN_SAMPLES:
        return "too few samples"
    if p_value >= ALPHA or abs(ratio - 1) <= threshold:
        return "same"
    grew = bool(np.median(new["samples"]) > np.median(old["samples"]))
    return "better" if grew == (old["unit"] in MORE_IS_BETTER) else "worse"
