"""Time to equal quality: training tasks of intentpm and AdaPM's own C++ programs, 2 processes of 1 worker thread each.

    python -m intentpm.bench.against_adapm --data ../shared/data                      # beside what AdaPM took elsewhere
    python -m intentpm.bench.against_adapm --data ../shared/data --adapm ADAPM BUILD  # both in turn, on this machine

ADAPM is AdaPM's source folder (for its tracker), BUILD the CMake folder with its programs in ``apps``. Prints a table;
seconds are those of training, without evaluation, on both sides.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import intentpm.bench.adapm_programs as adapm
from intentpm.bench.output import OutFolder
from intentpm.foundation.whole_file import write_whole

TIMEOUT_S = 900.0
TABLE = "against-adapm.md"
"""In the folder of an evaluation's runs: ``intentpm bench tasks`` puts it on its page."""


@dataclass(frozen=True, slots=True)
class Contest:
    """A task, as both sides run it."""

    name: str
    ours: tuple[str, ...]
    """Arguments of ``intentpm train``; ``{data}`` is the folder of the data sets."""
    measure: str
    """Field of our epochs' rows that is the quality."""
    lower_is_better: bool
    theirs_measured: tuple[float, int, float]
    """Where AdaPM is not there: seconds of an epoch, epochs, and the quality they came to."""


CONTESTS = (
    Contest("kge", ("kge", "--data", "{data}/fb15k237", "--dim", "128", "--epochs", "3"),
            "mrr", False, (15.0, 4, 0.187)),
    Contest("mf", ("mf", "--generate", "", "--lr", "0.05", "--reg", "0.01", "--epochs", "6"),
            "test_rmse", True, (0.50, 6, 0.578)),
    Contest("wv", ("wv", "--data", "{data}/wiki_text", "--epochs", "1"),
            "ws353", False, (169.0, 1, 0.30)),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one side: by epoch, seconds of training and the quality after it."""

    seconds: list[float]
    quality: list[float]

    def time_to(self, quality: float, lower_is_better: bool) -> float | None:
        """Seconds until the model was as good as ``quality``; None if it never was."""
        total = 0.0
        for seconds, reached in zip(self.seconds, self.quality, strict=True):
            total += seconds
            if (reached <= quality) if lower_is_better else (reached >= quality):
                return total
        return None


def run_ours(contest: Contest, data: Path) -> Outcome:
    """``intentpm train`` on two ranks."""
    with tempfile.TemporaryDirectory(prefix="intentpm-against-") as out:
        arguments = [argument.format(data=data) for argument in contest.ours]
        command = [sys.executable, "-m", "intentpm", "train", *arguments, "-n", "2", "--json", "--out", out]
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        run = subprocess.run(
            command, env=os.environ | one_thread, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=True
        )
    rows: list[dict[str, Any]] = json.loads(run.stdout)["rows"][1:]
    return Outcome([row["seconds"] for row in rows], [row[contest.measure] for row in rows])


def run_theirs(contest: Contest, data: Path, source: Path, build: Path) -> Outcome:
    """AdaPM's program on data in its own formats."""
    with tempfile.TemporaryDirectory(prefix="intentpm-adapm-") as folder:
        return Outcome(*adapm.PROGRAMS[contest.name](adapm.Installed(source, build), data, Path(folder)))


TITLES = (
    "| task | AdaPM: s per epoch | quality | ours: s per epoch | quality | s to AdaPM's quality | times |",
    "| --- | ---: | --- | ---: | --- | ---: | ---: |",
)


def compare(contest: Contest, data: Path, installed: tuple[Path, Path] | None) -> str:
    """A row of the table."""
    if installed:
        theirs, where = run_theirs(contest, data, *installed), "here"
    else:
        seconds, epochs, reached = contest.theirs_measured
        theirs, where = Outcome([seconds] * epochs, [float("nan")] * (epochs - 1) + [reached]), "before"
    ours = run_ours(contest, data)
    goal = theirs.quality[-1]
    needed = ours.time_to(goal, contest.lower_is_better)
    total = sum(theirs.seconds)
    factor = f"{total / needed:.1f}" if needed else "-"
    cells = [
        contest.name, f"{total / len(theirs.seconds):.2f}", f"{goal:.3f} in {total:.2f} s ({where})",
        f"{sum(ours.seconds) / len(ours.seconds):.2f}", f"{ours.quality[-1]:.3f} in {sum(ours.seconds):.2f} s",
        f"{needed:.2f}" if needed else "never", factor,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of the data sets.")
@click.option("--adapm", "installed", type=(Path, Path), metavar="SOURCE BUILD", help="AdaPM, compiled.")
@click.option("--task", "names", multiple=True, type=click.Choice([contest.name for contest in CONTESTS]),
              help="Of the tasks [all].")  # fmt: skip
@click.option("--out", type=OutFolder(), help="Folder for against-adapm.md, the table.")
def main(data: Path, installed: tuple[Path, Path] | None, names: tuple[str, ...], out: Path | None) -> None:
    """Compares time to equal quality with AdaPM's programs."""
    lines = list(TITLES)
    for contest in CONTESTS:
        if not names or contest.name in names:
            lines.append(compare(contest, data.absolute(), installed))
            click.echo("\n".join(lines if len(lines) == len(TITLES) + 1 else lines[-1:]))
            if out is not None:
                write_whole(out / TABLE, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
