"""One rank writes to rows that the other holds replicas of: how many refreshes arrive, and how old the replicas are.

Rank 0 owns and writes, rank 1 holds and reads. A row of its own carries the time of its last write: the two ranks are
processes of one machine and share its monotonic clock.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

OWNER, HOLDER = 0, 1
READ_EVERY_S, STAMP_EVERY_S = 0.5e-3, 0.2e-3
FOR_GOOD = 1 << 40
"""End of the intents, in clocks."""


def run_rank(pm: Any, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """``arguments["loads"]``: rows to write per second, or 0 for as many as the owner can.

    The owner returns per load, for each period of ``period_s``: rows written and refreshed per second, mean staleness
    in seconds (``pm.stats()``); the holder the ages in seconds of the row with the time, as read.
    """
    dim, count = arguments["dim"], arguments["replicas"]
    table = pm.create_table("rows", num_keys=2 * count + 1000, row_shape=(dim,), dtype="float32")
    stamp = pm.create_table("stamp", num_keys=64, row_shape=(1,), dtype="float64")
    worker = pm.worker()
    keys = _keys_of_owner(pm, table, count)
    stamps = _keys_of_owner(pm, stamp, 1)
    for rank in (OWNER, HOLDER):  # the owner first: so the keys stay with it
        if pm.rank == rank:
            worker.intent(table, keys, 0, FOR_GOOD)
            worker.intent(stamp, stamps, 0, FOR_GOOD)
            worker.wait_sync()
        pm.barrier()
    held = pm.count_local(table, keys)
    loads = []
    for rows_per_s in arguments["loads"]:
        pm.barrier()
        if pm.rank == OWNER:
            loads.append(_write(pm, worker, (table, keys), (stamp, stamps), rows_per_s, arguments))
        else:
            loads.append(_read(worker, stamp, stamps, arguments))
        worker.wait_sync()
    pm.barrier()
    return {"rank": pm.rank, "held": held, "loads": loads}


def _keys_of_owner(pm: Any, table: Any, count: int) -> Any:
    owned = table.owned_keys()
    return (owned if pm.rank == OWNER else np.setdiff1d(np.arange(table.num_keys), owned))[:count]


def _write(pm: Any, worker: Any, rows: Any, stamp: Any, rows_per_s: float, arguments: dict[str, Any]) -> dict[str, Any]:
    (table, keys), batch = rows, arguments["batch"]
    random = np.random.default_rng(arguments["seed"])
    batches = [random.choice(keys, batch, replace=False) for _ in range(32)]
    deltas = np.ones((batch, arguments["dim"]), np.float32)
    periods = []
    for _ in range(arguments["periods"]):
        before, begin, written = pm.stats(), time.perf_counter(), 0
        while (now := time.perf_counter()) < begin + arguments["period_s"]:
            worker.set(*stamp, [[now]])
            if rows_per_s and written > rows_per_s * (now - begin):
                time.sleep(STAMP_EVERY_S)
                continue
            worker.push(table, batches[written // batch % len(batches)], deltas)
            written += batch
        after, seconds = pm.stats(), time.perf_counter() - begin
        refreshed = after["refreshed_rows"] - before["refreshed_rows"]
        periods.append(
            {
                "written_per_s": written / seconds,
                "refreshed_per_s": refreshed / seconds,
                "staleness_s": _mean_staleness_s(before, after),
            }
        )
    return {"periods": periods, "stalest_s": pm.stats()["staleness_ms"]["max"] * 1e-3}


def _mean_staleness_s(before: dict[str, Any], after: dict[str, Any]) -> float:
    """Of the rows whose refresh was acknowledged in between."""
    old, new = before["staleness_ms"], after["staleness_ms"]
    rows = new["rows"] - old["rows"]
    total_ms = new["mean"] * new["rows"] - old["mean"] * old["rows"]
    return float(total_ms / rows * 1e-3) if rows else float("nan")


def _read(worker: Any, table: Any, keys: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    begin = time.perf_counter()
    end = begin + arguments["periods"] * arguments["period_s"]
    ages = []
    while time.perf_counter() < end:
        written = float(worker.pull(table, keys)[0, 0])
        if written > begin:
            ages.append(round(time.perf_counter() - written, 9))
        time.sleep(READ_EVERY_S)
    return {"ages_s": ages}
