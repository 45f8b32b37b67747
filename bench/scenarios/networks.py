"""The modes of management on several networks: ``intentpm bench management --network``.

Time is that to equal quality: until RMSE or MRR is within 2 % of what one rank reaches in the same number of epochs.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from intentpm.bench.hosts import Host, make_hosts, why_unavailable
from intentpm.bench.links import ONE_THREAD
from intentpm.bench.results import source_commit, write_results
from intentpm.bench.runner import run_scenario
from intentpm.bench.scenarios.regret import MODES, compare, table

BENCH = "bench management --network"
NAMES = ("2xshm", "4xshm", "2x500mbit", "4x200mbit", "4x50mbit")
WORKLOADS = ("zipf", "mf", "kge-local", "kge-preloc")
TOLERANCE = 0.02
TIMEOUT_S = 1_800.0
ALONE = "one rank"
COMMON = {"seed": 0, "look_ahead": "auto"}
SIZES: Mapping[str, Mapping[str, Any]] = {
    "full": {
        "zipf": {"num_keys": 100_000, "dim": 64, "batch": 256, "steps": 4_000, "zipf_epochs": 4},
        "mf": {"epochs": 6, "ratings": "users=20000,items=5000,ratings=1000000", "mf": {"lr": 0.05, "reg": 0.01}},
        "kge": {"epochs": 2, "graph": "entities=10000,relations=100,triples=60000", "kge": {"dim": 128}},
    },
    "small": {
        "zipf": {"num_keys": 5_000, "dim": 16, "batch": 64, "steps": 200, "zipf_epochs": 2},
        "mf": {
            "epochs": 10, "ratings": "users=1000,items=300,ratings=30000,rank=4",
            "mf": {"lr": 0.08, "reg": 0.01, "dim": 8, "batch": 250},
        },
        "kge": {
            "epochs": 2, "graph": "entities=500,relations=10,triples=4000",
            "kge": {"dim": 16, "evaluate_triples": 100, "batch": 64, "negatives": 64},
        },
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Network:
    """``name``: "4x200mbit", four hosts whose links carry that; or "4xshm", four ranks of this machine."""

    name: str
    ranks: int
    rate: str

    @classmethod
    def parse(cls, name: str) -> "Network":
        """Raises click.BadParameter."""
        parts = re.fullmatch(r"([1-9]\d{0,2})x(shm|\d+(?:kbit|mbit|gbit))", name)
        if parts is None:
            raise click.BadParameter(f"{name!r}: needs RANKSxRATE such as 4x200mbit, or RANKSxshm")
        return cls(name, int(parts[1]), "" if parts[2] == "shm" else parts[2])

    def why_unavailable(self) -> str:
        """Why it cannot be had here, or ""."""
        if not self.rate:
            return ""
        if find_spec("torch") is None:
            return "ranks of several hosts meet as torchrun's do, which needs torch"
        return why_unavailable(self.rate)

    def hosts(self) -> AbstractContextManager[Sequence[Host]]:
        """None where the ranks are to run on this machine itself."""
        return make_hosts(self.ranks, self.rate) if self.rate else contextlib.nullcontext(())


class Measurement:
    """Runs that are kept in a results file after each, so that what was measured need not be again.

    data: folder of a knowledge graph; None: one is generated. resume: take over what the file holds.
    """

    def __init__(self, out: Path, size: str, data: Path | None, transport: str, resume: bool) -> None:
        self._path = out / "regret.json"
        self._sizes, self._data, self._transport = SIZES[size], data, transport
        self._config = {"size": size, "data": str(data) if data else "generated", "transport": transport}
        self.runs: list[dict[str, Any]] = self._read() if resume and self._path.exists() else []

    def measure(self, networks: Sequence[Network], workloads: Sequence[str], repeats: int) -> Iterator[dict[str, Any]]:
        """Yields each new run. Repetitions go round in turn over all modes."""
        for workload in workloads:
            for network in networks:
                if reason := network.why_unavailable():
                    click.echo(f"{workload} {network.name}: left out: {reason}", err=True)
                    continue
                for repeat in range(repeats):
                    yield from self._round(workload, network, repeat)

    def _round(self, workload: str, network: Network, repeat: int) -> Iterator[dict[str, Any]]:
        target = self._quality_alone(workload, network.ranks if workload == "zipf" else 1)
        for mode in MODES:
            if not self._has(workload, network.name, mode, repeat):
                with network.hosts() as hosts:
                    ranks = self._run(workload, network.ranks, mode, hosts)
                yield self._keep(workload, network.name, mode, repeat, _result(workload, ranks, target))

    def _quality_alone(self, workload: str, streams: int) -> float:
        """What one rank reaches. streams: with the batches of so many, where more ranks have more of them."""
        for run in self.runs:
            if (run["workload"], run["network"], run.get("streams")) == (workload, ALONE, streams):
                return float(run["quality"])
        ranks = self._run(workload, 1, "adaptive", (), streams)
        if ranks is None:
            raise click.ClickException(f"{workload}: one rank alone failed, so there is no quality to be reached")
        result = _result(workload, ranks, None)
        self._keep(workload, ALONE, "adaptive", 0, {**result, "streams": streams})
        return float(result["quality"])

    def _run(
        self, workload: str, ranks: int, mode: str, hosts: Sequence[Host], streams: int = 1
    ) -> list[dict[str, Any]] | None:
        """None: it failed, which counts as a quality that was not reached (training that diverged, say)."""
        kind, _, sampling = workload.partition("-")
        arguments = {**COMMON, **self._sizes[kind], "workload": kind, "init": {"management": mode}, "streams": streams}
        if kind == "kge":
            arguments["kge"] = {**arguments.get("kge", {}), "sampling": sampling}
            arguments["data"] = str(self._data) if self._data else None
        transport = "tcp" if hosts else self._transport
        try:
            return run_scenario(
                "intentpm.bench.scenarios.management", ranks, arguments,
                transport=transport, timeout_s=TIMEOUT_S, env=ONE_THREAD, hosts=hosts,
            )  # fmt: skip
        except click.ClickException as problem:
            click.echo(f"{workload} {mode}: {problem.message}", err=True)
            return None

    def _has(self, *key: str | int) -> bool:
        return any((run["workload"], run["network"], run["mode"], run["repeat"]) == key for run in self.runs)

    def _keep(self, workload: str, network: str, mode: str, repeat: int, result: dict[str, Any]) -> dict[str, Any]:
        run = {"workload": workload, "network": network, "mode": mode, "repeat": repeat, **result}
        self.runs.append({**run, "commit": source_commit()})
        write_results(self._path, BENCH, self._config, self.runs)
        return run

    def _read(self) -> list[dict[str, Any]]:
        document = json.loads(self._path.read_bytes())
        if (document["bench"], document["config"]) != (BENCH, self._config):
            raise click.UsageError(f"--resume: {self._path} holds runs of {document['config']}, not {self._config}")
        return [run for run in document["rows"] if not run.get("failed")]  # which may work this time

    def write_page(self) -> list[Path]:
        """The table and the plot; returns what was written."""
        from intentpm.bench.plots import save

        page, picture = self._path.with_suffix(".md"), self._path.with_suffix(".png")
        document = write_results(self._path, BENCH, self._config, self.runs)
        repeats = 1 + max((run["repeat"] for run in self.runs), default=0)
        machine = document["environment"]
        lines = [
            "# Regret on several networks", "",
            f"`intentpm {BENCH} ...` on {machine['cores']} cores ({machine['cpu']}), commit {machine['commit']}: "
            f"medians of up to {repeats} runs, taken in turn; seconds until the quality is within 2 % of one rank's, "
            "megabytes sent by all ranks until then, quality at the end (loss, RMSE, MRR). Bold: the best fixed mode.",
            "", "![regret](regret.png)", "", *table(compare(self.runs)),
        ]  # fmt: skip
        page.write_text("\n".join(lines) + "\n")
        save(document, picture)
        return [page, self._path, picture]


def _result(workload: str, ranks: list[dict[str, Any]] | None, target: float | None) -> dict[str, Any]:
    """Of a run, from what its ranks returned; target: the quality to be reached, None: whatever it is."""
    if ranks is None:
        return {"seconds": None, "megabytes": 0.0, "quality": None, "failed": True}
    epochs = ranks[0]["epochs"]
    reached = _epochs_needed(workload, [quality for _, quality in epochs], target)
    used = len(epochs) if reached is None else reached
    seconds = max(sum(seconds for seconds, _ in rank["epochs"][:used]) for rank in ranks)
    # Epochs move as much as one another, so their share of all bytes is that of their number.
    megabytes = sum(rank["bytes_sent"] for rank in ranks) / 1e6 * used / len(epochs)
    return {"seconds": None if reached is None else seconds, "megabytes": megabytes, "quality": epochs[-1][1]}


def _epochs_needed(workload: str, qualities: Sequence[float], target: float | None) -> int | None:
    """How many epochs until the target is reached, within the tolerance; None: it is not."""
    if target is None:
        return len(qualities)
    is_reached: Callable[[float], bool] = (
        (lambda error: error <= (1 + TOLERANCE) * target)
        if workload in ("mf", "zipf")
        else (lambda mrr: mrr >= (1 - TOLERANCE) * target)
    )
    return next((i for i, quality in enumerate(qualities, 1) if is_reached(quality)), None)
