"""Traces as files: what the ranks recorded, as Chrome trace events, which ui.perfetto.dev and ``intentpm plot`` show.

One process per key, with two tracks per rank: what the key is there (requested, replica, owned), and when it is
intended. One process per rank with its totals as counters. Times are in us since the first event, on rank 0's clock.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intentpm.runtime.clocks import ClockOffset
from intentpm.runtime.events import EventKind, KeyState

PRODUCER = "intentpm trace"
VERSION = 1
# Viewers need thread ids that are unique in the whole trace, and none of 0.
KEY_PIDS = 100_000  # processes below are ranks
KEY_TIDS = 1_000_000

# state before and after; None: any
TRANSITIONS: dict[int, tuple[KeyState | None, KeyState]] = {
    EventKind.REQUESTED: (KeyState.ABSENT, KeyState.REQUESTED),
    EventKind.WITHDRAWN: (KeyState.REQUESTED, KeyState.ABSENT),
    EventKind.GRANTED: (KeyState.REQUESTED, KeyState.REPLICA),
    EventKind.MOVED_IN: (None, KeyState.OWNED),
    EventKind.MOVED_OUT: (KeyState.OWNED, KeyState.ABSENT),
    EventKind.DROPPED: (KeyState.REPLICA, KeyState.ABSENT),
    EventKind.REFRESHED: (KeyState.REPLICA, KeyState.REPLICA),
}
SLICES = (EventKind.STATE, EventKind.INTENT_ON, EventKind.INTENT_OFF)  # drawn as bars only

SAME_CLOCK = ClockOffset(0, 0)

Events = npt.NDArray[Any]


@dataclass(frozen=True)
class RankTrace:
    """What one rank recorded. Times on its own clock."""

    events: Events
    """events.EVENT, oldest first."""
    samples: npt.NDArray[Any]
    """events.SAMPLE"""
    lost: int
    """Events that were overwritten before the oldest."""
    clock: ClockOffset = SAME_CLOCK


@dataclass(frozen=True, slots=True)
class Span:
    """A key was in one state from ``start_ns`` to ``end_ns``."""

    name: str
    start_ns: int
    end_ns: int


def state_spans(events: Events, start_ns: int, end_ns: int) -> list[Span]:
    """The life of one key on one rank. events: of this key, oldest first; the trace lasted from start_ns to end_ns.

    Where the trace's beginning was overwritten, the first event tells what the key was before.
    """
    spans: list[Span] = []
    state, since = KeyState.ABSENT, start_ns
    for i, event in enumerate(events):
        before, after = _transition(event)
        if i == 0 and before is not None:
            state = before
        if after is None or after == state:
            continue
        _close(spans, state, since, int(event["time_ns"]))
        state, since = after, int(event["time_ns"])
    _close(spans, state, since, end_ns)
    return spans


def _transition(event: Any) -> tuple[KeyState | None, KeyState | None]:
    if event["kind"] == EventKind.STATE:
        return None, KeyState(event["detail"])
    return TRANSITIONS.get(int(event["kind"]), (None, None))


def _close(spans: list[Span], state: KeyState, start_ns: int, end_ns: int) -> None:
    if state != KeyState.ABSENT:
        spans.append(Span(state.name.lower(), start_ns, end_ns))


def intent_spans(events: Events, start_ns: int, end_ns: int) -> list[Span]:
    """When one rank had active intent for one key; arguments as ``state_spans``."""
    spans: list[Span] = []
    since: int | None = None
    for i, event in enumerate(events):
        kind, now = event["kind"], int(event["time_ns"])
        begins = kind == EventKind.INTENT_ON or (kind == EventKind.STATE and event["reason"] == 1)
        if kind == EventKind.INTENT_OFF and since is None and not _seen_intent(events[:i]):
            since = start_ns  # its beginning was overwritten
        if begins and since is None:
            since = now
        elif kind == EventKind.INTENT_OFF and since is not None:
            spans.append(Span("intended", since, now))
            since = None
    if since is not None:
        spans.append(Span("intended", since, end_ns))
    return spans


def _seen_intent(events: Events) -> bool:
    return bool(np.isin(events["kind"], (EventKind.INTENT_ON, EventKind.INTENT_OFF, EventKind.STATE)).any())


def trace_document(traces: Sequence[RankTrace], tables: dict[int, str]) -> dict[str, Any]:
    """The Chrome trace of what all ranks recorded, in rank order. tables: names by table id."""
    aligned = [_on_clock_zero(trace) for trace in traces]
    times = np.concatenate([trace.events["time_ns"] for trace in aligned] + [t.samples["time_ns"] for t in aligned])
    first, last = (int(times.min()), int(times.max())) if times.size else (0, 0)
    keys = sorted({(int(e["table"]), int(e["key"])) for trace in aligned for e in _key_names(trace.events)})
    events = list(_rank_headers(len(traces)))
    for number, (table, key) in enumerate(keys):
        events += _key_events(aligned, KEY_PIDS + number, table, key, tables[table], first, last)
    for rank, trace in enumerate(aligned):
        events += _counter_events(rank, trace.samples, first)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "producer": PRODUCER,
            "version": VERSION,
            "ranks": len(traces),
            "duration_us": (last - first) / 1e3,
            "keys": [[tables[table], key] for table, key in keys],
            "lost_events": [trace.lost for trace in traces],
            "clock_uncertainty_us": [trace.clock.uncertainty_ns / 1e3 for trace in traces],
        },
    }


def _key_names(events: Events) -> Iterable[Any]:
    return np.unique(events[["table", "key"]])


def _on_clock_zero(trace: RankTrace) -> RankTrace:
    events, samples = trace.events.copy(), trace.samples.copy()
    events["time_ns"] -= trace.clock.offset_ns
    samples["time_ns"] -= trace.clock.offset_ns
    return RankTrace(events, samples, trace.lost, trace.clock)


# -- trace events ------------------------------------------------------------------------------------------------------


def _tid(pid: int, ranks: int, rank: int) -> int:
    """The track for what the key of process ``pid`` is on a rank; the next one is for its intent there."""
    return KEY_TIDS + 2 * ((pid - KEY_PIDS) * ranks + rank)


def _header(pid: int, tid: int, name: str, sort: int, what: str) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "pid": pid, "tid": tid, "name": f"{what}_name", "args": {"name": name}}
    yield {"ph": "M", "pid": pid, "tid": tid, "name": f"{what}_sort_index", "args": {"sort_index": sort}}


def _rank_headers(ranks: int) -> Iterator[dict[str, Any]]:
    for rank in range(ranks):
        yield from _header(rank + 1, rank + 1, f"totals of rank {rank}", KEY_PIDS + rank, "process")


def _key_events(
    traces: Sequence[RankTrace], pid: int, table: int, key: int, name: str, first: int, last: int
) -> Iterator[dict[str, Any]]:
    yield from _header(pid, pid, f"{name}[{key}]", pid - KEY_PIDS, "process")
    arrows: list[dict[str, Any]] = []
    for rank, trace in enumerate(traces):
        mine = trace.events[(trace.events["table"] == table) & (trace.events["key"] == key)]
        start = first if trace.lost else int(mine["time_ns"][0]) if mine.size else first
        place = {"table": name, "key": key, "rank": rank}
        tid = _tid(pid, len(traces), rank)
        yield from _header(pid, tid, f"rank {rank}", 2 * rank, "thread")
        yield from _slices(state_spans(mine, start, last), "state", pid, tid, place, first)
        yield from _marks(mine, pid, tid, place, first)
        arrows += _flows(mine, pid, tid, first)
        if intents := intent_spans(mine, start, last):
            yield from _header(pid, tid + 1, f"rank {rank} intent", 2 * rank + 1, "thread")
            yield from _slices(intents, "intent", pid, tid + 1, place, first)
    ends = Counter(arrow["id"] for arrow in arrows)
    yield from (arrow for arrow in arrows if ends[arrow["id"]] == 2)  # both ends were recorded


def _slices(
    spans: Iterable[Span], category: str, pid: int, tid: int, place: dict[str, Any], first: int
) -> Iterator[dict[str, Any]]:
    for span in spans:
        yield {
            "ph": "X", "cat": category, "name": span.name, "pid": pid, "tid": tid,
            "ts": (span.start_ns - first) / 1e3, "dur": (span.end_ns - span.start_ns) / 1e3, "args": place,
        }  # fmt: skip


def _marks(events: Events, pid: int, tid: int, place: dict[str, Any], first: int) -> Iterator[dict[str, Any]]:
    for event in events[~np.isin(events["kind"], SLICES)]:
        yield {
            "ph": "i", "s": "t", "cat": "event", "name": EventKind(event["kind"]).name.lower(), "pid": pid, "tid": tid,
            "ts": (int(event["time_ns"]) - first) / 1e3,
            "args": {**place, "peer": int(event["peer"]), "detail": int(event["detail"])},
        }  # fmt: skip


def _flows(events: Events, pid: int, tid: int, first: int) -> Iterator[dict[str, Any]]:
    """Arrows from a relocation's leaving to its arrival, which have the epoch in common; a ns inside their slices."""
    for event in events[np.isin(events["kind"], (EventKind.MOVED_OUT, EventKind.MOVED_IN))]:
        leaves = event["kind"] == EventKind.MOVED_OUT
        yield {
            "ph": "s" if leaves else "f", "bp": "e", "cat": "relocation", "name": "relocation", "pid": pid, "tid": tid,
            "ts": (int(event["time_ns"]) - first + (-1 if leaves else 1)) / 1e3,
            "id": (pid - KEY_PIDS) << 32 | int(event["detail"]),
        }  # fmt: skip


def _counter_events(rank: int, samples: npt.NDArray[Any], first: int) -> Iterator[dict[str, Any]]:
    for sample in samples:
        ts = (int(sample["time_ns"]) - first) / 1e3
        for name, values in (
            ("relocations", {"in": int(sample["relocations_in"]), "out": int(sample["relocations_out"])}),
            ("replicas", {"held": int(sample["replicas_held"])}),
            ("bytes", {"sent": int(sample["sent_bytes"]), "received": int(sample["received_bytes"])}),
        ):
            yield {"ph": "C", "cat": "totals", "name": name, "pid": rank + 1, "tid": rank + 1, "ts": ts, "args": values}
