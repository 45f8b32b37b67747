"""Rows and bytes relocated per second between two ranks that intend them in turn, next to the wire's bandwidth."""

from collections.abc import Mapping, Sequence
from typing import Any

from intentpm.bench.results import Row
from intentpm.bench.scenarios.links import Link, usable_links
from intentpm.bench.scenarios.transport_contenders import UnavailableError
from intentpm.bench.scenarios.wire import bandwidth
from intentpm.bench.suite.parts import SUBJECT

KEYS = (10_000, 100_000)
"""Per turn; a round carries at most 8 MiB of rows, so the larger number takes several."""
DIM = 64
TURNS, CASE_S = 15, 3.0
START_S = 60.0
NAME = "relocation"
WIRE_BYTES, WIRE_REPEATS = 1 << 30, 3


def measure(effort: float) -> list[Row]:
    """Rows per second and bytes of rows per second, one sample per turn of either rank."""
    sizes = KEYS if effort >= 0.2 else KEYS[:1]
    arguments = {
        "cases": [("polling", keys) for keys in sizes], "dim": DIM, "seed": 0, "turns": max(2, round(TURNS * effort)),
        "case_s": max(0.2, CASE_S * min(1.0, effort)),
    }  # fmt: skip
    rows: list[Row] = []
    for link in usable_links():
        results = link.run("taking_turns", 2, arguments, START_S + 20 * len(sizes) * CASE_S)
        for number, keys in enumerate(sizes):
            seconds = [value for result in results for value in result["cases"][number]["samples"]]
            rows += throughput_rows(NAME, link, SUBJECT, keys, [keys / value for value in seconds])
        rows += wire_rows(NAME, link, sizes, effort)
    return rows


def throughput_rows(name: str, link: Link, by: str, keys: int, rows_per_s: Sequence[float], **facts: Any) -> list[Row]:
    """The same throughput in rows and in bytes of rows."""
    sizes, facts = {"keys": keys, "dim": DIM}, {"by": by, **facts}
    bytes_per_s = [4 * DIM * value for value in rows_per_s]
    return [
        Row(f"{name}, rows", rows_per_s, "rows/s", link.name, 2, sizes, facts),
        Row(f"{name}, bytes", bytes_per_s, "B/s", link.name, 2, sizes, facts),
    ]


def wire_rows(name: str, link: Link, sizes: Sequence[int], effort: float, **facts: Any) -> list[Row]:
    """What the wire could carry, in rows of the same size."""
    try:
        by, bytes_per_s = bandwidth(link, int(WIRE_BYTES * min(1.0, effort)), WIRE_REPEATS if effort >= 0.2 else 1)
    except UnavailableError as why:
        print(f"the wire of {link.name} is not measured: {why}")
        return []
    rows_per_s = [value / (4 * DIM) for value in bytes_per_s]
    return [row for keys in sizes for row in throughput_rows(name, link, by, keys, rows_per_s, **facts)]


def draw(rows: Sequence[Mapping[str, Any]], figure: Any) -> None:
    """GB/s per link, a bar for each size and each limit."""
    from intentpm.bench.suite.drawing import legend_below, median

    shown = [row for row in rows if row["unit"] == "B/s"]
    links = list(dict.fromkeys(row["transport"] for row in shown))
    axes = figure.subplots()
    kinds = list(dict.fromkeys(_kind(row) for row in shown))
    for place, link in enumerate(links):
        of_link = {_kind(row): median(row) / 1e9 for row in shown if row["transport"] == link}
        for number, (kind, value) in enumerate(of_link.items()):
            at = place + (number - (len(of_link) - 1) / 2) * 0.8 / len(of_link)
            colour = f"C{kinds.index(kind)}"
            axes.bar(at, value, 0.75 / len(of_link), color=colour, label=kind)
            axes.annotate(f"{value:.2f}", (at, value), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(links)), links)
    axes.set_ylabel("GB/s of rows")
    legend_below(figure)


def _kind(row: Mapping[str, Any]) -> str:
    by = str(row["facts"]["by"])
    return f"{by}, {row['sizes']['keys']:,} keys" if by == SUBJECT else by
