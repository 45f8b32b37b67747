"""Replica refreshes per second, and how old replicas are under load, next to the wire's bandwidth."""

from collections.abc import Mapping, Sequence
from typing import Any

from intentpm.bench.results import Row
from intentpm.bench.scenarios.links import Link, usable_links
from intentpm.bench.suite.parts import SUBJECT
from intentpm.bench.suite.relocation import DIM, throughput_rows, wire_rows

REPLICAS, BATCH = 10_000, 500
LOADS = {"light load": 50_000.0, "full load": 0.0}
"""Rows written per second; 0: as many as the owner's worker can."""
PERIOD_S, PERIODS = 0.1, 20
START_S = 60.0
NAME = "refresh"


def measure(effort: float) -> list[Row]:
    """Rows and bytes refreshed per second at full load, staleness in seconds at each load."""
    arguments = {
        "loads": list(LOADS.values()), "replicas": REPLICAS, "batch": BATCH, "dim": DIM, "seed": 0,
        "period_s": PERIOD_S, "periods": max(2, round(PERIODS * effort)),
    }  # fmt: skip
    rows: list[Row] = []
    for link in usable_links():
        owner, holder = link.run("refresh_load", 2, arguments, START_S + 10 * PERIOD_S * PERIODS)
        for situation, written, read in zip(LOADS, owner["loads"], holder["loads"], strict=True):
            rows += _rows(link, situation, written, read)
        rows += wire_rows(NAME, link, (REPLICAS,), effort, situation="full load")
    return rows


def _rows(link: Link, situation: str, written: Mapping[str, Any], read: Mapping[str, Any]) -> list[Row]:
    periods = written["periods"]
    facts = {"situation": situation, "written_per_s": [round(period["written_per_s"]) for period in periods]}
    refreshed = [period["refreshed_per_s"] for period in periods]
    stale = [period["staleness_s"] for period in periods]
    by, sizes = {"by": SUBJECT, "situation": situation}, {"keys": REPLICAS, "dim": DIM}
    return [
        *throughput_rows(NAME, link, SUBJECT, REPLICAS, refreshed, **facts),
        # Means of periods, as stats() gives them: the owner's upper bound.
        Row("staleness", stale, "s", link.name, 2, sizes, {**by, "max_s": written["stalest_s"]}),
        Row("age when read", read["ages_s"], "s", link.name, 2, sizes, by),
    ]


def draw(rows: Sequence[Mapping[str, Any]], figure: Any) -> None:
    """Left: GB/s at full load and the wire's. Right: ages of what readers saw."""
    import numpy as np

    from intentpm.bench.suite.drawing import legend_below, median

    left, right = figure.subplots(1, 2)
    links = list(dict.fromkeys(row["transport"] for row in rows))
    for place, link in enumerate(links):
        of_link = [row for row in rows if row["transport"] == link]
        full = [row for row in of_link if row["unit"] == "B/s" and row["facts"]["situation"] == "full load"]
        for number, row in enumerate(full):
            own = row["facts"]["by"] == SUBJECT
            at, label = place + 0.4 * number - 0.2, SUBJECT if own else "the wire"
            left.bar(at, median(row) / 1e9, 0.38, color="C0" if own else "#b9bec8", label=label)
        for row in of_link:
            if row["name"] == "age when read" and row["samples"]:
                shares = (np.arange(len(row["samples"])) + 1) / len(row["samples"])
                style = "-" if row["facts"]["situation"] == "full load" else ":"
                label = f"{link}, {row['facts']['situation']}"
                right.plot(np.sort(row["samples"]) * 1e3, shares, style, color=f"C{place + 1}", label=label)
    left.set_xticks(range(len(links)), links)
    left.set_ylabel("GB/s of refreshed rows")
    right.set_xscale("log")
    right.set_xlabel("age of a replica when read, ms")
    right.set_ylabel("share of reads below")
    legend_below(figure)
