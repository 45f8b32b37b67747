"""Regret: how much more time and bytes adaptive management takes than the fixed mode that is best for a workload and a
network. What ``intentpm bench management --network`` and ``intentpm bench simulate`` have measured, as a table.

A run is a mapping: ``workload``, ``network``, ``mode``; ``seconds`` until the quality of one rank was reached, None if
it was not; ``megabytes`` sent by all ranks until then (all, if it was not); ``quality`` at the end, or None.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUBJECT = "adaptive"
FIXED = ("static", "replicate", "full_replication", "relocate")
MODES = (SUBJECT, *FIXED, "adapm")
"""The last is the rule of AdaPM, shown beside the techniques that are fixed."""
ALLOWED = 1.1
"""What is aimed at."""

Run = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Medians of one mode's runs."""

    mode: str
    seconds: float
    """inf where most runs did not reach the quality."""
    megabytes: float
    quality: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The modes on one workload and network."""

    workload: str
    network: str
    outcomes: Sequence[Outcome]

    @property
    def best(self) -> Outcome:
        """The fixed mode that is fastest."""
        return min((each for each in self.outcomes if each.mode in FIXED), key=lambda each: each.seconds)

    @property
    def subject(self) -> Outcome:
        """What adaptive management did."""
        return next(each for each in self.outcomes if each.mode == SUBJECT)

    @property
    def in_time(self) -> float:
        """Seconds of adaptive management over those of the best fixed mode; nan if neither reached the quality."""
        if math.isinf(self.subject.seconds) and math.isinf(self.best.seconds):
            return math.nan
        return self.subject.seconds / self.best.seconds

    @property
    def in_bytes(self) -> float:
        """Bytes of adaptive management over those of the mode that is best in time."""
        return self.subject.megabytes / max(self.best.megabytes, 1e-9)


def compare(runs: Iterable[Run]) -> list[Comparison]:
    """In the order of the runs. Left out: where adaptive management or every fixed mode has not run yet."""
    found: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        found.setdefault((run["workload"], run["network"]), {}).setdefault(run["mode"], []).append(run)
    return [
        Comparison(*key, [_outcome(mode, of_mode[mode]) for mode in MODES if mode in of_mode])
        for key, of_mode in found.items()
        if SUBJECT in of_mode and any(mode in of_mode for mode in FIXED)
    ]


def _outcome(mode: str, runs: Sequence[Run]) -> Outcome:
    seconds = [math.inf if run["seconds"] is None else run["seconds"] for run in runs]
    qualities = [run["quality"] for run in runs if run["quality"] is not None]
    quality = float(np.median(qualities)) if qualities else None
    return Outcome(
        mode, sorted(seconds)[len(seconds) // 2], float(np.median([run["megabytes"] for run in runs])), quality
    )


def table(comparisons: Iterable[Comparison]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        f"| workload | network | {' | '.join(MODES)} | regret in time | in bytes |",
        f"| --- | --- |{' ---: |' * (len(MODES) + 2)}",
    ]
    for each in comparisons:
        cells = {outcome.mode: _cell(outcome, outcome is each.best) for outcome in each.outcomes}
        shown = " | ".join(cells.get(mode, "") for mode in MODES)
        lines.append(f"| {each.workload} | {each.network} | {shown} | {each.in_time:.2f} | {each.in_bytes:.2f} |")
    return lines


def _cell(outcome: Outcome, is_best: bool) -> str:
    seconds = "never" if math.isinf(outcome.seconds) else f"{outcome.seconds:.3g} s"
    quality = "" if outcome.quality is None else f", {outcome.quality:.3f}"
    return f"{'**' if is_best else ''}{seconds}{'**' if is_best else ''}, {outcome.megabytes:.3g} MB{quality}"


def draw_regret(document: Mapping[str, Any], axes: "Axes") -> None:
    """Regret in time and in bytes per workload and network, of a results file."""
    comparisons = compare(document["rows"])
    at = np.arange(len(comparisons))
    for values, label, marker in (
        ([each.in_time for each in comparisons], "time", "o"),
        ([each.in_bytes for each in comparisons], "bytes", "x"),
    ):
        axes.plot(at, np.minimum(values, 100.0), marker, label=label)
    axes.axhline(1.0, color="gray", linewidth=0.8)
    axes.axhline(ALLOWED, color="gray", linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set_xticks(at, [f"{each.workload}\n{each.network}" for each in comparisons], rotation=60, fontsize=7)
    axes.set_ylabel("adaptive / best fixed mode")
    axes.set_title(f"{document['bench']}: below 1, adaptive management is better", loc="left", fontsize=10)
    axes.legend()
