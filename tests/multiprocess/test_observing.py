"""Seeing what management does, on real ranks: statistics, explain, traces."""

import json
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import intentpm
from intentpm.foundation.errors import Error, PeerLostError

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(120)]

NUM_KEYS, DIM = 200, 4
WAIT_S = 30.0


def start(**options):
    pm = intentpm.init(transport="tcp", **options)
    table = pm.create_table("items", NUM_KEYS, (DIM,))
    return pm, table, pm.worker()


def keys_of(table, rank, count):
    """Keys that are owned by ``rank`` when the job starts."""
    mine = set(table.home_keys().tolist())
    others = [key for key in range(NUM_KEYS) if key not in mine]
    return np.array((sorted(mine) if rank == "mine" else others)[:count])


def ones(keys):
    return np.ones((len(keys), DIM), np.float32)


# -- statistics --------------------------------------------------------------------------------------------------------


def relocations_and_replicas():
    """Each rank takes 5 keys of the other; then both intend the same 10. Returns three snapshots."""
    pm, table, worker = start()
    with pm:
        seen = []
        look(pm, seen)
        theirs = keys_of(table, "others", 5)
        worker.intent(table, theirs, 0, 10)
        worker.wait_sync(WAIT_S)
        look(pm, seen)
        worker.intent(table, np.arange(NUM_KEYS), 0, 10)
        worker.wait_sync(WAIT_S)
        pm.barrier()
        worker.push(table, np.arange(NUM_KEYS), ones(np.arange(NUM_KEYS)))
        worker.wait_sync(WAIT_S)
        pm.barrier()
        worker.push(table, table.owned_keys(), ones(table.owned_keys()))  # the other rank only holds these
        look(pm, seen)
        for _ in range(10):
            worker.advance_clock()
        worker.wait_sync(WAIT_S)
        look(pm, seen)
        return seen


def look(pm, seen):
    """A snapshot while all ranks are quiet."""
    pm.barrier()
    seen.append(pm.stats())
    pm.barrier()


def test_stats_count_what_happened(spawn_world):
    ranks = spawn_world(2, relocations_and_replicas)
    for fresh, relocated, replicated, over in ranks:
        assert fresh["relocations_in"] == fresh["replicas_held"] == fresh["rounds"] == 0
        assert relocated["relocations_in"] == relocated["relocations_out"] == 5
        assert relocated["intents"] == {
            "signalled": 5,
            "acted": 5,
            "in_time": 0,
            "late": 5,
            "withdrawn": 0,
            "refused": 0,
        }
        assert relocated["replicas_set_up"] == 0
        assert relocated["bytes_by_kind"]["refreshes"]["sent"] == 0
        assert replicated["replicas_held"] > 0
        assert replicated["refreshed_rows"] > 0
        assert replicated["staleness_ms"]["rows"] == replicated["refreshed_rows"], "the barrier waits for all of them"
        assert 0 < replicated["staleness_ms"]["mean"] <= replicated["staleness_ms"]["max"] < 1000 * WAIT_S
        assert replicated["tables"]["items"]["remote"] == 0, "owned or held, as they are handed over to spread the load"
        assert over["replicas_held"] == 0
        assert over["workers"] == [
            {"clock": 10, **{k: over["workers"][0][k] for k in ("clocks_per_round", "horizon_clocks")}}
        ]
        assert over["workers"][0]["horizon_clocks"] > over["workers"][0]["clocks_per_round"] > 0
    for snapshots in zip(*ranks, strict=True):
        total = {name: sum(stats[name] for stats in snapshots) for name in ("relocations_in", "relocations_out")}
        assert total["relocations_in"] == total["relocations_out"]
    assert sum(stats["replicas_held"] for stats in [ranks[0][2], ranks[1][2]]) == NUM_KEYS, "each key has one replica"


def test_bytes_by_kind_are_the_same_at_both_ends(spawn_world):
    ranks = spawn_world(2, relocations_and_replicas)
    for snapshot in range(4):
        first, second = (rank[snapshot] for rank in ranks)
        for kind, moved in first["bytes_by_kind"].items():
            if kind != "control":  # an answer to a collective call may be on its way
                assert moved["sent"] == second["bytes_by_kind"][kind]["received"], kind
        framing = first["bytes_sent"] - sum(moved["sent"] for moved in first["bytes_by_kind"].values())
        assert 0 < framing <= 64 * first["messages_sent"]


def late_and_in_time():
    """Intents for keys of rank 1: 3 for now, 4 signalled ahead, which count as neither before they start."""
    pm, table, worker = start()
    with pm:
        theirs = keys_of(table, "others", 10)
        before = after = None
        if pm.rank == 0:
            worker.intent(table, theirs[:3], 0, 100)
            worker.intent(table, theirs[3:7], 5, 100)
            worker.wait_sync(WAIT_S)
            before = pm.stats()["intents"]
            for _ in range(5):
                worker.advance_clock()
            worker.wait_sync(WAIT_S)
            after = pm.stats()["intents"]
        pm.barrier()
        return before, after


