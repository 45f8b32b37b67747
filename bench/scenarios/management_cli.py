"""``intentpm bench management``: every way of managing keys, on the same workloads, in one run."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from intentpm.bench.benchmarks import Case, require_pytest_benchmark, write_benchmarks
from intentpm.bench.output import OutFolder
from intentpm.bench.results import describe_environment
from intentpm.bench.runner import run_scenario
from intentpm.bench.scenarios.networks import NAMES, SIZES, Measurement, Network
from intentpm.bench.scenarios.networks import WORKLOADS as ON_NETWORKS

WAYS = (
    ("adaptive", "adaptive"),
    ("adaptive", "immediate"),
    ("adapm", "adaptive"),
    ("adapm", "immediate"),
    ("relocate", "adaptive"),
    ("relocate", "immediate"),
    ("replicate", "adaptive"),
    ("replicate", "immediate"),
    ("static", "-"),
    ("full_replication", "-"),
)
"""Pairs of management and timing; where intents are not acted on, the timing says nothing."""
WORKLOADS = ("zipf", "mf", "kge")
ARGUMENTS = {
    "seed": 0, "num_keys": 100_000, "dim": 64, "batch": 256, "steps": 8_000, "epochs": 3,
    "ratings": "users=20000,items=5000,ratings=400000", "graph": "entities=10000,relations=100,triples=60000",
    "kge": {"evaluate_triples": 100, "dim": 64},
}  # fmt: skip
LOOK_AHEAD = {"zipf": 128, "mf": 32, "kge": 32}
"""Batches. A step of zipf takes 0.1 ms: where ranks share cores, 32 of them are less than a round trip."""
TIMEOUT_S = 240.0


@click.command()
@click.option("-n", "sizes", type=click.IntRange(1), multiple=True, default=(2, 4), show_default=True, help="Ranks.")
@click.option(
    "--workload",
    "workloads",
    type=click.Choice((*WORKLOADS, *ON_NETWORKS[2:])),
    multiple=True,
    help="[all; kge-* with --network only]",
)
@click.option(
    "--repeats", type=click.IntRange(1), default=3, show_default=True, help="Runs of each; the median counts."
)
@click.option("--transport", default="auto", show_default=True)
@click.option("--network", "networks", multiple=True, metavar="RANKSxRATE",
              help=f"Compare modes until equal quality on shaped links instead; all: {', '.join(NAMES)}.")  # fmt: skip
@click.option("--size", type=click.Choice(tuple(SIZES)), default="full", show_default=True, help="With --network.")
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True), help="With --network: a knowledge graph's folder."
)
@click.option("--resume", is_flag=True, help="With --network: keep the runs that regret.json in --out holds.")
@click.option("--out", type=OutFolder(), default=Path("docs"), show_default=True)
def management(
    sizes: tuple[int, ...], workloads: tuple[str, ...], repeats: int, transport: str, networks: tuple[str, ...],
    size: str, data: Path | None, resume: bool, out: Path,
) -> None:  # fmt: skip
    """Compare the modes of management and both timings: time, bytes, local accesses, relocations, replicas.

    With --network: time and bytes until a quality is reached, and regret, as root. Otherwise it says why not.
    """
    if networks:
        found = [Network.parse(name) for name in (NAMES if "all" in networks else networks)]
        chosen = _chosen(workloads, ON_NETWORKS, "without")
        _compare_networks(Measurement(out, size, data, transport, resume), found, chosen, repeats)
        return
    workloads = _chosen(workloads, WORKLOADS, "with")
    require_pytest_benchmark()
    cases = []
    for case in _measure(sizes, workloads, repeats, transport):
        cases.append(case)
        notes = case.info["notes"]
        click.echo(
            f"{case.operation:5} {case.info['ranks']} ranks  {case.by:27} {np.median(case.samples):7.2f} s "
            f"{notes['mb_per_rank']:8.1f} MB/rank {notes['local_percent']:7.2f} % local"
        )
    write_benchmarks(out / "ablation.json", "management", cases)
    (out / "ablation.md").write_text(_page(cases, repeats, transport))
    _plot(cases, out / "ablation.png")
    click.echo(f"written: {out}/ablation.md, ablation.json, ablation.png")


def _chosen(workloads: tuple[str, ...], known: tuple[str, ...], other: str) -> tuple[str, ...]:
    """All if none was named. Raises click.UsageError for those that there are only with, or without, --network."""
    if unknown := sorted(set(workloads) - set(known)):
        raise click.UsageError(f"--workload {', '.join(unknown)}: only {other} --network")
    return workloads or known


def _compare_networks(
    measurement: Measurement, networks: list[Network], workloads: tuple[str, ...], repeats: int
) -> None:
    for run in measurement.measure(networks, workloads, repeats):
        seconds = "   never" if run["seconds"] is None else f"{run['seconds']:8.2f} s"
        quality = "" if run["quality"] is None else f"  quality {run['quality']:.4f}"
        click.echo(
            f"{run['workload']:10} {run['network']:10} {run['mode']:17} {seconds} {run['megabytes']:9.1f} MB{quality}"
        )
    click.echo(f"written: {', '.join(map(str, measurement.write_page()))}")


def _measure(sizes: Iterable[int], workloads: Iterable[str], repeats: int, transport: str) -> Iterator[Case]:
    for workload in workloads:
        for ranks in sizes:
            # Repetitions in turn, so that what else the machine does falls on all ways alike.
            runs: dict[tuple[str, str], list[list[dict[str, Any]]]] = {way: [] for way in WAYS}
            for _ in range(repeats):
                for way in WAYS:
                    runs[way].append(_run(workload, ranks, way, transport))
            for way in WAYS:
                yield _case(workload, ranks, transport, way, runs[way])


def _run(workload: str, ranks: int, way: tuple[str, str], transport: str) -> list[dict[str, Any]]:
    init = {"management": way[0], "timing": way[1] if way[1] != "-" else "adaptive"}
    arguments = {**ARGUMENTS, "workload": workload, "look_ahead": LOOK_AHEAD[workload], "init": init}
    return run_scenario(
        "intentpm.bench.scenarios.management", ranks, arguments, transport=transport, timeout_s=TIMEOUT_S
    )


def _case(workload: str, ranks: int, transport: str, way: tuple[str, str], runs: list[list[dict[str, Any]]]) -> Case:
    """Training time of each run's slowest rank; the notes are means over the ranks."""

    def mean(name: str) -> float:
        return float(np.mean([[rank[name] for rank in run] for run in runs]))

    here = mean("local") + mean("replica")
    notes = {
        "mb_per_rank": mean("bytes_sent") / 1e6, "local_percent": 100 * here / max(1.0, here + mean("remote")),
        "relocations": mean("relocations_in"), "replicas": mean("replicas_set_up"), "way": way,
    }  # fmt: skip
    seconds = [max(rank["seconds"] for rank in run) for run in runs]
    return Case(workload, seconds, ", ".join(way), info={"ranks": ranks, "transport": transport, "notes": notes})


