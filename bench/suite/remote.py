"""Remote pull and push between two ranks of this machine, over each link, next to what else could fetch these rows.

Baselines: UCX's own round trip (plain sockets' for the tcp transport), MPI one-sided access, torch's RPC.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from intentpm.bench.results import Row
from intentpm.bench.scenarios.links import Link, usable_links
from intentpm.bench.scenarios.mpi_rows import NAMES as MPI_NAMES
from intentpm.bench.scenarios.mpi_rows import mpi_rows
from intentpm.bench.scenarios.rpc_rows import NAME as RPC_NAME
from intentpm.bench.scenarios.rpc_rows import rpc_rows
from intentpm.bench.scenarios.transport_contenders import UnavailableError
from intentpm.bench.scenarios.wire import round_trips
from intentpm.bench.suite.parts import SUBJECT

KEYS = (1, 10, 100, 1000, 10_000)
SMOKE_KEYS = (1, 100)
DIM, NUM_KEYS = 64, 25_000
REPEATS, CASE_S, INTERVAL_S = 1000, 1.0, 300e-6
ACCESS_BYTES = 4
"""Of a request, per key; the limit has no headers."""
START_S = 60.0


def measure(effort: float) -> list[Row]:
    """Seconds per call, every sample."""
    sizes = KEYS if effort >= 0.2 else SMOKE_KEYS
    cases = [("back to back", operation, keys) for keys in sizes for operation in ("pull", "push")]
    cases += [("spaced", operation, 1) for operation in ("pull", "push")]
    arguments = access_arguments(cases, effort)
    rows: list[Row] = []
    for link in usable_links():
        rows += own_rows(link, arguments)
        rows += _wire_rows(link, sizes, arguments)
        rows += baseline_rows(link, arguments)
    return rows


def access_arguments(cases: Sequence[tuple[str, str, int]], effort: float) -> dict[str, Any]:
    """What ``remote_access`` and its baselines are given."""
    return {
        "cases": list(cases), "num_keys": NUM_KEYS, "dim": DIM, "seed": 0, "interval_s": INTERVAL_S,
        "repeats": max(20, round(REPEATS * effort)), "case_s": max(0.05, CASE_S * min(1.0, effort)),
    }  # fmt: skip


def own_rows(link: Link, arguments: Mapping[str, Any]) -> list[Row]:
    """Ours, over one link."""
    timeout_s = START_S + 3 * len(arguments["cases"]) * arguments["case_s"]
    results = link.run("remote_access", 2, arguments, timeout_s)
    return _rows(link, {"pull": SUBJECT, "push": SUBJECT}, results[1]["cases"])


def baseline_rows(link: Link, arguments: Mapping[str, Any]) -> list[Row]:
    """MPI's over one link, and torch's, which chooses its own way: it is measured with the first link only."""
    rows: list[Row] = []
    if link.transport == "ucx":
        try:
            rows += _rows(link, MPI_NAMES, mpi_rows(arguments, link.mpi_options))
        except UnavailableError as why:
            print(f"mpi4py is not measured over {link.name}: {why}")
    if link == usable_links()[0]:
        try:
            rows += _rows(link, {"pull": RPC_NAME, "push": RPC_NAME}, rpc_rows(arguments))
        except UnavailableError as why:
            print(f"torch RPC is not measured: {why}")
    return rows


def _rows(link: Link, by: Mapping[str, str], cases: Sequence[Mapping[str, Any]]) -> list[Row]:
    return [
        _row(link, by[case["operation"]], case["situation"], case["operation"], case["keys"], case["samples"])
        for case in cases
    ]


def _row(link: Link, by: str, situation: str, operation: str, keys: int, samples: Sequence[float]) -> Row:
    return Row(
        operation, samples, transport=link.name, ranks=2, sizes={"keys": keys, "dim": DIM, "num_keys": NUM_KEYS},
        facts={"by": by, "situation": situation},
    )  # fmt: skip


def _wire_rows(link: Link, sizes: Sequence[int], arguments: Mapping[str, Any]) -> list[Row]:
    try:
        by, samples = round_trips(
            link, [_pull_bytes(keys) for keys in sizes], arguments["repeats"], arguments["case_s"]
        )
    except UnavailableError as why:
        print(f"the wire of {link.name} is not measured: {why}")
        return []
    # A push sends its rows one way instead of receiving them: the same bytes.
    return [
        _row(link, by, "back to back", operation, keys, taken)
        for keys, taken in zip(sizes, samples, strict=True)
        for operation in ("pull", "push")
    ]


def _pull_bytes(keys: int) -> tuple[int, int]:
    """Of a request and its reply."""
    return max(8, ACCESS_BYTES * keys), 4 * DIM * keys


def draw(rows: Sequence[Mapping[str, Any]], figure: Any) -> None:
    """Median and 99th percentile over keys per call: one panel per link and operation."""
    from intentpm.bench.suite.drawing import legend_below, median

    shown = [row for row in rows if row["facts"]["situation"] == "back to back"]
    links = list(dict.fromkeys(row["transport"] for row in shown))
    panels = figure.subplots(2, len(links), sharex=True, sharey="row", squeeze=False)
    for column, link in enumerate(links):
        for line, operation in enumerate(("pull", "push")):
            axes = panels[line][column]
            cases = [row for row in shown if (row["transport"], row["name"]) == (link, operation)]
            for number, by in enumerate(dict.fromkeys(row["facts"]["by"] for row in shown)):
                of_by = [(row["sizes"]["keys"], row) for row in cases if row["facts"]["by"] == by]
                sizes = [keys for keys, _ in of_by]
                own = by == SUBJECT
                axes.plot(
                    sizes, [median(row) * 1e6 for _, row in of_by], color=f"C{number}", marker="o", markersize=3,
                    linewidth=2 if own else 1, label=by,
                )  # fmt: skip
                if own:
                    tails = [tail(row) * 1e6 for _, row in of_by]
                    axes.plot(sizes, tails, color=f"C{number}", linestyle=":", label=f"{by}, p99")
            axes.set(xscale="log", yscale="log")
            axes.set_title(f"{operation}, {link}", loc="left", fontsize=9)
    figure.supxlabel(f"keys per call ({DIM} float32 each)", fontsize=9)
    figure.supylabel("microseconds per call", fontsize=9)
    legend_below(figure)


def tail(row: Mapping[str, Any]) -> float:
    """The 99th percentile of a row's samples."""
    import numpy as np

    return float(np.quantile(row["samples"], 0.99))