def test_late_and_in_time(spawn_world):
    before, after = spawn_world(2, late_and_in_time)[0]
    never = {"withdrawn": 0, "refused": 0}
    assert before == {"signalled": 7, "acted": 7, "in_time": 0, "late": 3, **never}
    assert after == {"signalled": 7, "acted": 7, "in_time": 4, "late": 3, **never}


def snapshots_meanwhile():
    """Snapshots from another thread while intents and pushes go on; what each must satisfy."""
    pm, table, worker = start()
    with pm:
        seen, done = [], threading.Event()

        def watch():
            while not done.is_set():
                seen.append(pm.stats())
                time.sleep(0.001)

        watcher = threading.Thread(target=watch)
        watcher.start()
        rng = np.random.default_rng(pm.rank)
        for clock in range(150):
            keys = rng.choice(NUM_KEYS, 10)
            worker.intent(table, keys, clock, clock + 3)
            worker.push(table, keys, ones(keys))
            worker.advance_clock()
        done.set()
        watcher.join()
        pm.barrier()
    return [
        (
            s["replicas_held"],
            s["replicas_set_up"] - s["replicas_dropped"] - s["replicas_promoted"],
            s["records"],
            s["rounds"],
        )
        for s in seen
    ]


def test_snapshots_of_a_running_job_are_consistent(spawn_world):
    for seen in spawn_world(2, snapshots_meanwhile):
        assert len(seen) > 3
        assert all(held == reckoned for held, reckoned, _, _ in seen)
        assert all(later[2] >= earlier[2] for earlier, later in pairwise(seen))
        assert all(records >= rounds for _, _, records, rounds in seen)
        assert seen[-1][2] > seen[0][2], "there was nothing to see"


# -- explain -----------------------------------------------------------------------------------------------------------


def explained():
    """Key k of rank 2 goes to rank 1 and then to rank 0; rank 3, which is not its home, is asked."""
    pm, table, worker = start()
    with pm:
        homes = [json.loads(answer) for answer in pm.allgather(json.dumps(table.home_keys().tolist()).encode())]
        key = homes[2][0]
        reports = {"start": pm.explain(table, key)}
        pm.barrier()
        for taker, clock in ((1, 3), (0, 7)):
            if pm.rank == taker:
                worker.intent(table, [key], 0, clock)
                worker.wait_sync(WAIT_S)
                reports["taken"] = pm.explain(table, key)
            pm.barrier()
            if pm.rank == taker == 1:
                while worker.clock < 5:
                    worker.advance_clock()
                worker.wait_sync(WAIT_S)
            pm.barrier()
        if pm.rank == 3:
            reports["asked"] = pm.explain(table, key, ask_owner=True, timeout=WAIT_S)
        pm.barrier()
        if pm.rank == 3:
            worker.intent(table, [key], 0, 1)
            worker.intent(table, [key], 10**9)
            worker.wait_sync(WAIT_S)
            reports["replica"] = pm.explain(table, key, ask_owner=True, timeout=WAIT_S)
        pm.barrier()
        return key, reports


def test_explain(spawn_world):
    ranks = spawn_world(4, explained)
    key = ranks[0][0]
    reports = [rank[1] for rank in ranks]
    assert [r["start"].state for r in reports] == ["absent", "absent", "owned", "absent"]
    assert {(r["start"].owner, r["start"].home, r["start"].epoch) for r in reports} == {(2, 2, 0)}
    taken = reports[0]["taken"]
    assert (taken.rank, taken.state, taken.owner, taken.epoch, taken.holders) == (0, "owned", 0, 2, ())
    assert [(i.worker, i.start, i.end, i.clock, i.active) for i in taken.intents] == [(0, 0, 7, 0, True)]
    assert [(d.kind, d.peer) for d in taken.decisions] == [("requested", 2), ("moved_in", 1)]
    asked = reports[3]["asked"]
    assert (asked.state, asked.owner, asked.epoch, asked.holders) == ("absent", 2, 0, None), "nobody has told rank 3"
    assert (asked.at_owner.rank, asked.at_owner.state, asked.at_owner.key) == (0, "owned", key)
    replica = reports[3]["replica"]
    assert (replica.state, replica.owner, replica.epoch) == ("replica", 0, 2)
    assert [(i.start, i.end, i.active) for i in replica.intents] == [(0, 1, True), (10**9, 10**9 + 1, False)]
    assert replica.at_owner.holders == (3,)
    assert replica.at_owner.decisions[-1].kind == "holder_added"
    assert "for one clock, others intend it too" in str(replica)
    assert "fetch once" in str(replica), "the ways that were compared are told, with their costs"


def asks_the_dead():
    pm, table, _ = start(peer_timeout=3)
    key = int(keys_of(table, "others", 1)[0])
    pm.barrier()
    if pm.rank == 1:
        os._exit(7)
    deadline = time.monotonic() + WAIT_S
    try:
        while time.monotonic() < deadline:  # until its end is noticed, which the question itself may do
            pm.explain(table, key, ask_owner=True, timeout=WAIT_S)
    except PeerLostError as error:
        return str(error)
    finally:
        pm.abort("done")
    return "no error"


