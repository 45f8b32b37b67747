"""The training tasks, run and compared: on one and several ranks, on slow networks, under each way of managing keys.

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

from intentpm.bench.hosts import Host, run_on_hosts
from intentpm.bench.links import ONE_THREAD
from intentpm.bench.scenarios.networks import Network
from intentpm.foundation.whole_file import write_whole

TIMEOUT_S = {"full": 3_600.0, "medium": 300.0, "small": 300.0}
"""By size: a run that takes longer counts as failed."""
SIZES = tuple(TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class Workload:
    """A task with its data, and options that suit it: the fields ``full``, ``medium`` and ``small`` are its arguments.

    ``{data}`` in them is the folder of the data sets.
    """

    name: str
    task: str
    full: tuple[str, ...]
    """What quality is stated of."""
    medium: tuple[str, ...]
    """Of the same kind, in some 10 s on two ranks."""
    small: tuple[str, ...]
    """On generated data, in seconds."""
    measure: str
    """Field of the epochs' rows that is the quality."""
    label: str


_TEST_TRIPLES = ("--evaluate", "test", "--evaluate-triples", "0", "--evaluate-every", "9")
WORKLOADS = (
    Workload("mf", "mf", ("--data", "{data}/movielens_small/ratings.npz"),
             ("--generate", "", "--lr", "0.05", "--reg", "0.01", "--epochs", "6"),
             ("--generate", "users=300,items=100,ratings=5000", "--dim", "4", "--epochs", "2"),
             "test_rmse", "test RMSE"),
    Workload("kge", "kge", ("--data", "{data}/fb15k237", *_TEST_TRIPLES),
             ("--data", "{data}/fb15k237", "--dim", "32", "--negatives", "256", "--epochs", "2"),
             ("--generate", "entities=200,relations=3,triples=2000,types=5", "--dim", "8", "--epochs", "2"),
             "mrr", "filtered MRR"),
    Workload("kge-wordnet", "kge", ("--data", "{data}/wn18rr", *_TEST_TRIPLES),
             ("--data", "{data}/wn18rr", "--dim", "32", "--negatives", "256", "--epochs", "3"),
             ("--generate", "entities=300,relations=2,triples=2000,types=9", "--dim", "8", "--epochs", "2"),
             "mrr", "filtered MRR"),
    Workload("wv", "wv", ("--data", "{data}/wiki_text"),
             ("--generate", "words=5000,tokens=600000", "--dim", "50", "--epochs", "3"),
             ("--generate", "words=300,tokens=9000,topics=5", "--dim", "8", "--epochs", "2"),
             "ws353|topics", "WS-353, or same topic"),
    Workload("ctr", "ctr", ("--data", "{data}/adult"),
             ("--data", "{data}/adult", "--hidden", "64", "--epochs", "3"),
             ("--generate", "rows=1000,held_out=300,fields=3,keys=90", "--hidden", "8", "--dim", "2", "--epochs", "1"),
             "test_auc", "test AUC"),
    Workload("gnn", "gnn", ("--data", "{data}/facebook_pages", "--epochs", "6"),
             ("--data", "{data}/cora", "--batch", "32", "--epochs", "8"),
             ("--generate", "nodes=300,edges=900", "--dim", "8", "--epochs", "2"),
             "test_accuracy", "test accuracy"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """One training run, and what came of it."""

    workload: Workload
    network: Network
    mode: str
    document: dict[str, Any]
    """The results file; ``{"failed": why}`` of a run that was refused or ended with an error."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The epochs, from the untrained model on; none of a run that failed."""
        found: list[dict[str, Any]] = self.document.get("rows", [])
        return found

    def quality(self, row: dict[str, Any]) -> float | None:
        """Of an epoch; None where it was not evaluated."""
        return next((row[name] for name in self.workload.measure.split("|") if row.get(name) is not None), None)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Where runs are made, and where they are kept."""

    folder: Path
    """Of the results files."""
    data: Path
    size: str
    """One of SIZES."""
    transport: str
    """Of ranks on this machine; those on hosts of their own use tcp."""

    def runs(self, names: Sequence[str], networks: Sequence[Network], modes: Sequence[str]) -> Iterator[Run]:
        """Makes the runs that are missing, and yields all of them in order. On one rank modes are all the same."""
        for workload in (workload for workload in WORKLOADS if workload.name in names):
            for network in networks:
                for mode in modes if network.ranks > 1 else modes[:1]:
                    yield Run(workload, network, mode, self._run(workload, network, mode))

    def _run(self, workload: Workload, network: Network, mode: str) -> dict[str, Any]:
        arguments = [argument.format(data=self.data) for argument in getattr(workload, self.size)]
        kept = self.folder / f"{workload.name}-{network.name}-{mode}.json"
        asked = {"arguments": arguments, "transport": "tcp" if network.rate else self.transport}
        if (found := _read(kept)) is not None and found.items() >= asked.items():
            return found
        document = self._train(workload.task, arguments, network, mode) | asked
        if "failed" not in document:  # what failed may work the next time
            write_whole(kept, (json.dumps(document, indent=1) + "\n").encode())
        return document

    def _train(self, task: str, arguments: list[str], network: Network, mode: str) -> dict[str, Any]:
        if reason := network.why_unavailable():
            return {"failed": reason}
        with tempfile.TemporaryDirectory(prefix="intentpm-evaluation-") as out, network.hosts() as hosts:
            said = Path(out) / "output"
            command = [sys.executable, "-m", "intentpm", "train", task, *arguments, "--out", out]
            code = self._execute(command, network, mode, hosts, said)
            if code == 0:
                document: dict[str, Any] = json.loads((Path(out) / f"train-{task}-n{network.ranks}.json").read_bytes())
                return document
            reason = f"not over after {TIMEOUT_S[self.size]:.0f} s" if code == 124 else _reason(said.read_text())
        return {"failed": reason or f"exit code {code}"}

    def _execute(self, command: list[str], network: Network, mode: str, hosts: Sequence[Host], said: Path) -> int:
        """The exit code; 124 where the time ran out. ``said``: file for what it prints."""
        environment = {**os.environ, **ONE_THREAD, "INTENTPM_MANAGEMENT": mode, "NO_COLOR": "1"}
        with said.open("wb") as output:
            if hosts:
                return run_on_hosts(
                    hosts, command, environment | {"INTENTPM_TRANSPORT": "tcp"}, self._timeout_s, output
                )
            local = [*command, "-n", str(network.ranks), "--transport", self.transport]
            try:
                return subprocess.run(
                    local, env=environment, stdout=output, stderr=output, timeout=self._timeout_s, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                return 124

    @property
    def _timeout_s(self) -> float:
        return TIMEOUT_S[self.size]


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
