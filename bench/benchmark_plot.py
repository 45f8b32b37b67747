"""The plot of any file of pytest-benchmark's: medians over the size that varies most."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from intentpm.bench.benchmarks import SUBJECT, UNNAMED, Benchmark, describe_case

MOST_PANELS = 24
PANEL_INCHES = (3.6, 2.4)


def draw_benchmarks(benchmarks: Sequence[Benchmark], figure: Figure) -> None:
    """A panel per operation, situation, way and other size; a line per means. Sets the figure's size."""
    panels: dict[str, tuple[str, list[Benchmark]]] = {}
    for alike in _split(benchmarks, lambda info: list(_texts(info).values())):
        size = _size_that_varies(alike)
        for cases in _split(alike, lambda info: [value for name, value in _sizes(info).items() if name != size]):  # noqa: B023
            info = {name: value for name, value in cases[0]["extra_info"].items() if name != size}
            panels.setdefault(describe_case(info), (size, []))[1].extend(cases)
    shown = dict(list(panels.items())[:MOST_PANELS])
    columns = math.ceil(math.sqrt(len(shown)))
    lines = -(-len(shown) // columns)
    figure.set_size_inches(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * lines + 0.6)
    grid = figure.subplots(lines, columns, squeeze=False).flat
    for axes, (title, (size, cases)) in zip(grid, shown.items(), strict=False):
        _draw_panel(axes, title, size, cases)
    for axes in list(grid)[len(shown) :]:
        axes.set_axis_off()
    if len(panels) > len(shown):
        figure.suptitle(f"the first {len(shown)} of {len(panels)} panels", fontsize=9)
    _legend(figure)


def _split(benchmarks: Sequence[Benchmark], key: Any) -> list[list[Benchmark]]:
    parts: dict[str, list[Benchmark]] = {}
    for benchmark in benchmarks:
        parts.setdefault(repr(key(benchmark["extra_info"])), []).append(benchmark)
    return list(parts.values())


def _texts(info: Any) -> dict[str, str]:
    named = {name: value for name, value in info.items() if isinstance(value, str) and name not in UNNAMED}
    return {"operation": info["operation"], "unit": info["unit"], **named}


def _sizes(info: Any) -> dict[str, int]:
    return {name: value for name, value in info.items() if isinstance(value, int) and name not in UNNAMED}


def _size_that_varies(benchmarks: Sequence[Benchmark]) -> str:
    """The name of the size with the most values; of several, the first."""
    names = list(_sizes(benchmarks[0]["extra_info"]))
    values = {name: len({benchmark["extra_info"].get(name) for benchmark in benchmarks}) for name in names}
    return max(names, key=lambda name: values[name], default="")


def _draw_panel(axes: Any, title: str, size: str, cases: Sequence[Benchmark]) -> None:
    for of_means in _split(cases, lambda info: info["by"]):
        by = of_means[0]["extra_info"]["by"]
        points: dict[int, list[float]] = {}
        for case in of_means:
            points.setdefault(case["extra_info"].get(size, 0), []).extend(case["stats"]["data"])
        xs = sorted(points)
        width = 2 if by == SUBJECT else 1
        axes.plot(xs, [np.median(points[x]) for x in xs], "o-", markersize=3, linewidth=width, label=by)
    positive = all(case["stats"]["min"] > 0 for case in cases)
    axes.set_yscale("log" if positive else "linear")
    if len({case["extra_info"].get(size) for case in cases}) > 1:
        axes.set(xscale="log", xlabel=size)
    axes.set_title(title, loc="left", fontsize=7)
    axes.set_ylabel(cases[0]["extra_info"]["unit"])
    axes.tick_params(labelsize=7)


def _legend(figure: Figure) -> None:
    """One for all panels, below them; the same means has the same colour everywhere."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for line in axes.get_lines():
            handles.setdefault(str(line.get_label()), line)
            line.set_color(f"C{list(handles).index(str(line.get_label())) % 10}")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
