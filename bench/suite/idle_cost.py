"""What the parameter manager takes from a job that does not need it at the moment.

"idle": all keys are replicated everywhere and nothing happens (``bench/scenarios/idle.py``); the baseline is a process
that sleeps as long. "local training": each rank trains on rows of its own, with and without intents, so nothing has to
travel; counted is the processor time of all threads but the training one, per second of training.
"""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intentpm.bench.results import Row
from intentpm.bench.runner import run_scenario
from intentpm.bench.suite.parts import SUBJECT

RANKS = 2
NUM_KEYS, DIM = 200_000, 16
BATCH_SIZE, STEPS_AHEAD = 500, 16
STEP_S = 1e-3
"""Computing per step of the local training: a step of a small model."""
SECONDS = 2.0
TIMEOUT_S = 60.0
IDLE_SCENARIO = "intentpm.bench.scenarios.idle"


def measure(effort: float) -> list[Row]:
    """Processor seconds per second ("share"), and bytes; a sample per rank."""
    from intentpm.bench.scenarios.cli import available_transports

    seconds = max(0.3, SECONDS * effort)
    sizes = {"num_keys": NUM_KEYS, "dim": DIM}
    start = time.process_time()
    time.sleep(seconds)
    rows = [Row("processor time", [(time.process_time() - start) / seconds], unit="share",
                facts={"by": "sleeping process", "situation": "idle"})]  # fmt: skip
    for transport in available_transports():
        arguments = {**sizes, "seconds": seconds}
        idle = run_scenario(IDLE_SCENARIO, RANKS, arguments, transport=transport, timeout_s=TIMEOUT_S + seconds)
        training = run_scenario(__name__, RANKS, arguments, transport=transport, timeout_s=TIMEOUT_S + seconds)
        measured = {
            ("processor time", "idle", "share"): [result["cpu_s"] / result["seconds"] for result in idle],
            ("bytes sent", "idle", "B"): [result["bytes_sent"] for result in idle],
        }
        for situation in training[0]:
            samples = [result[situation] for result in training]
            measured["processor time", f"local training {situation}", "share"] = samples
        rows += [
            Row(
                name, samples, unit=unit, transport=transport, ranks=RANKS, sizes=sizes,
                facts={"by": SUBJECT, "situation": situation},
            )
            for (name, situation, unit), samples in measured.items()
        ]  # fmt: skip
    return rows


def run_rank(pm: Any, arguments: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Situation -> share of a processor that the threads besides this one took while it trained."""
    table = pm.create_table("rows", arguments["num_keys"], (arguments["dim"],), init=1.0)
    shares = {}
    for situation in ("without intents", "with intents"):
        worker = pm.worker()
        pm.barrier()
        before, start = _other_threads_s(), time.perf_counter()
        _train(worker, table, situation == "with intents", start + arguments["seconds"])
        shares[situation] = (_other_threads_s() - before) / (time.perf_counter() - start)
        pm.barrier()
    return shares


def _train(worker: Any, table: Any, signals: bool, until: float) -> None:
    """Pulls own rows, computes, pushes, until the time has come."""
    owned = table.owned_keys()
    batches = [owned[start : start + BATCH_SIZE] for start in range(0, len(owned) - BATCH_SIZE, BATCH_SIZE)]
    step = 0
    while (now := time.perf_counter()) < until:
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


def _other_threads_s() -> float:
    """Processor time so far of this process's threads but the calling one."""
    own, total_ns = threading.get_native_id(), 0
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        if int(task.name) != own:
            total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns * 1e-9


def draw(rows: Sequence[Mapping[str, Any]], figure: Any) -> None:
    """Bars: percent of a core."""
    from intentpm.bench.suite.drawing import bars_by_contender

    shown = [row for row in rows if row["unit"] == "share"]
    labels = [f"{row['facts']['situation']}, {row['transport']}\n({row['facts']['by']})" for row in shown]
    bars_by_contender(figure, labels, shown, 100, "%.2f", "percent of a core")
