"""From recorded events to the bars and marks of a trace file."""

import json

import numpy as np
import pytest

from intentpm.runtime.clocks import ClockOffset
from intentpm.runtime.events import EVENT, SAMPLE, EventKind, KeyState
from intentpm.runtime.trace_file import RankTrace, Span, intent_spans, state_spans, trace_document

E = EventKind


def events(*rows, table=0, key=5):
    """rows: (time_ns, kind[, detail[, reason[, peer]]])"""
    array = np.zeros(len(rows), EVENT)
    for entry, row in zip(array, rows, strict=True):
        time_ns, kind, detail, reason, peer = (*row, *(0, 0, 0)[len(row) - 2 :])
        entry["time_ns"], entry["kind"], entry["detail"] = time_ns, kind, detail
        entry["reason"], entry["peer"], entry["table"], entry["key"] = reason, peer, table, key
    return array


def samples(*rows):
    return np.array(list(rows), SAMPLE)


@pytest.mark.parametrize(
    ("recorded", "spans"),
    [
        ([], []),
        ([(0, E.STATE, KeyState.ABSENT)], []),
        ([(0, E.STATE, KeyState.OWNED)], [("owned", 0, 100)]),
        ([(0, E.STATE, KeyState.OWNED), (30, E.MOVED_OUT)], [("owned", 0, 30)]),
        (
            [(0, E.STATE, KeyState.ABSENT), (10, E.REQUESTED), (20, E.GRANTED), (30, E.REFRESHED), (40, E.DROPPED)],
            [("requested", 10, 20), ("replica", 20, 40)],
        ),
        (
            [(0, E.STATE, 0), (10, E.REQUESTED), (20, E.GRANTED), (50, E.MOVED_IN)],
            [("requested", 10, 20), ("replica", 20, 50), ("owned", 50, 100)],
        ),
        ([(0, E.STATE, 0), (10, E.REQUESTED), (15, E.WITHDRAWN)], [("requested", 10, 15)]),
        # the beginning was overwritten: the first event tells
        ([(60, E.DROPPED)], [("replica", 0, 60)]),
        ([(60, E.MOVED_OUT), (70, E.REQUESTED)], [("owned", 0, 60), ("requested", 70, 100)]),
        ([(40, E.PARKED), (60, E.DROPPED)], []),
    ],
)
def test_state_spans(recorded, spans):
    assert state_spans(events(*recorded), 0, 100) == [Span(*span) for span in spans]


@pytest.mark.parametrize(
    ("recorded", "spans"),
    [
        ([(0, E.STATE, 0)], []),
        ([(0, E.STATE, 0, 1)], [(0, 100)]),
        ([(0, E.STATE, 0, 1), (20, E.INTENT_OFF)], [(0, 20)]),
        ([(0, E.STATE, 0), (10, E.INTENT_ON), (20, E.INTENT_OFF), (30, E.INTENT_ON)], [(10, 20), (30, 100)]),
        ([(20, E.INTENT_OFF), (30, E.INTENT_ON)], [(0, 20), (30, 100)]),
    ],
)
def test_intent_spans(recorded, spans):
    assert intent_spans(events(*recorded), 0, 100) == [Span("intended", *span) for span in spans]


def one_relocation():
    """Key 5 moves from rank 1 to rank 0 at 2 ms; rank 1's clock is 1 s ahead."""
    first = RankTrace(
        events((0, E.STATE, 0), (1_000_000, E.REQUESTED, 0, 0, 1), (2_000_000, E.MOVED_IN, 7, 0, 1)),
        samples((0, 0, 0, 0, 10, 20), (2_000_000, 1, 0, 0, 30, 40)),
        lost=0,
    )
    second = RankTrace(
        events((10**9, E.STATE, 3), (10**9 + 1_500_000, E.MOVED_OUT, 7, 1, 0)),
        samples((10**9, 0, 0, 0, 0, 0)),
        lost=4,
        clock=ClockOffset(10**9, 2_000),
    )
    return trace_document([first, second], {0: "items"})


def test_a_document_tells_what_it_holds():
    facts = one_relocation()["otherData"]
    assert facts["keys"] == [["items", 5]]
    assert facts["ranks"] == 2
    assert facts["lost_events"] == [0, 4]
    assert facts["clock_uncertainty_us"] == [0, 2]
    assert facts["duration_us"] == 2000


def test_bars_are_on_one_clock_in_us():
    bars = [event for event in one_relocation()["traceEvents"] if event["ph"] == "X"]
    assert [(bar["args"]["rank"], bar["name"], bar["ts"], bar["dur"]) for bar in bars] == [
        (0, "requested", 1000, 1000),
        (0, "owned", 2000, 0),
        (1, "owned", 0, 1500),
    ]
    assert len({(bar["pid"], bar["tid"]) for bar in bars}) == 2, "one track per key and rank"


def test_an_arrow_joins_the_two_ends_of_a_relocation():
    arrows = [event for event in one_relocation()["traceEvents"] if event["ph"] in "sf"]
    assert {arrow["ph"] for arrow in arrows} == {"s", "f"}
    assert len({(arrow["id"], arrow["name"], arrow["cat"]) for arrow in arrows}) == 1
    start, end = sorted(arrows, key=lambda arrow: arrow["ts"])
    assert (start["ph"], end["ph"]) == ("s", "f")


def test_half_an_arrow_is_left_out():
    only_one_end = RankTrace(events((0, E.STATE, 3), (10, E.MOVED_OUT, 7, 1, 0)), samples(), lost=0)
    document = trace_document([only_one_end, RankTrace(events(), samples(), lost=0)], {0: "items"})
    assert [event for event in document["traceEvents"] if event["ph"] in "sf"] == []


def test_counters_and_names():
    found = one_relocation()["traceEvents"]
    counters = [(e["pid"], e["name"], e["ts"], e["args"]) for e in found if e["ph"] == "C"]
    assert (1, "relocations", 2000, {"in": 1, "out": 0}) in counters
    assert (2, "bytes", 0, {"sent": 0, "received": 0}) in counters
    names = {event["args"]["name"] for event in found if event["name"] in ("process_name", "thread_name")}
    assert names == {"items[5]", "rank 0", "rank 1", "totals of rank 0", "totals of rank 1"}


def test_the_document_is_json_that_trace_viewers_accept():
    document = json.loads(json.dumps(one_relocation()))
    assert len({(e["pid"], e["tid"]) for e in document["traceEvents"]}) == len(
        {e["tid"] for e in document["traceEvents"]}
    ), "a thread id must not occur in two processes"
    for event in document["traceEvents"]:
        assert {"ph", "pid", "tid", "name"} <= event.keys()
        assert event["tid"] > 0
        if event["ph"] != "M":
            assert event["ts"] >= 0
