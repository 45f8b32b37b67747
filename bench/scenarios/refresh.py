"""One rank writes to rows that the other holds replicas of: how many refreshes arrive, and how old the replicas are.

Rank 0 owns and writes, rank 1 holds and reads. A row of its own carries the time of its last write: the two ranks are
processes of one machine and share its monotonic clock.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intentpm.bench.benchmarks import Case
from intentpm.bench.links import usable_links

OWNER = 0
REPLICAS, BATCH, DIM = 10_000, 500, 64
LOADS = {"light load": 50_000.0, "full load": 0.0}
"""Rows written per second; 0: as many as the owner's worker can."""
PERIOD_S, PERIODS = 0.1, 20
START_S = 60.0
READ_EVERY_S, STAMP_EVERY_S = 0.5e-3, 0.2e-3
FOR_GOOD = 1 << 40
"""End of the intents, in clocks."""


def measure(effort: float) -> list[Case]:
    """Seconds per refreshed row at each load, and staleness: as the owner knows it (means of periods, an upper bound),
    and as a reader sees it."""
    periods = max(2, round(PERIODS * effort))
    cases: list[Case] = []
    for link in usable_links():
        owner, holder = link.run("refresh", 2, {"periods": periods}, START_S + 10 * PERIOD_S * PERIODS)
        for situation, written, read in zip(LOADS, owner["loads"], holder["loads"], strict=True):
            info = {"situation": situation, "keys": REPLICAS, "dim": DIM, "ranks": 2, "transport": link.name}
            per_row = [1 / rate for period in written["periods"] if (rate := period["refreshed_per_s"])]
            notes = {"written_per_s": [round(period["written_per_s"]) for period in written["periods"]]}
            stale = [period["staleness_s"] for period in written["periods"]]
            cases += [
                Case("refresh", per_row, unit="s/row", info={**info, "notes": notes}),
                Case("staleness", stale, info={**info, "notes": {"max_s": written["stalest_s"]}}),
                Case("age when read", read["ages_s"], info=info),
            ]
    return cases


def run_rank(pm: Any, arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The owner returns per load, for each period: rows written and refreshed per second, mean staleness in seconds
    (``pm.stats()``); the holder the ages in seconds of the row with the time, as read."""
    table = pm.create_table("rows", num_keys=2 * REPLICAS + 1000, row_shape=(DIM,), dtype="float32")
    stamp = pm.create_table("stamp", num_keys=64, row_shape=(1,), dtype="float64")
    worker = pm.worker()
    keys, stamps = _keys_of_owner(pm, table, REPLICAS), _keys_of_owner(pm, stamp, 1)
    for rank in range(2):  # the owner first: so the keys stay with it
        if pm.rank == rank:
            worker.intent(table, keys, 0, FOR_GOOD)
            worker.intent(stamp, stamps, 0, FOR_GOOD)
            worker.wait_sync()
        pm.barrier()
    loads = []
    for rows_per_s in LOADS.values():
        pm.barrier()
        if pm.rank == OWNER:
            loads.append(_write(pm, worker, (table, keys), (stamp, stamps), rows_per_s, arguments["periods"]))
        else:
            loads.append(_read(worker, stamp, stamps, arguments["periods"] * PERIOD_S))
        worker.wait_sync()
    pm.barrier()
    return {"loads": loads}


def _keys_of_owner(pm: Any, table: Any, count: int) -> Any:
    owned = table.owned_keys()
    return (owned if pm.rank == OWNER else np.setdiff1d(np.arange(table.num_keys), owned))[:count]


def _write(pm: Any, worker: Any, rows: Any, stamp: Any, rows_per_s: float, periods: int) -> dict[str, Any]:
    (table, keys), random = rows, np.random.default_rng(0)
    batches = [random.choice(keys, BATCH, replace=False) for _ in range(32)]
    deltas, done = np.ones((BATCH, DIM), np.float32), []
    for _ in range(periods):
        before, begin, written = pm.stats(), time.perf_counter(), 0
        while (now := time.perf_counter()) < begin + PERIOD_S:
            worker.set(*stamp, [[now]])
            if rows_per_s and written > rows_per_s * (now - begin):
                time.sleep(STAMP_EVERY_S)
                continue
            worker.push(table, batches[written // BATCH % len(batches)], deltas)
            written += BATCH
        after, seconds = pm.stats(), time.perf_counter() - begin
        refreshed = after["refreshed_rows"] - before["refreshed_rows"]
        done.append({"written_per_s": written / seconds, "refreshed_per_s": refreshed / seconds,
                     "staleness_s": _mean_staleness_s(before["staleness_ms"], after["staleness_ms"])})  # fmt: skip
    return {"periods": done, "stalest_s": pm.stats()["staleness_ms"]["max"] * 1e-3}


def _mean_staleness_s(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """Of the rows whose refresh was acknowledged in between; nan if there is none."""
    rows = new["rows"] - old["rows"]
    return float((new["mean"] * new["rows"] - old["mean"] * old["rows"]) / rows * 1e-3) if rows else float("nan")


def _read(worker: Any, table: Any, keys: Any, seconds: float) -> dict[str, Any]:
    begin, ages = time.perf_counter(), []
    while time.perf_counter() < begin + seconds:
        written = float(worker.pull(table, keys)[0, 0])
        if written > begin:
            ages.append(time.perf_counter() - written)
        time.sleep(READ_EVERY_S)
    return {"ages_s": ages}
