"""Remote pull while the main thread of the serving rank computes: a Python loop, numpy, torch.

One thread computes; the machine's other cores are free for the client. Baselines as in ``remote``.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from intentpm.bench.results import Row
from intentpm.bench.scenarios.busy_loops import BUSY_LOOPS
from intentpm.bench.scenarios.links import usable_links
from intentpm.bench.suite.parts import SUBJECT
from intentpm.bench.suite.remote import access_arguments, baseline_rows, own_rows

KEYS = (1, 100)


def measure(effort: float) -> list[Row]:
    """Seconds per pull, every sample."""
    loops = [name for name in BUSY_LOOPS if name != "torch" or find_spec("torch") is not None]
    arguments = access_arguments([(loop, "pull", keys) for loop in loops for keys in KEYS], effort)
    rows: list[Row] = []
    for link in usable_links():
        rows += own_rows(link, arguments)
        rows += baseline_rows(link, arguments)
    return rows


def draw(rows: Sequence[Mapping[str, Any]], figure: Any) -> None:
    """Median (dot) and 99th percentile (end of the line) of each situation, 1 key."""
    from intentpm.bench.suite.drawing import legend_below, median
    from intentpm.bench.suite.remote import tail

    loops = list(dict.fromkeys(row["facts"]["situation"] for row in rows))
    sides = list(dict.fromkeys((row["facts"]["by"], row["transport"]) for row in rows))
    panels = figure.subplots(1, len(KEYS), sharey=True, squeeze=False)[0]
    for axes, keys in zip(panels, KEYS, strict=True):
        for number, (by, link) in enumerate(sides):
            for place, loop in enumerate(loops):
                wanted = (by, link, loop, keys)
                for row in rows:
                    facts = row["facts"]
                    if (facts["by"], row["transport"], facts["situation"], row["sizes"]["keys"]) != wanted:
                        continue
                    at = place + 0.12 * number
                    low, high = median(row) * 1e6, tail(row) * 1e6
                    mark = "o" if by == SUBJECT else "s"
                    axes.plot([at, at], [low, high], color=f"C{number % 10}", linewidth=2)
                    axes.plot(at, low, mark, color=f"C{number % 10}", markersize=5, label=f"{by}, {link}")
        axes.set_yscale("log")
        axes.set_xticks([place + 0.06 * len(sides) for place in range(len(loops))], loops)
        axes.set_title(f"{keys} key{'s'[: keys > 1]}", loc="left", fontsize=9)
    panels[0].set_ylabel("us per pull: median to 99th percentile")
    legend_below(figure)
