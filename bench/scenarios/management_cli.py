"""``intentpm bench management``: every way of managing keys, on the same workloads, in one run."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from intentpm.bench.output import OutFolder
from intentpm.bench.results import describe_environment, write_results
from intentpm.bench.runner import run_scenario

WAYS = (
    ("adaptive", "adaptive"),
    ("adaptive", "immediate"),
    ("relocate", "adaptive"),
    ("relocate", "immediate"),
    ("replicate", "adaptive"),
    ("replicate", "immediate"),
    ("static", "adaptive"),
    ("full_replication", "adaptive"),
)
"""Pairs of management and timing; where intents are not acted on, the timing says nothing."""
WORKLOADS = ("zipf", "mf", "kge")
ARGUMENTS = {
    "seed": 0, "num_keys": 100_000, "dim": 64, "batch": 256, "steps": 8_000, "epochs": 3,
    "mf_lr": 0.01,  # with the task's own, 4 ranks that push stale gradients diverge under static and relocate
    "ratings": "users=20000,items=5000,ratings=400000", "graph": "entities=10000,relations=100,triples=60000",
}  # fmt: skip
LOOK_AHEAD = {"zipf": 128, "mf": 32, "kge": 32}
"""Batches. A step of zipf takes 0.1 ms: where ranks share cores, 32 of them are less than a round trip."""
TIMEOUT_S = 240.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One workload under one way of managing keys; per-rank figures are means over the ranks."""

    workload: str
    ranks: int
    management: str
    timing: str
    seconds: float
    """Median over the repetitions of the slowest rank's training time."""
    mb_per_rank: float
    local_percent: float
    relocations: float
    replicas: float


@click.command()
@click.option("-n", "sizes", type=click.IntRange(1), multiple=True, default=(2, 4), show_default=True, help="Ranks.")
@click.option(
    "--workload", "workloads", type=click.Choice(WORKLOADS), multiple=True, default=WORKLOADS, show_default=True
)
@click.option(
    "--repeats", type=click.IntRange(1), default=3, show_default=True, help="Runs of each; the median counts."
)
@click.option("--transport", default="auto", show_default=True)
@click.option("--out", type=OutFolder(), default=Path("docs"), show_default=True)
def management(sizes: tuple[int, ...], workloads: tuple[str, ...], repeats: int, transport: str, out: Path) -> None:
    """Compare the five modes of management and both timings: time, bytes, local accesses, relocations, replicas."""
    outcomes = []
    for outcome in _measure(sizes, workloads, repeats, transport):
        outcomes.append(outcome)
        click.echo(
            f"{outcome.workload:5} {outcome.ranks} ranks  {outcome.management:16} {outcome.timing:9} "
            f"{outcome.seconds:7.2f} s {outcome.mb_per_rank:8.1f} MB/rank {outcome.local_percent:7.2f} % local"
        )
    arguments = {**ARGUMENTS, "look_ahead": LOOK_AHEAD, "repeats": repeats}
    write_results(out / "ablation.json", "bench management", arguments, outcomes)
    (out / "ablation.md").write_text(_page(outcomes, repeats, transport))
    _plot(outcomes, out / "ablation.png")
    click.echo(f"written: {out}/ablation.md, ablation.json, ablation.png")


def _measure(sizes: Iterable[int], workloads: Iterable[str], repeats: int, transport: str) -> Iterator[Outcome]:
    for workload in workloads:
        for ranks in sizes:
            # Repetitions in turn, so that what else the machine does falls on all ways alike.
            runs: dict[tuple[str, str], list[list[dict[str, Any]]]] = {way: [] for way in WAYS}
            for _ in range(repeats):
                for way in WAYS:
                    runs[way].append(_run(workload, ranks, way, transport))
            for way in WAYS:
                yield _summarise(workload, ranks, way, runs[way])


def _run(workload: str, ranks: int, way: tuple[str, str], transport: str) -> list[dict[str, Any]]:
    init = {"management": way[0], "timing": way[1]}
    arguments = {**ARGUMENTS, "workload": workload, "look_ahead": LOOK_AHEAD[workload], "init": init}
    return run_scenario(
        "intentpm.bench.scenarios.management", ranks, arguments, transport=transport, timeout_s=TIMEOUT_S
    )


def _summarise(workload: str, ranks: int, way: tuple[str, str], runs: list[list[dict[str, Any]]]) -> Outcome:
    def mean(name: str) -> float:
        return float(np.mean([[rank[name] for rank in run] for run in runs]))

    here = mean("local") + mean("replica")
    return Outcome(
        workload, ranks, *way,
        seconds=float(np.median([max(rank["seconds"] for rank in run) for run in runs])),
        mb_per_rank=mean("bytes_sent") / 1e6, local_percent=100 * here / max(1.0, here + mean("remote")),
        relocations=mean("relocations_in"), replicas=mean("replicas_set_up"),
    )  # fmt: skip


def _page(outcomes: list[Outcome], repeats: int, transport: str) -> str:
    machine = describe_environment()
    lines = [
        "# Ways of managing keys, compared",
        "",
        f"`intentpm bench management` on {machine['cores']} cores ({machine['cpu']}), transport {transport}, commit "
        f"{machine['commit']}: medians of {repeats} runs, taken in turn. Bytes, relocations and replicas are per rank. "
        f"Intents are signalled {', '.join(f'{depth} batches ahead ({name})' for name, depth in LOOK_AHEAD.items())}. "
        "Machines with more ranks than cores tell little about time; compare bytes and shares there.",
        "",
        "![seconds and bytes](ablation.png)",
    ]
    for workload, ranks in dict.fromkeys((outcome.workload, outcome.ranks) for outcome in outcomes):
        lines += ["", f"## {workload}, {ranks} ranks", ""]
        lines += ["| management | timing | seconds | MB sent | local % | relocations | replicas set up |"]
        lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
        lines += [
            f"| {o.management} | {o.timing if o.management in ('adaptive', 'relocate', 'replicate') else '-'} "
            f"| {o.seconds:.2f} | {o.mb_per_rank:.1f} | {o.local_percent:.2f} "
            f"| {o.relocations:,.0f} | {o.replicas:,.0f} |"
            for o in outcomes
            if (o.workload, o.ranks) == (workload, ranks)
        ]
    return "\n".join(lines) + "\n"


def _plot(outcomes: list[Outcome], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    cases = list(dict.fromkeys((outcome.workload, outcome.ranks) for outcome in outcomes))
    figure, axes = plt.subplots(2, len(cases), figsize=(2.9 * len(cases), 6), squeeze=False, layout="constrained")
    for column, case in enumerate(cases):
        of_case = [asdict(outcome) for outcome in outcomes if (outcome.workload, outcome.ranks) == case]
        names = [f"{row['management']}\n{row['timing']}".replace("full_replication", "full repl.") for row in of_case]
        for line, field in enumerate(("seconds", "mb_per_rank")):
            bars = axes[line][column]
            colours = ["tab:green" if row["management"] == "adaptive" else "tab:gray" for row in of_case]
            bars.barh(names, [row[field] for row in of_case], color=colours)
            bars.invert_yaxis()
            bars.tick_params(labelsize=7)
            bars.set_xlabel("seconds" if field == "seconds" else "MB sent per rank", fontsize=8)
            if column:
                bars.set_yticklabels([])
        axes[0][column].set_title(f"{case[0]}, {case[1]} ranks", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)