def _page(cases: list[Case], repeats: int, transport: str) -> str:
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
    for (workload, ranks), of_case in _by_workload(cases).items():
        lines += ["", f"## {workload}, {ranks} ranks", ""]
        lines += ["| management | timing | seconds | MB sent | local % | relocations | replicas set up |"]
        lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
        for case in of_case:
            notes = case.info["notes"]
            lines.append(
                f"| {' | '.join(notes['way'])} | {np.median(case.samples):.2f} | {notes['mb_per_rank']:.1f} "
                f"| {notes['local_percent']:.2f} | {notes['relocations']:,.0f} | {notes['replicas']:,.0f} |"
            )
    return "\n".join(lines) + "\n"


def _by_workload(cases: list[Case]) -> dict[tuple[str, int], list[Case]]:
    found: dict[tuple[str, int], list[Case]] = {}
    for case in cases:
        found.setdefault((case.operation, case.info["ranks"]), []).append(case)
    return found


def _plot(cases: list[Case], path: Path) -> None:
    from matplotlib.figure import Figure

    of_workload = _by_workload(cases)
    figure = Figure(figsize=(2.9 * len(of_workload), 6), layout="constrained")
    axes = figure.subplots(2, len(of_workload), squeeze=False)
    for column, ((workload, ranks), of_case) in enumerate(of_workload.items()):
        names = ["\n".join(case.info["notes"]["way"]).replace("full_replication", "full repl.") for case in of_case]
        seconds = [float(np.median(case.samples)) for case in of_case]
        colours = ["tab:green" if case.by.startswith("adaptive") else "tab:gray" for case in of_case]
        megabytes = [case.info["notes"]["mb_per_rank"] for case in of_case]
        for bars, values, label in zip(
            axes[:, column], (seconds, megabytes), ("seconds", "MB sent per rank"), strict=True
        ):
            bars.barh(names, values, color=colours)
            bars.invert_yaxis()
            bars.tick_params(labelsize=7)
            bars.set_xlabel(label, fontsize=8)
            if column:
                bars.set_yticklabels([])
        axes[0][column].set_title(f"{workload}, {ranks} ranks", fontsize=10)
    figure.savefig(path, dpi=120)