def test_asking_a_rank_that_has_died_is_an_error(spawn_world):
    survivor, dead = spawn_world.outcomes(2, asks_the_dead)
    assert dead.exit_code == 7
    assert survivor.value.startswith("rank 1 ended without a goodbye"), survivor.traceback


# -- traces ------------------------------------------------------------------------------------------------------------


def traced(path, events, traced_by):
    """Rank 1's first two keys: one is relocated to rank 0, then replicated; the other stays, and is not traced."""
    pm, table, worker = start()
    with pm:
        key, other = keys_of(table, "mine" if pm.rank == 1 else "others", 2)
        if pm.rank in traced_by:
            pm.trace(table, [key], events=events)
        pm.barrier()
        for taker in (0, 1):  # rank 0 becomes the owner, then rank 1 a holder
            if pm.rank == taker:
                worker.intent(table, [key, other], 0, 5)
                worker.wait_sync(WAIT_S)
            pm.barrier()
            time.sleep(0.005)  # so that it is long enough for a sample of the totals
        if pm.rank == 0:
            worker.push(table, [key], ones([key]))  # news for rank 1, which has nothing to tell
        pm.barrier()
        worker.push(table, [key], ones([key]))
        worker.wait_sync(WAIT_S)
        pm.barrier()
        for _ in range(5):
            worker.push(table, [key], ones([key]))
            worker.wait_sync(WAIT_S)
            worker.advance_clock()
        worker.wait_sync(WAIT_S)
        pm.barrier()
        pm.trace_stop()
        worker.intent(table, [key, other], 5, 10)
        worker.wait_sync(WAIT_S)
        pm.barrier()
        pm.write_trace(path)
        pm.barrier()
        return int(key), int(other)


def bars_of(document, rank, category="state"):
    return [
        event["name"]
        for event in document["traceEvents"]
        if event.get("cat") == category and event["ph"] == "X" and event["args"]["rank"] == rank
    ]


def names_of(document, rank):
    return {e["name"] for e in document["traceEvents"] if e.get("cat") == "event" and e["args"]["rank"] == rank}


def test_a_trace_tells_the_life_of_a_key(spawn_world, tmp_path):
    path = tmp_path / "out" / "trace.json"
    key, _ = spawn_world(2, traced, path, 4096, (0, 1))[0]
    document = json.loads(path.read_text())
    assert document["otherData"]["keys"] == [["items", key]]
    assert document["otherData"]["lost_events"] == [0, 0]
    assert document["otherData"]["clock_uncertainty_us"] == [0, 0], "one machine, one clock"
    assert bars_of(document, 0)[:2] == ["requested", "owned"]
    assert bars_of(document, 1)[:3] == ["owned", "requested", "replica"]
    assert bars_of(document, 0, "intent") == bars_of(document, 1, "intent") == ["intended"]
    assert {"moved_in", "holder_added", "delta_taken", "refresh_sent"} <= names_of(document, 0)
    assert {"moved_out", "granted", "delta_sent", "refreshed"} <= names_of(document, 1)
    arrows = [event["ph"] for event in document["traceEvents"] if event.get("cat") == "relocation"]
    assert arrows.count("s") == arrows.count("f") >= 1
    replicas = [e["args"]["held"] for e in document["traceEvents"] if e["ph"] == "C" and e["name"] == "replicas"]
    assert max(replicas) >= 1

    command = [sys.executable, "-m", "intentpm", "plot", str(path)]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert drawn.stdout.strip() == str(path.with_suffix(".png"))
    assert path.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_small_trace_keeps_the_newest_events(spawn_world, tmp_path):
    spawn_world(2, traced, tmp_path / "trace.json", 4, (0, 1))
    document = json.loads((tmp_path / "trace.json").read_text())
    assert all(lost > 0 for lost in document["otherData"]["lost_events"])
    for rank in (0, 1):
        events = [e for e in document["traceEvents"] if e.get("cat") == "event" and e["args"]["rank"] == rank]
        assert 0 < len(events) <= 4


def test_a_trace_of_one_rank(spawn_world, tmp_path):
    spawn_world(2, traced, tmp_path / "trace.json", 4096, (1,))
    document = json.loads((tmp_path / "trace.json").read_text())
    assert bars_of(document, 0) == []
    assert bars_of(document, 1)


def fails_to_write(path):
    pm, table, _ = start()
    with pm:
        found = []
        for target, keys in ((path / "trace.json", []), (path, [3])):
            pm.trace(table, keys)
            with pytest.raises(Error) as raised:
                pm.write_trace(target)
            found.append(str(raised.value))
        pm.barrier()
        return found


def test_errors_of_writing_reach_every_rank(spawn_world, tmp_path):
    told = spawn_world(2, fails_to_write, tmp_path)
    for nothing, folder in told:
        assert "nothing was traced" in nothing
        assert "Is a directory" in folder
    assert told[0] == told[1]
    kept = Path(told[0][1].rpartition("; its contents were kept as ")[2])
    assert json.loads(kept.read_text())["otherData"]["keys"] == [["items", 3]], "the trace is not lost"
    kept.unlink()
    kept.parent.rmdir()
