"""Time from an intent's being due until all its keys are on this rank, next to one round trip with the same bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

from intentpm.bench.results import Row
from intentpm.bench.scenarios.links import Link, usable_links
from intentpm.bench.scenarios.transport_contenders import UnavailableError
from intentpm.bench.scenarios.wire import round_trips
from intentpm.bench.suite.parts import SUBJECT

KEYS = (100, 9_500)
WAYS = ("polling", "pulling", "computing")
DIM = 64
TURNS, CASE_S = 200, 2.0
START_S = 60.0
NAME = "due to local"
PULL = "remote pull without intent"


def measure(effort: float) -> list[Row]:
    """Seconds per intent, every sample of both ranks.

    Situations: how the worker waits, see ``taking_turns``.
    """
    cases = [(waiting, keys) for keys in KEYS for waiting in WAYS]
    arguments = {
        "cases": cases, "dim": DIM, "seed": 0, "turns": max(5, round(TURNS * effort)),
        "case_s": max(0.2, CASE_S * min(1.0, effort)),
    }  # fmt: skip
    rows: list[Row] = []
    for link in usable_links():
        results = link.run("taking_turns", 2, arguments, START_S + 10 * len(cases) * CASE_S)
        for number, (waiting, keys) in enumerate(cases):
            found = [result["cases"][number] for result in results]
            samples = [value for case in found for value in case["samples"]]
            rows.append(_row(link, SUBJECT, waiting, keys, samples))
            if waiting == "pulling":
                pulls = [value for case in found for value in case["remote_pulls"]]
                rows.append(_row(link, PULL, waiting, keys, pulls))
        rows += _wire_rows(link, arguments)
    return rows


def _row(link: Link, by: str, waiting: str, keys: int, samples: Sequence[float]) -> Row:
    return Row(
        NAME, samples, transport=link.name, ranks=2, sizes={"keys": keys, "dim": DIM},
        facts={"by": by, "situation": waiting},
    )  # fmt: skip


def _wire_rows(link: Link, arguments: Mapping[str, Any]) -> list[Row]:
    try:
        by, samples = round_trips(link, [(4 * keys, 4 * DIM * keys) for keys in KEYS], arguments["turns"], 0.3)
    except UnavailableError as why:
        print(f"the wire of {link.name} is not measured: {why}")
        return []
    return [_row(link, by, "polling", keys, taken) for keys, taken in zip(KEYS, samples, strict=True)]


def draw(rows: Sequence[Mapping[str, Any]], figure: Any) -> None:
    """The distribution of the samples, one panel per number of keys and link."""
    import numpy as np

    from intentpm.bench.suite.drawing import legend_below, median

    links = list(dict.fromkeys(row["transport"] for row in rows))
    panels = figure.subplots(len(KEYS), len(links), squeeze=False, sharey=True)
    for line, keys in enumerate(KEYS):
        for column, link in enumerate(links):
            axes = panels[line][column]
            for row in rows:
                if (row["sizes"]["keys"], row["transport"]) != (keys, link):
                    continue
                label = row["facts"]["by"]
                label += f", {row['facts']['situation']}" if label == SUBJECT else ""
                if len(row["samples"]) == 1:
                    axes.axvline(median(row) * 1e6, color="black", linestyle=":", label=label)
                else:
                    shares = (np.arange(len(row["samples"])) + 1) / len(row["samples"])
                    axes.plot(np.sort(row["samples"]) * 1e6, shares, label=label)
            axes.set_xscale("log")
            axes.set_title(f"{keys:,} keys, {link}", loc="left", fontsize=9)
    figure.supxlabel("microseconds", fontsize=9)
    figure.supylabel("share of samples below", fontsize=9)
    legend_below(figure)
