"""The zipf workload on more and more ranks: time per step, bytes and messages per rank, step and round.

Every rank has the same work, so ideally time stays. Real ranks share this machine's cores: with more ranks than cores
they measure the processor's work, not the network's. Simulated ranks have a processor and a link each
(``NetworkModel``: 2 us, 10 GB/s); what their processors do costs nothing but the step itself. The baseline is the same
job with every row where its key's hash puts it, a classic parameter server.
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intentpm.bench.benchmarks import SUBJECT, Case
from intentpm.bench.links import usable_links
from intentpm.bench.scenarios.management import zipf_batches
from intentpm.bench.scenarios.simulated_job import SimulatedJob, simulated_job
from intentpm.bench.tasks.look_ahead import look_ahead
from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

WAYS = {SUBJECT: "adaptive", "static placement": "static"}
REAL_RANKS = (1, 2, 4, 8)
SIMULATED_RANKS = (2, 4, 8, 16, 32, 64, 128, 256)
REAL = {"workload": "zipf", "num_keys": 100_000, "dim": 64, "batch": 256, "seed": 0, "look_ahead": 32}
SIMULATED = {"num_keys": 20_000, "dim": 64, "batch": 64, "seed": 0, "look_ahead": 16, "step_us": 200}
REAL_STEPS, SIMULATED_STEPS, REPEATS = 1000, 40, 2
TIMEOUT_S = 120.0
COUNTED = ("bytes_sent", "messages_sent", "rounds", "relocations_in", "replicas_set_up", "refreshed_rows")


def measure(effort: float) -> list[Case]:
    """Seconds, bytes and messages; one sample per run."""
    return _real(effort) + _simulated(effort)


def _real(effort: float) -> list[Case]:
    link, steps, cases = usable_links()[0], max(50, round(REAL_STEPS * effort)), []
    for ranks in REAL_RANKS if effort >= 0.2 else REAL_RANKS[:2]:
        totals: dict[str, list[Mapping[str, float]]] = {by: [] for by in WAYS}
        for _ in range(REPEATS if effort >= 0.5 else 1):
            for by, management in WAYS.items():
                arguments = {**REAL, "steps": steps, "init": {"management": management}}
                totals[by].append(_total(link.run("management", ranks, arguments, TIMEOUT_S)))
        notes = {"cpu_bound": ranks > len(os.sched_getaffinity(0)), "steps": steps}
        for by, taken in totals.items():
            info = {**_sizes("real", REAL), "ranks": ranks, "transport": link.name, "notes": notes}
            cases += _cases(taken, steps, by, info)
    return cases


def _total(run: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The slowest rank's seconds; means over the ranks of the rest."""
    means = {
        name: sum(rank[name] for rank in run) / len(run)
        for name in ("bytes_sent", "messages_sent", "rounds", "local", "replica", "remote")
    }
    away = means["remote"] / max(1.0, means["local"] + means["replica"] + means["remote"])
    return {**means, "seconds": max(rank["seconds"] for rank in run), "remote_share": away}


def _simulated(effort: float) -> list[Case]:
    most = 256 if effort >= 0.5 else 32 if effort >= 0.2 else 8
    steps, cases = SIMULATED_STEPS if effort >= 0.2 else 20, []
    for ranks in (size for size in SIMULATED_RANKS if size <= most):
        for by, management in WAYS.items():
            run = simulate_zipf(ranks, management, {**SIMULATED, "steps": steps})
            notes = {"steps": steps, "real_s": run["real_s"]}
            info = {**_sizes("simulated", SIMULATED), "ranks": ranks, "transport": "sim", "notes": notes}
            cases += _cases([run], steps, by, info)
    return cases


def _sizes(situation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {"keys": arguments["batch"], "dim": arguments["dim"], "num_keys": arguments["num_keys"]}
    return {"situation": situation, **sizes}


def _cases(totals: Sequence[Mapping[str, float]], steps: int, by: str, info: Mapping[str, Any]) -> list[Case]:
    """Per rank and step, and per rank and round where there are rounds."""
    cases = [
        Case("zipf step", [total["seconds"] / steps for total in totals], by, "s", info),
        Case("zipf remote accesses", [total["remote_share"] for total in totals], by, "share", info),
    ]
    for counted, unit in (("bytes", "B"), ("messages", "messages")):
        sent = [total[f"{counted}_sent"] for total in totals]
        rounds = [total["rounds"] for total in totals]
        cases.append(Case(f"zipf {counted} per step", [count / steps for count in sent], by, unit, info))
        if all(rounds):
            per_round = [count / each for count, each in zip(sent, rounds, strict=True)]
            cases.append(Case(f"zipf {counted} per round", per_round, by, unit, info))
    return cases


def simulate_zipf(
    ranks: int, management: str, arguments: Mapping[str, Any], model: NetworkModel | None = None
) -> dict[str, float]:
    """Every rank does ``arguments["steps"]`` steps of ``step_us`` each, besides what it waits for.

    Returns virtual "seconds" and "real_s" of the training, the "remote_share" of its accesses, and means over the ranks
    of what they did meanwhile.
    """
    with simulated_job(ranks, Config(management=management), model) as job:  # type: ignore[arg-type]
        tables = job.on_every_rank(
            lambda pm: pm.create_table("rows", arguments["num_keys"], (arguments["dim"],), init=1.0)
        )
        before = [pm.stats() for pm in job.ranks]
        virtual_s, real_s = job.now_s, time.perf_counter()
        accesses = job.on_every_rank(lambda pm: _train(job, pm, tables[pm.rank], arguments))
        virtual_s, real_s = job.now_s - virtual_s, time.perf_counter() - real_s
        after = [pm.stats() for pm in job.ranks]
    away = np.mean([remote / max(1, here + remote) for here, remote in accesses])
    means = {name: float(np.mean([b[name] - a[name] for a, b in zip(before, after, strict=True)])) for name in COUNTED}
    return {"seconds": virtual_s, "real_s": real_s, "remote_share": float(away), **means}


def _train(job: SimulatedJob, pm: Any, table: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
    """One rank; returns its accesses to keys that were here and to others."""
    worker = pm.worker()
    for batch in look_ahead(worker, zipf_batches(pm.rank, table, arguments), arguments["look_ahead"]):
        rows = worker.pull(table, batch.keys)
        job.pause_us(arguments["step_us"])
        worker.push(table, batch.keys, rows * np.float32(-0.01))
    worker.wait_sync()
    local, replica, remote = worker.access_counts(table.table_id)
    return local + replica, remote
