"""What the parameter manager takes from a job that does not need it at the moment.

"idle": every rank holds replicas of all keys it does not own, and nothing happens; the baseline is a sleeping process.
"local training": each rank trains on rows of its own, with and without intents, so nothing has to travel;
counted is the processor time of all threads but the training one, per second of training.
"""

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intentpm.bench.benchmarks import Case
from intentpm.bench.runner import run_scenario, usable_transports

RANKS = 2
NUM_KEYS, DIM = 200_000, 16
BATCH_SIZE, STEPS_AHEAD = 500, 16
STEP_S = 1e-3
"""Computing per step of the local training: a step of a small model."""
SECONDS, SETTLE_S = 2.0, 0.5
TIMEOUT_S = 60.0
FOR_GOOD = 1 << 40
IDLE = ("processor time", "idle", "share")
TRAINING = {f"local training {kind} intents": kind == "with" for kind in ("without", "with")}


def measure(effort: float) -> list[Case]:
    """Processor seconds per second ("share"), and bytes; a sample per rank."""
    seconds = max(0.3, SECONDS * effort)
    start = time.process_time()
    time.sleep(seconds)
    share = (time.process_time() - start) / seconds
    cases = [Case(IDLE[0], [share], "sleeping process", IDLE[2], {"situation": IDLE[1]})]
    for transport in usable_transports():
        results = run_scenario(
            __name__, RANKS, {"seconds": seconds}, transport=transport, timeout_s=TIMEOUT_S + 5 * seconds
        )
        for operation, situation, unit in results[0]["measured"]:
            key = f"{operation}, {situation}"
            info = {"situation": situation, "num_keys": NUM_KEYS, "dim": DIM, "ranks": RANKS, "transport": transport}
            cases.append(Case(operation, [result[key] for result in results], unit=unit, info=info))
    return cases


def run_rank(pm: Any, arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """ "operation, situation" -> what was measured; "measured": all of them, with units."""
    shares = {name: _train(pm, signals, arguments["seconds"]) for name, signals in TRAINING.items()}
    idle_share, idle_bytes = _idle(pm, arguments["seconds"])
    measured = {IDLE: idle_share, ("bytes sent", "idle", "B"): idle_bytes}
    measured |= {("processor time", situation, "share"): share for situation, share in shares.items()}
    return {"measured": list(measured), **{", ".join(case[:2]): value for case, value in measured.items()}}


def _idle(pm: Any, seconds: float) -> tuple[float, int]:
    """Share of a processor, and bytes sent."""
    table, worker = pm.create_table("idle", NUM_KEYS, (DIM,), init=1.0), pm.worker()
    worker.intent(table, np.arange(NUM_KEYS), 0, FOR_GOOD)
    worker.wait_sync()
    pm.barrier()
    time.sleep(SETTLE_S)
    before, cpu_s = pm.stats()["bytes_sent"], time.process_time()
    time.sleep(seconds)
    measured = (time.process_time() - cpu_s) / seconds, pm.stats()["bytes_sent"] - before
    pm.barrier()  # then the worker ends, and gives its replicas back: traffic for a rank that still measures
    return measured


def _train(pm: Any, signals: bool, seconds: float) -> float:
    """Pulls own rows, computes, pushes; returns the share of a processor that the other threads took meanwhile."""
    table, worker = pm.create_table(f"trained {signals}", NUM_KEYS, (DIM,), init=1.0), pm.worker()
    owned = table.owned_keys()
    batches = [owned[start : start + BATCH_SIZE] for start in range(0, len(owned) - BATCH_SIZE, BATCH_SIZE)]
    pm.barrier()
    before, start, step = _other_threads_s(), time.perf_counter(), 0
    while (now := time.perf_counter()) < start + seconds:
        if signals:
            ahead = step + STEPS_AHEAD
            worker.intent(table, batches[ahead % len(batches)], ahead)
        keys = batches[step % len(batches)]
        rows = worker.pull(table, keys)
        while time.perf_counter() < now + STEP_S:
            np.multiply(rows, np.float32(0.5), out=rows)
        worker.push(table, keys, rows)
        worker.advance_clock()
        step += 1
    share = (_other_threads_s() - before) / (time.perf_counter() - start)
    pm.barrier()
    return share


def _other_threads_s() -> float:
    """Processor time so far of this process's threads but the calling one."""
    own, total_ns = threading.get_native_id(), 0
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        if int(task.name) != own:
            total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns * 1e-9
