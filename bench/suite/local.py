"""Local pull, push and set: keys per call, row length, distribution of keys, size of the table.

The machinery is ``bench/kernels/local_access.py``; ``intentpm bench local`` measures one table with it. Small tables
(10^5 rows) stay in the caches or near, large ones (10^7 rows) do not. A table of 10^7 long rows would not fit beside
its baseline: it gets as many rows as ``MAX_TABLE_BYTES`` and a share of the free memory allow, and its rows say so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import intentpm
from intentpm.bench.kernels.local_access import LocalAccessOptions, measure_cases
from intentpm.bench.results import Row
from intentpm.bench.suite.parts import SUBJECT

NUM_KEYS = (100_000, 10_000_000)
DIMS = (1, 16, 64, 256)
MAX_TABLE_BYTES = 2_560_000_000
"""10^7 rows of 64 float32."""
FREE_SHARE = 4
"""A table takes at most this part (1/4) of the memory that is free; the baseline's array takes as much again."""
REPEATS = 15
QUICK_EFFORT = 0.2
"""Below, only what the table of targets asks for."""


def measure(effort: float) -> list[Row]:
    """Every operation, size, distribution and means; seconds per call."""
    rows: list[Row] = []
    for options, facts in _tables(effort):
        with intentpm.init() as pm:
            for _, measured in measure_cases(pm, options):
                rows += [replace(row, facts={**row.facts, **facts}) for row in measured]
    return rows


def _tables(effort: float) -> Iterator[tuple[LocalAccessOptions, dict[str, Any]]]:
    """Options per table, and facts to note with its rows."""
    options = LocalAccessOptions(
        repeats=max(3, round(REPEATS * effort)), distributions=("uniform", "zipf"), fresh=(100, 10_000)
    )
    if effort < QUICK_EFFORT:
        yield replace(options, num_keys=NUM_KEYS[0], dim=64, batch_sizes=(1, 100, 10_000)), {}
        return
    for dim in DIMS:
        fitting = _round_down(_most_table_bytes() // (4 * dim))
        for num_keys in NUM_KEYS:
            note = {"rows_wanted": num_keys} if fitting < num_keys else {}
            yield replace(options, num_keys=min(num_keys, fitting), dim=dim), note


def _round_down(number: int) -> int:
    """To 1, 2 or 5 times a power of ten, so that runs with slightly different free memory measure the same."""
    power: int = 10 ** (len(str(number)) - 1)
    return max(digit * power for digit in (1, 2, 5) if digit * power <= number)


def _most_table_bytes() -> int:
    return min(MAX_TABLE_BYTES, _free_memory_bytes() // FREE_SHARE)


def _free_memory_bytes() -> int:
    """What the system would hand out without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return kib * 1024


def draw(rows: Sequence[Mapping[str, Any]], figure: Any) -> None:
    """Nanoseconds per key over keys per call: one panel per operation and row length, largest table, uniform keys."""
    from intentpm.bench.suite.drawing import colours, legend_below, median

    shown = [row for row in rows if row["facts"]["distribution"] == "uniform"]
    shown = [row for row in shown if row["facts"]["situation"] == "same keys"]
    colour_of = colours(row["facts"]["by"] for row in shown)
    dims = sorted({row["sizes"]["dim"] for row in shown})
    operations = list(dict.fromkeys(row["name"] for row in shown))
    figure.set_size_inches(2.8 * len(dims) + 0.6, 2.4 * len(operations) + 0.6)
    panels = figure.subplots(len(operations), len(dims), sharex=True, sharey="row", squeeze=False)
    for line, operation in enumerate(operations):
        for column, dim in enumerate(dims):
            axes = panels[line][column]
            cases = [row for row in shown if (row["name"], row["sizes"]["dim"]) == (operation, dim)]
            most = max(row["sizes"]["num_keys"] for row in cases)
            cases = [row for row in cases if row["sizes"]["num_keys"] == most]
            for by in dict.fromkeys(row["facts"]["by"] for row in cases):
                points = [(row["sizes"]["keys"], median(row) * 1e9) for row in cases if row["facts"]["by"] == by]
                sizes, values = zip(*sorted(points), strict=True)
                per_key = [value / size for size, value in zip(sizes, values, strict=True)]
                width = 2 if by == SUBJECT else 1
                axes.plot(sizes, per_key, "o-", markersize=3, linewidth=width, color=colour_of[by], label=by)
            axes.set(xscale="log", yscale="log")
            axes.set_title(f"{operation}, {dim} floats, {most:,} rows", loc="left", fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("keys per call")
    figure.supylabel("ns per key", fontsize=9)
    legend_below(figure)
