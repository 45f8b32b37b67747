"""``pm.stats()``: the counters of a rank, named and grouped for people."""

from collections.abc import Iterable
from typing import Any

# Message ids of _native/messages.pxd; all others are control messages.
KINDS = {1: "access_requests", 2: "replies", 16: "rounds", 17: "answers", 18: "refreshes", 19: "refreshes"}
KIND_NAMES = (*dict.fromkeys(KINDS.values()), "control")
PLAIN = (
    "served_keys", "forwarded_keys", "hops", "parked", "parked_now", "relocations_in", "relocations_out",
    "replicas_set_up", "replicas_fetched", "replicas_dropped", "replicas_promoted", "replicas_held", "rounds",
    "records", "forwarded_records", "refreshed_rows", "intents_acted", "intents_refused",
)  # fmt: skip


def gather_stats(inspector: Any, started_ns: int, tables: Iterable[Any], workers: Any) -> dict[str, Any]:
    """What ``ParameterManager.stats`` returns."""
    counters, timers = inspector.counters()
    seconds = (counters["now_ns"] - started_ns) * 1e-9
    tables = list(tables)
    ages = _ages([workers.access_counts(table.table_id)[2] for table in tables])
    of_tables = {table.name: _table(table, workers, inspector.taken(table)) for table in tables}
    return {
        "seconds": seconds,
        "bytes_sent": counters["sent_bytes"],
        "bytes_received": counters["received_bytes"],
        "messages_sent": counters["sent_messages"],
        "messages_received": counters["received_messages"],
        "bytes_by_kind": _bytes_by_kind(counters),
        **{name: counters[name] for name in PLAIN},
        "rounds_per_second": counters["rounds"] / seconds if seconds > 0 else 0.0,
        "staleness_ms": _staleness(counters),
        "intents": _intents(counters, timers),
        "workers": [_worker(timer) for timer in timers],
        "coverage": _coverage(of_tables.values()),
        "age_at_read": ages,
        "tables": of_tables,
    }


def _bytes_by_kind(counters: dict[str, Any]) -> dict[str, dict[str, int]]:
    totals = {name: {"sent": 0, "received": 0} for name in KIND_NAMES}
    for way in ("sent", "received"):
        for message_id, size in enumerate(counters[f"{way}_bytes_of"]):
            totals[KINDS.get(message_id, "control")][way] += size
    return totals


def _staleness(counters: dict[str, Any]) -> dict[str, float]:
    rows = counters["stale_rows"]
    mean_ns = counters["stale_row_ns"] / rows if rows else 0.0
    return {"mean": mean_ns / 1e6, "max": counters["stalest_ns"] / 1e6, "rows": rows}


def _intents(counters: dict[str, Any], timers: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "signalled": counters["keys_signalled"] + sum(timer["keys_signalled"] for timer in timers),
        "acted": counters["intents_acted"],
        "in_time": counters["intents_in_time"],
        "late": counters["intents_late"],
        "withdrawn": counters["intents_withdrawn"],
        "refused": counters["intents_refused"],
    }


def _worker(timer: dict[str, Any]) -> dict[str, Any]:
    return {name: timer[name] for name in ("clock", "clocks_per_round", "horizon_clocks")}


def _table(table: Any, workers: Any, taken: int) -> dict[str, int]:
    (local, replica, remote), looked_at, _ = workers.access_counts(table.table_id)
    sampled = dict(zip(("sampled", "announced", "in_time"), looked_at, strict=True))
    moved = table.tier.counts() if table.tier is not None else {}
    accesses = {"local": local, "replica": replica, "remote": remote}
    return {**accesses, **sampled, **table.memory(), "taken": taken, **moved}


def _coverage(of_tables: Iterable[dict[str, int]]) -> dict[str, float | None]:
    sampled, announced, in_time = (sum(t[name] for t in of_tables) for name in ("sampled", "announced", "in_time"))
    return {
        "announced": announced / sampled if sampled else None,
        "in_time": in_time / sampled if sampled else None,
    }


def _ages(of_tables: list[tuple[list[int], list[int]]]) -> dict[str, dict[float, int]]:
    """Per unit: upper bound of the age -> reads that were looked at."""
    histograms: dict[str, dict[float, int]] = {"ms": {}, "clocks": {}}
    for unit, counts in zip(("ms", "clocks"), zip(*of_tables, strict=True), strict=False):
        sums = [sum(column) for column in zip(*counts, strict=True)]
        bounds = [*(2.0**i for i in range(len(sums) - 1)), float("inf")]
        histograms[unit] = dict(zip(bounds, sums, strict=True))
    return histograms
