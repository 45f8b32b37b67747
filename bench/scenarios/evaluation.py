"""The training tasks, run and compared: on one and several ranks, under each way of managing keys.

A run is ``intentpm train TASK`` in processes of its own. Its results file stays in the folder of the runs, and a run
whose file is there is not made again: what was interrupted is gone on with.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from intentpm.foundation.whole_file import write_whole

FULL_TIMEOUT_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Workload:
    """A task with its data, and options that suit it."""

    name: str
    task: str
    full: tuple[str, ...]
    """Arguments of the command; ``{data}`` is the folder of the data sets."""
    small: tuple[str, ...]
    """On generated data, in seconds."""
    measure: str
    """Field of the epochs' rows that is the quality."""
    label: str


WORKLOADS = (
    Workload("mf", "mf", ("--data", "{data}/movielens_small/ratings.npz"),
             ("--generate", "users=300,items=100,ratings=5000", "--dim", "4", "--epochs", "2"),
             "test_rmse", "test RMSE"),
    Workload("kge", "kge",
             ("--data", "{data}/fb15k237", "--dim", "256", "--reg", "0.15", "--epochs", "10",
              "--evaluate", "test", "--evaluate-triples", "0"),
             ("--generate", "entities=200,relations=3,triples=2000,types=5", "--dim", "8", "--epochs", "2"),
             "mrr", "filtered MRR"),
    Workload("kge-wordnet", "kge",
             ("--data", "{data}/wn18rr", "--dim", "400", "--negatives", "512", "--batch", "256", "--epochs", "17",
              "--evaluate", "test", "--evaluate-triples", "0"),
             ("--generate", "entities=300,relations=2,triples=2000,types=9", "--dim", "8", "--epochs", "2"),
             "mrr", "filtered MRR"),
    Workload("wv", "wv", ("--data", "{data}/wiki_text"),
             ("--generate", "words=300,tokens=9000,topics=5", "--dim", "8", "--epochs", "2"),
             "ws353", "WS-353"),
    Workload("ctr", "ctr", ("--data", "{data}/adult"),
             ("--generate", "rows=1000,held_out=300,fields=3,keys=90", "--hidden", "8", "--dim", "2", "--epochs", "1"),
             "test_auc", "test AUC"),
    Workload("gnn", "gnn", ("--data", "{data}/facebook_pages", "--epochs", "6"),
             ("--generate", "nodes=300,edges=900", "--dim", "8", "--epochs", "2"),
             "test_accuracy", "test accuracy"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """One training run, and what came of it."""

    workload: Workload
    ranks: int
    mode: str
    document: dict[str, Any]
    """The results file; ``{"failed": why}`` of a run that was refused or ended with an error."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The epochs, from the untrained model on; none of a run that failed."""
        found: list[dict[str, Any]] = self.document.get("rows", [])
        return found


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Where runs are made, and where they are kept."""

    folder: Path
    """Of the results files."""
    data: Path
    size: str
    """"full" or "small"."""
    transport: str
    timeout_s: float = FULL_TIMEOUT_S

    def runs(self, names: Sequence[str], ranks: Sequence[int], modes: Sequence[str]) -> Iterator[Run]:
        """Makes the runs that are missing, and yields all of them in order. On one rank modes are all the same."""
        for workload in (workload for workload in WORKLOADS if workload.name in names):
            for count in ranks:
                for mode in modes if count > 1 else modes[:1]:
                    yield Run(workload, count, mode, self._run(workload, count, mode))

    def _run(self, workload: Workload, ranks: int, mode: str) -> dict[str, Any]:
        arguments = [argument.format(data=self.data) for argument in getattr(workload, self.size)]
        kept = self.folder / f"{workload.name}-n{ranks}-{mode}.json"
        asked = {"arguments": arguments, "transport": self.transport}
        if (found := _read(kept)) is not None and found.items() >= asked.items():
            return found
        document = self._train(workload.task, arguments, ranks, mode) | asked
        if "failed" not in document:  # what failed may work the next time
            write_whole(kept, (json.dumps(document, indent=1) + "\n").encode())
        return document

    def _train(self, task: str, arguments: list[str], ranks: int, mode: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="intentpm-evaluation-") as out:
            command = [sys.executable, "-m", "intentpm", "train", task, *arguments, "-n", str(ranks),
                       "--transport", self.transport, "--json", "--out", out]  # fmt: skip
            environment = os.environ | {"INTENTPM_MANAGEMENT": mode, "NO_COLOR": "1"}
            for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
                environment.setdefault(threads, "1")  # ranks share the cores
            try:
                run = subprocess.run(
                    command, env=environment, capture_output=True, text=True, timeout=self.timeout_s, check=False
                )
            except subprocess.TimeoutExpired:
                return {"failed": f"not over after {self.timeout_s:.0f} s"}
        if run.returncode:
            return {"failed": _reason(run.stderr) or f"exit code {run.returncode}"}
        document: dict[str, Any] = json.loads(run.stdout)
        return document


def _reason(output: str) -> str:
    """The line that says what went wrong: the first that names an error, else the last."""
    lines = output.strip().splitlines()
    return next((line.strip() for line in lines if "Error" in line), lines[-1] if lines else "")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path}: is no results file ({error}); remove it") from error
    return found
