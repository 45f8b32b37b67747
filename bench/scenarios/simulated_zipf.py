"""The zipf workload of ``management`` on N simulated ranks: virtual time, messages and bytes as the job grows."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from intentpm.bench.scenarios.management import zipf_batches
from intentpm.bench.scenarios.simulated_job import SimulatedJob, simulated_job
from intentpm.bench.tasks.look_ahead import look_ahead
from intentpm.runtime.config import Config

COUNTED = ("bytes_sent", "messages_sent", "rounds", "relocations_in", "replicas_set_up", "refreshed_rows")


def simulate_zipf(ranks: int, management: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Every rank does ``arguments["steps"]`` steps of ``step_us`` each, besides what it waits for.

    Returns virtual seconds and real seconds of the training, and means over the ranks of what they did meanwhile.
    """
    with simulated_job(ranks, Config(management=management)) as job:  # type: ignore[arg-type]
        tables = job.on_every_rank(
            lambda pm: pm.create_table("rows", arguments["num_keys"], (arguments["dim"],), init=1.0)
        )
        before = [pm.stats() for pm in job.ranks]
        virtual_s, real_s = job.now_s, time.perf_counter()
        accesses = job.on_every_rank(lambda pm: _train(job, pm, tables[pm.rank], arguments))
        virtual_s, real_s = job.now_s - virtual_s, time.perf_counter() - real_s
        after = [pm.stats() for pm in job.ranks]
    totals = {name: np.mean([b[name] - a[name] for a, b in zip(before, after, strict=True)]) for name in COUNTED}
    local = np.mean([here / max(1, here + away) for here, away in accesses])
    return {"virtual_s": virtual_s, "real_s": real_s, "local_share": float(local), **_floats(totals)}


def _floats(totals: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in totals.items()}


def _train(job: SimulatedJob, pm: Any, table: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
    """One rank; returns its accesses to keys that were here and to others."""
    worker = pm.worker()
    for batch in look_ahead(worker, zipf_batches(pm, table, arguments), arguments["look_ahead"]):
        rows = worker.pull(table, batch.keys)
        job.pause_us(arguments["step_us"])
        worker.push(table, batch.keys, rows * np.float32(-0.01))
    worker.wait_sync()
    local, replica, remote = worker.access_counts(table.table_id)
    return local + replica, remote
