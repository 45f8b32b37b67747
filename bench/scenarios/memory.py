"""Memory beyond the rows: per key and rank, of a new table and after all keys were replicated; per replica; per intent.

Two ranks create a table, replicate all of each other's keys, then let their intents end. What a step costs is how much
the resident memory of the process grew; ``pm.stats()`` says what it knows of the same. A first table goes through all
of it unmeasured, so that message buffers and the like are there already.
"""

import ctypes
import gc
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intentpm.bench.benchmarks import SUBJECT, Case
from intentpm.bench.runner import run_scenario

RANKS = 2
NUM_KEYS, DIM = 2_000_000, 16
"""A row of 64 bytes is stored without padding: all else is bookkeeping."""
ROW_BYTES = 4 * DIM
FAR_CLOCKS = 1_000_000_000
RUNS = 5
"""What malloc has kept of message buffers differs, by up to 6 bytes a key."""
TIMEOUT_S = 120.0
PER_KEY = "memory per key and rank"
MEASURED = {
    "created": (PER_KEY, "new table"),
    "left": (PER_KEY, "after replicas of all keys"),
    "replica": ("memory per replica", "while intended"),
    "signalled": ("memory per signalled key", "far ahead"),
}
"""What was measured -> operation and situation. Of a replica: here and at its owner, without its row of 64 bytes."""


def measure(effort: float) -> list[Case]:
    """Bytes; a sample per rank and run."""
    num_keys = max(100_000, round(NUM_KEYS * min(1.0, effort)))
    # Not "adaptive": the rank whose intent comes first would get the other's keys, and hold no replica.
    arguments = {"num_keys": num_keys, "init": {"management": "replicate"}}
    results = [
        result
        for _ in range(RUNS)
        for result in run_scenario(__name__, RANKS, arguments, transport="tcp", timeout_s=TIMEOUT_S)
    ]
    sizes = {"num_keys": num_keys, "dim": DIM}
    cases = [
        Case(operation, [result[by][name] for result in results], by, "B",
             {"situation": situation, **sizes, "ranks": RANKS, "transport": "tcp"})
        for name, (operation, situation) in MEASURED.items()
        for by in (SUBJECT, "pm.stats()")
        if name in results[0][by]
    ]  # fmt: skip
    per_key = Case(PER_KEY, [_dict_bytes_per_key()], "dict of int", "B", cases[0].info)
    return [*cases, per_key]


def run_rank(pm: Any, arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """By what it was measured -> bytes per key of every step."""
    _steps(pm, "first", arguments["num_keys"])
    return _steps(pm, "measured", arguments["num_keys"])


def _steps(pm: Any, name: str, num_keys: int) -> dict[str, Any]:
    worker, keys = pm.worker(), np.arange(num_keys)
    resident = [_resident_bytes(pm)]
    table = pm.create_table(name, num_keys, (DIM,), init=1.0)
    resident.append(_resident_bytes(pm))
    created = pm.stats()["tables"][name]
    worker.intent(table, keys, FAR_CLOCKS)
    resident.append(_resident_bytes(pm))
    worker.intent(table, keys, 0, 1)
    worker.wait_sync()
    resident.append(_resident_bytes(pm))
    held = pm.stats()
    replicas = num_keys - len(table.owned_keys())
    if held["replicas_held"] != replicas:
        raise RuntimeError(f"{held['replicas_held']} replicas instead of {replicas}")
    worker.advance_clock()
    worker.wait_sync()
    resident.append(_resident_bytes(pm))
    left = pm.stats()["tables"][name]
    create, signal, replicate, _ = np.diff(resident)
    # The intent of the replicas is in memory while it is active: as large as the one far ahead.
    replicate -= signal
    return {
        SUBJECT: {
            "created": (create - created["rows"]) / num_keys,
            "left": (resident[-1] - resident[0] - signal - created["rows"]) / num_keys,
            "replica": replicate / replicas - ROW_BYTES,
            "signalled": signal / num_keys,
        },
        "pm.stats()": {
            "created": created["index"] / num_keys,
            "left": (left["index"] + left["rows"] - created["rows"]) / num_keys,
            "replica": (held["tables"][name]["index"] - created["index"]) / replicas,
        },
    }


def _resident_bytes(pm: Any) -> int:
    """Of this process, when all ranks are here and at rest, and free memory of malloc is given back."""
    pm.barrier()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    pm.barrier()
    return pages * os.sysconf("SC_PAGE_SIZE")


def _dict_bytes_per_key(count: int = 100_000) -> float:
    """Of a dict from key to row number: the usual way to find a key's row."""
    index = {1_000 + key: 1_000_000 + key for key in range(count)}
    return (sys.getsizeof(index) + sum(sys.getsizeof(key) + sys.getsizeof(row) for key, row in index.items())) / count
