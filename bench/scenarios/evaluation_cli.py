"""``intentpm bench tasks``: the five training tasks on several ranks and networks, and a page about it."""

import shlex
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import click

from intentpm.bench.against_adapm import TABLE
from intentpm.bench.output import OutFolder
from intentpm.bench.results import describe_environment
from intentpm.bench.scenarios.evaluation import SIZES, WORKLOADS, Evaluation, Run
from intentpm.bench.scenarios.networks import Network
from intentpm.bench.scenarios.regret import FIXED, MODES, SUBJECT
from intentpm.foundation.whole_file import write_whole

NAMES = tuple(workload.name for workload in WORKLOADS)
NETWORKS = ("1xshm", "2xshm", "4xshm", "2x500mbit", "4x200mbit")


@click.command()
@click.option("--network", "networks", multiple=True, default=NETWORKS, show_default=True,
              help="RANKSxRATE: hosts behind links of that rate, or RANKSxshm: ranks of this machine.")  # fmt: skip
@click.option("--task", "names", type=click.Choice(NAMES), multiple=True, default=NAMES, show_default=True)
@click.option("--mode", "modes", type=click.Choice(MODES), multiple=True, default=(SUBJECT, *FIXED), show_default=True,
              help="Ways of managing keys.")  # fmt: skip
@click.option("--size", type=click.Choice(SIZES), default="medium", show_default=True,
              help="full: whole trainings, hours; medium: 40 minutes; small: seconds a run.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default=Path("../shared/data"),
              show_default=True, help="Folder of the data sets.")  # fmt: skip
@click.option("--transport", default="tcp", show_default=True)
@click.option("--out", type=OutFolder(), default=Path("docs"), show_default=True,
              help="Folder for evaluation.md; runs are kept in evaluation/ there, and not made again.")  # fmt: skip
def tasks(
    networks: tuple[str, ...], names: tuple[str, ...], modes: tuple[str, ...], size: str, data: Path, transport: str,
    out: Path,
) -> None:  # fmt: skip
    """Train all tasks on several networks, under each way of managing keys: time, quality, bytes, local accesses."""
    if size != "small" and not data.is_dir():
        raise click.UsageError(f"{data}: there is no such folder; give --data, or --size small")
    runs = []
    chosen = [Network.parse(network) for network in networks]
    for run in Evaluation(out / "evaluation", data.absolute(), size, transport).runs(names, chosen, modes):
        runs.append(run)
        click.echo(" ".join(cell.rjust(9) for cell in (run.workload.name, *_cells(run))))
        write_whole(out / "evaluation.md", _page(runs, transport, _beside_adapm(out / "evaluation" / TABLE)).encode())
        _plot(runs, out / "evaluation.png")
    click.echo(f"written: {out}/evaluation.md, evaluation.png, evaluation/")


def _cells(run: Run) -> list[str]:
    """Network, mode, seconds per epoch, quality, megabytes per epoch, local percent."""
    trained = run.rows[1:]
    start = [run.network.name, run.mode if run.network.ranks > 1 else "-"]
    if not trained:
        return [*start, "-", run.document.get("failed", "nothing was trained")[:80], "-", "-"]
    seconds = sum(row["seconds"] for row in trained) / len(trained)
    megabytes = sum(row["bytes_sent"] for row in trained) / len(trained) / 1e6
    quality = run.quality(trained[-1])
    local = 100 * trained[-1]["local_share"]
    return [*start, f"{seconds:.2f}", "-" if quality is None else f"{quality:.4f}", f"{megabytes:.1f}", f"{local:.2f}"]


def _beside_adapm(table: Path) -> list[str]:
    """Lines about AdaPM's own programs, where ``against_adapm --out`` has compared them."""
    if not table.is_file():
        return []
    return [
        "", "## Beside AdaPM's own programs", "",
        "`python -m intentpm.bench.against_adapm`: two processes of one worker thread each, AdaPM's C++ programs and "
        "`intentpm train` in turn. ComplEx on FB15k-237 with dim 128 (AdaPM: 10 negatives per triple; filtered MRR of "
        "1,000 validation triples), 10^6 generated ratings with rank 32 (test RMSE), skip-gram on the Wikipedia text "
        "with dim 100, window 5, 5 negatives, one epoch (WS-353). Seconds of training.", "",
        *table.read_text().splitlines(),
    ]  # fmt: skip


def _page(runs: Sequence[Run], transport: str, beside: Sequence[str]) -> str:
    machine = describe_environment()
    known = {run.document["environment"]["commit"] for run in runs if "environment" in run.document} - {None}
    commits = f", commit {', '.join(sorted(known))}" if known else ""
    lines = [
        "# The training tasks, measured",
        "",
        f"`intentpm bench tasks` on {machine['cores']} cores ({machine['cpu']}){commits}, one run each. "
        f"Networks: `2xshm` is two ranks of this machine (transport {transport}), `2x500mbit` two hosts (network "
        "namespaces) whose links carry 500 Mbit/s either way (tcp). Seconds and megabytes (sent by all ranks) are per "
        "epoch, quality and the share of local accesses those of the last epoch. All ranks share the cores: more ranks "
        "than cores tell little about computing; bytes, shares and what a slow network adds can be compared.",
        "",
        "![quality over time](evaluation.png)",
    ]
    for workload in WORKLOADS:
        of_workload = [run for run in runs if run.workload is workload]
        if of_workload:
            lines += ["", f"## {workload.name}", "", f"`intentpm train {workload.task} {_shown(of_workload[0])}`", ""]
            lines += [f"| network | management | seconds | {workload.label} | MB sent | local % |"]
            lines += ["| --- | --- | ---: | ---: | ---: | ---: |"]
            lines += [f"| {' | '.join(_cells(run))} |" for run in of_workload]
    return "\n".join([*lines, *beside]) + "\n"


def _shown(run: Run) -> str:
    """The arguments, of paths the last two parts."""
    arguments: list[str] = run.document["arguments"]
    return shlex.join("/".join(argument.split("/")[-2:]) for argument in arguments)


def _plot(runs: Sequence[Run], path: Path) -> None:
    """Quality over training time, managed adaptively: a panel per task, a line per network."""
    from matplotlib.figure import Figure

    workloads = [workload for workload in WORKLOADS if any(run.workload is workload for run in runs)]
    figure = Figure(figsize=(3.2 * len(workloads), 3), layout="constrained")
    panels = figure.subplots(1, len(workloads), squeeze=False)[0]
    for axes, workload in zip(panels, workloads, strict=True):
        for run in runs:
            if run.workload is workload and run.mode == "adaptive" and (points := _points(run)):
                axes.plot(*zip(*points, strict=True), marker="o", markersize=2, label=run.network.name)
        axes.set_title(f"{workload.name}: {workload.label}", fontsize=9)
        axes.set_xlabel("training time in s", fontsize=8)
        axes.tick_params(labelsize=7)
        if axes.lines:
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def _points(run: Run) -> list[tuple[float, float]]:
    """Seconds of training and quality, after each epoch that was evaluated."""
    seconds = accumulate(row["seconds"] for row in run.rows)
    found = [(time, run.quality(row)) for time, row in zip(seconds, run.rows, strict=True)][1:]
    return [(time, quality) for time, quality in found if quality is not None]
