"""The zipf workload on more and more ranks: time per step, bytes and messages per rank, step and round.

Every rank has the same work, so ideally time stays. Real ranks share this machine's cores: with more ranks than cores
they measure the processor's work, not the network's. Simulated ranks have a processor and a link each
(``NetworkModel``: 2 us, 10 GB/s); what their processors do costs nothing but the step itself. The baseline is the same
job with every row where its key's hash puts it, a classic parameter server.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from intentpm.bench.results import Row, describe_environment
from intentpm.bench.scenarios.links import usable_links
from intentpm.bench.scenarios.simulated_zipf import simulate_zipf
from intentpm.bench.suite.parts import SUBJECT

BASELINE = "static placement"
WAYS = {SUBJECT: "adaptive", BASELINE: "static"}
REAL_RANKS = (1, 2, 4, 8)
SIMULATED_RANKS = (2, 4, 8, 16, 32, 64, 128, 256)
REAL = {"workload": "zipf", "num_keys": 100_000, "dim": 64, "batch": 256, "seed": 0, "look_ahead": 32}
SIMULATED = {"num_keys": 20_000, "dim": 64, "batch": 64, "seed": 0, "look_ahead": 16, "step_us": 200}
REAL_STEPS, SIMULATED_STEPS, REPEATS = 1000, 40, 2
TIMEOUT_S = 120.0


def measure(effort: float) -> list[Row]:
    """Seconds, bytes and messages; one sample per run."""
    return _real(effort) + _simulated(effort)


def _real(effort: float) -> list[Row]:
    link, steps = usable_links()[0], max(50, round(REAL_STEPS * effort))
    cores = describe_environment()["cores"]
    rows: list[Row] = []
    for ranks in REAL_RANKS if effort >= 0.2 else REAL_RANKS[:2]:
        runs: dict[str, list[list[dict[str, Any]]]] = {by: [] for by in WAYS}
        for _ in range(REPEATS if effort >= 0.5 else 1):
            for by, management in WAYS.items():
                arguments = {**REAL, "steps": steps, "init": {"management": management}}
                runs[by].append(link.run("management", ranks, arguments, TIMEOUT_S))
        for by, taken in runs.items():
            facts = {"by": by, "situation": "real", "cpu_bound": ranks > cores, "steps": steps}
            totals = [_total(run) for run in taken]
            rows += _rows(totals, steps, link.name, ranks, _sizes(REAL), facts)
    return rows


def _total(run: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The slowest rank's seconds; means over the ranks of the rest."""
    means = {
        name: sum(rank[name] for rank in run) / len(run)
        for name in ("bytes_sent", "messages_sent", "rounds", "local", "replica", "remote")
    }
    here = means["local"] + means["replica"]
    share = here / max(1.0, here + means["remote"])
    return {**means, "seconds": max(rank["seconds"] for rank in run), "local_share": share}


def _simulated(effort: float) -> list[Row]:
    most = 256 if effort >= 0.5 else 32 if effort >= 0.2 else 8
    steps = SIMULATED_STEPS if effort >= 0.2 else 20
    rows: list[Row] = []
    for ranks in (size for size in SIMULATED_RANKS if size <= most):
        for by, management in WAYS.items():
            run = simulate_zipf(ranks, management, {**SIMULATED, "steps": steps})
            facts = {"by": by, "situation": "simulated", "steps": steps, "real_s": run["real_s"]}
            totals = [{**run, "seconds": run["virtual_s"]}]
            rows += _rows(totals, steps, "sim", ranks, _sizes(SIMULATED), facts)
    return rows


def _sizes(arguments: Mapping[str, Any]) -> dict[str, int]:
    return {"keys": arguments["batch"], "dim": arguments["dim"], "num_keys": arguments["num_keys"]}


def _rows(
    totals: Sequence[Mapping[str, float]], steps: int, transport: str, ranks: int, sizes: dict[str, int],
    facts: dict[str, Any],
) -> list[Row]:  # fmt: skip
    """Per rank and step, and per rank and round where there are rounds."""

    def row(name: str, unit: str, samples: list[float]) -> Row:
        return Row(name, samples, unit, transport, ranks, sizes, facts)

    rows = [
        row("zipf step", "s", [total["seconds"] / steps for total in totals]),
        row("zipf local accesses", "share", [total["local_share"] for total in totals]),
    ]
    for counted, unit in (("bytes", "B"), ("messages", "messages")):
        sent = f"{counted}_sent"
        rows.append(row(f"zipf {counted} per step", unit, [total[sent] / steps for total in totals]))
        if all(total["rounds"] for total in totals):
            rows.append(row(f"zipf {counted} per round", unit, [total[sent] / total["rounds"] for total in totals]))
    return rows


def draw(rows: Sequence[Mapping[str, Any]], figure: Any) -> None:
    """Time, bytes and messages per step over the ranks: simulated above, real below."""
    from intentpm.bench.suite.drawing import legend_below, median

    kinds = (("zipf step", 1e6, "us"), ("zipf bytes per step", 1e-3, "kB sent"), ("zipf messages per step", 1, "sent"))
    panels = figure.subplots(2, len(kinds), squeeze=False)
    for line, situation in enumerate(("simulated", "real")):
        for axes, (name, scale, unit) in zip(panels[line], kinds, strict=True):
            for by in WAYS:
                cases = [
                    row for row in rows
                    if (row["name"], row["facts"]["situation"], row["facts"]["by"]) == (name, situation, by)
                ]  # fmt: skip
                ranks = [row["ranks"] for row in cases]
                axes.plot(ranks, [median(row) * scale for row in cases], marker="o", markersize=3, label=by)
            axes.set_xscale("log", base=2)
            axes.set_ylim(bottom=0)
            axes.set_title(f"{situation}: {name.removeprefix('zipf ')}, {unit}", loc="left", fontsize=9)
    figure.supxlabel("ranks (per rank; real ones share this machine's cores)", fontsize=9)
    legend_below(figure)
