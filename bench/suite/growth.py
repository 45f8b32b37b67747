"""Cost of single operations as keys, replicas, intents and ranks grow a hundredfold: none may grow faster than they.

Each curve's ``exponent`` (slope of the cost over the size, both in logarithms, by least squares) is in its rows' facts:
0 is a cost that does not depend on the size, 1 is a cost in proportion. The size of "ranks" is how many others there
are. Keys, replicas and intents grow in a job of two
real ranks; ranks grow in a simulated job, where every rank does the same and the cost is per rank: time on the network,
messages, and processor time, of which the simulator takes the larger part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from intentpm.bench.results import Row
from intentpm.bench.scenarios.growing import OPERATION_KEYS
from intentpm.bench.scenarios.links import usable_links
from intentpm.bench.scenarios.simulated_growth import grow_ranks
from intentpm.bench.suite.parts import SUBJECT

DIM = 16
BASE = {"num_keys": 400_000, "replicas": 1000, "intents": 0}
AXES: Mapping[str, Mapping[str, Sequence[int]]] = {
    "keys": {"num_keys": (20_000, 200_000, 2_000_000)},
    "replicas": {"replicas": (1000, 10_000, 100_000)},
    "intents": {"intents": (1000, 10_000, 100_000)},
}
RANKS = (2, 20, 200)
SIMULATED = {"num_keys": 20_000, "dim": DIM}
REPEATS, CASE_S = 200, 0.5
TIMEOUT_S = 90.0


def measure(effort: float) -> list[Row]:
    """Seconds per operation on OPERATION_KEYS keys; bytes of the index, of the replicas, of the intents."""
    points = 3 if effort >= 0.2 else 2
    rows = [row for axis in AXES for row in _grown(axis, points, effort)]
    return _with_exponents(rows + _grown_ranks(points, effort))


def _grown(axis: str, points: int, effort: float) -> list[Row]:
    link = usable_links()[0]
    ((name, sizes),) = AXES[axis].items()
    rows = []
    for size in sizes[:points]:
        arguments = {**BASE, name: size}
        options = {"dim": DIM, "seed": 0, "case_s": CASE_S}
        result = link.run(
            "growing", 2, {**arguments, **options, "repeats": max(10, round(REPEATS * effort))}, TIMEOUT_S
        )[1]
        row_sizes: dict[str, int] = {**{key: arguments[key] for key in BASE}, "keys": OPERATION_KEYS, "dim": DIM}
        rows += [
            _row(operation, "s", result[operation], link.name, 2, row_sizes, axis, size)
            for operation in ("pull", "round", "intent")
        ]
        take = _row("pull", "s", result["np.take"], link.name, 2, row_sizes, axis, size)
        rows.append(replace(take, facts={**take.facts, "by": "np.take"}))
        rows.append(_row("memory", "B", [result["bytes"][axis]], link.name, 2, row_sizes, axis, size))
    return rows


def _grown_ranks(points: int, effort: float) -> list[Row]:
    rows = []
    for ranks in RANKS[:points]:
        arguments = {**SIMULATED, "repeats": max(2, round(4 * min(1.0, effort)))}
        result = grow_ranks(ranks, arguments)
        sizes = {**SIMULATED, "keys": OPERATION_KEYS}
        for operation in ("pull", "round", "intent"):
            for kind, unit in (("network", "s"), ("processor", "s"), ("messages", "messages")):
                taken = result[operation][kind]
                rows.append(_row(f"{operation}, {kind}", unit, taken, "sim", ranks, sizes, "ranks", ranks - 1))
        rows.append(_row("memory", "B", result["bytes"]["index"], "sim", ranks, sizes, "ranks", ranks - 1))
    return rows


def _row(
    name: str, unit: str, samples: Sequence[float], transport: str, ranks: int, sizes: Mapping[str, int], axis: str,
    size: int,
) -> Row:  # fmt: skip
    return Row(
        name, samples, unit, transport, ranks, sizes,
        {"by": SUBJECT, "situation": f"growing {axis}", "axis": axis, "size": size},
    )  # fmt: skip


def _curve(row: Row) -> tuple[str, str, str]:
    return row.name, row.facts["by"], row.facts["axis"]


def _with_exponents(rows: Sequence[Row]) -> list[Row]:
    exponents = {}
    for curve in dict.fromkeys(map(_curve, rows)):
        points = [(row.facts["size"], row.median) for row in rows if _curve(row) == curve]
        exponents[curve] = exponent(points)
    return [replace(row, facts={**row.facts, "exponent": exponents[_curve(row)]}) for row in rows]


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Slope of log(value) over log(size), by least squares. Values are > 0, sizes differ."""
    sizes, values = np.log(np.array(points, np.float64)).T
    return float(np.polyfit(sizes, values, 1)[0])


def draw(rows: Sequence[Mapping[str, Any]], figure: Any) -> None:
    """Cost relative to the smallest size: one panel per thing that grows; dotted: in proportion."""
    from intentpm.bench.suite.drawing import median

    axes_names = list(dict.fromkeys(row["facts"]["axis"] for row in rows))
    panels = figure.subplots(2, 2, sharey=True).flat
    for axes, axis in zip(panels, axes_names, strict=False):
        shown = [row for row in rows if row["facts"]["axis"] == axis]
        for name, by in dict.fromkeys((row["name"], row["facts"]["by"]) for row in shown):
            curve = [row for row in shown if (row["name"], row["facts"]["by"]) == (name, by)]
            sizes = [row["facts"]["size"] for row in curve]
            values = [median(row) / median(curve[0]) for row in curve]
            own = by == SUBJECT
            label = f"{name if own else by}: {curve[0]['facts']['exponent']:+.2f}"
            axes.plot(sizes, values, "-" if own else "--", marker="o", markersize=3, label=label)
        axes.plot(sizes, [size / sizes[0] for size in sizes], color="black", linestyle=":")
        axes.set(xscale="log", yscale="log")
        axes.set_title(f"growing {axis}", loc="left", fontsize=9)
        axes.legend(fontsize=7, title="exponent", title_fontsize=7)
    figure.supylabel("cost, relative to the smallest (dotted: in proportion)", fontsize=9)
