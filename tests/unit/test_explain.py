"""Reports on a key: reading facts, following a key to its owner, and what people read."""

from dataclasses import replace

import numpy as np
import pytest

import intentpm
from intentpm.foundation.errors import Error, KeyRangeError
from intentpm.runtime.events import EVENT, FACTS, INTENT, RANK, EventKind, KeyState, Reason
from intentpm.runtime.explain import MOST_ASKED, ask_owner, read_report


def facts(intents=(), events=(), holders=(), **fields):
    known = np.zeros(1, FACTS)
    known["now_ns"], known["intents"], known["events"], known["holders"] = (
        10**10,
        len(intents),
        len(events),
        len(holders),
    )
    for name, value in fields.items():
        known[name] = value
    return (
        known.tobytes()
        + np.array(holders, RANK).tobytes()
        + np.array(list(intents), INTENT).tobytes()
        + np.array(list(events), EVENT).tobytes()
    )


def report(**fields):
    return read_report(facts(**fields), "items", 17)


def test_an_owned_key():
    moved = (10**10 - 2 * 10**9, 0, 17, 4, 2, EventKind.MOVED_IN, 0, (0, 0, 0, 0))
    granted = (10**10 - 10**7, 0, 17, 4, 70, EventKind.HOLDER_ADDED, Reason.OWNER_INTENDS, (0, 0, 960, 1200))
    found = report(
        rank=3, state=KeyState.OWNED, owner=3, epoch=4, home=1, holders=(0, 70), parked=2,
        intents=[(5, 9, 6, 1, 1), (40, 41, 6, 0, 0)], events=[moved, granted],
    )  # fmt: skip
    assert found.holders == (0, 70)
    assert [(i.worker, i.start, i.end, i.clock, i.active) for i in found.intents] == [
        (1, 5, 9, 6, True),
        (0, 40, 41, 6, False),
    ]
    assert [(d.kind, d.peer, d.seconds_ago) for d in found.decisions] == [
        ("moved_in", 2, pytest.approx(2)),
        ("holder_added", 70, pytest.approx(0.01)),
    ]
    assert str(found).splitlines() == [
        "key 17 of 'items' on rank 3: owned here",
        "  owner: rank 3, epoch 4; home: rank 1",
        "  replicas: ranks 0, 70",
        "  intent of worker 1: clocks [5, 9), active; its clock is 6",
        "  intent of worker 0: clocks [40, 41), not due yet; its clock is 6",
        "  2 requests wait for it to arrive",
        "  2.0 s ago: relocated here from rank 2 (epoch 4)",
        "  10.0 ms ago: replica granted to rank 70: its owner intends it too (bytes until its window is over: "
        "replicate 960, leave remote 1200)",
    ]


def test_a_key_that_is_elsewhere_says_where_to_ask():
    text = str(report(rank=0, state=KeyState.ABSENT, owner=2, holders=()))
    assert "owner: rank 2 as far as known here" in text
    assert "ask_owner=True" in text
    assert "rank 2" in text.splitlines()[-1]


def test_every_decision_has_a_text():
    for kind in (k for k in EventKind if k < EventKind.INTENT_ON):
        found = report(state=KeyState.OWNED, events=[(0, 0, 17, 3, 1, kind, Reason.MODE, (0, 0, 0, 0))])
        assert "{" not in found.decisions[0].text


def test_the_owner_is_found_by_way_of_earlier_ones():
    asked = []
    reports = {
        1: report(rank=1, state=KeyState.ABSENT, owner=2),
        2: report(rank=2, state=KeyState.REPLICA, owner=4),
        4: report(rank=4, state=KeyState.OWNED, owner=4),
    }

    def ask(rank):
        asked.append(rank)
        return reports[rank]

    found = ask_owner(report(rank=0, state=KeyState.ABSENT, owner=1), ask)
    assert found is not None
    assert (found.rank, asked) == (4, [1, 2, 4])
    text = str(replace(reports[1], at_owner=found))
    assert "its owner says:\nkey 17 of 'items' on rank 4: owned here" in text


def test_a_key_that_moves_too_fast_is_given_up():
    asked = []

    def ask(rank):
        asked.append(rank)
        return report(rank=rank, state=KeyState.ABSENT, owner=(rank + 1) % 4)

    assert ask_owner(report(rank=0, state=KeyState.ABSENT, owner=1), ask) is None
    assert len(asked) == MOST_ASKED


# -- one real rank -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pm():
    with intentpm.init() as manager:
        yield manager


def test_a_rank_alone(pm):
    table = pm.create_table("items", 20, (4,))
    found = pm.explain(table, 17, ask_owner=True)
    assert (found.state, found.owner, found.home, found.holders, found.at_owner) == ("owned", 0, 0, (), None)
    assert "decisions: none remembered" in str(found)


@pytest.mark.parametrize("key", [-1, 20])
def test_keys_out_of_range(pm, key):
    table = pm.create_table("items", 20, (4,))
    with pytest.raises(KeyRangeError, match=f"key {key} is not in table 'items', whose keys are 0 to 19"):
        pm.explain(table, key)
    with pytest.raises(KeyRangeError, match=f"key {key} is not in table"):
        pm.trace(table, [3, key])


@pytest.mark.parametrize("events", [0, -1, 1 << 30])
def test_a_trace_of_no_or_endless_events(pm, events):
    with pytest.raises(Error, match=f"events={events}: a trace has room for 1 to"):
        pm.trace(pm.create_table("items", 20), [3], events=events)


def test_a_trace_of_nothing_is_an_error(pm, tmp_path):
    with pytest.raises(Error, match=r"nothing was traced: call pm\.trace\(table, keys\)"):
        pm.write_trace(tmp_path / "trace.json")


def test_after_the_end(pm, tmp_path):
    table = pm.create_table("items", 20)
    pm.close()
    with pytest.raises(intentpm.ClosedError):
        pm.explain(table, 3)
    with pytest.raises(intentpm.ClosedError):
        pm.trace(table, [3])
    with pytest.raises(intentpm.ClosedError):
        pm.write_trace(tmp_path / "trace.json")
