"""``init(on_loss="continue")`` with real processes: one is killed, the others train on."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intentpm

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(120)]

KEYS, STEPS = 300, 200


def train_on(victim: int, kill_at: int) -> dict[str, object]:
    """Each rank adds 1 to a column of its own of every key, step by step; one dies."""
    losses: list[intentpm.RankLost] = []
    with intentpm.init(on_loss="continue", transport="tcp") as pm:
        table = pm.create_table("t", KEYS, pm.size, dtype="float64")
        worker = pm.worker()
        delta = np.zeros((KEYS, pm.size))
        delta[:, pm.rank] = 1
        step = 0
        while step < STEPS:
            if pm.rank == victim and step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                worker.intent(table, np.arange(KEYS), worker.clock, worker.clock + 3)
                worker.push(table, np.arange(KEYS), delta)
                worker.advance_clock()
                step += 1
            except intentpm.RankLost as loss:
                losses.append(loss)
        while not losses:  # nobody trains to the end without having heard of it
            try:
                worker.wait_sync()
            except intentpm.RankLost as loss:
                losses.append(loss)
        worker.wait_sync()
        pm.barrier()
        rows = worker.pull(table, np.arange(KEYS))
        pm.barrier()
        rolled_back = {int(key) for entry in losses[0].rolled_back for key in entry.keys}
        unsure = {int(key) for key in losses[0].unsure.get("t", ())}
        return {
            "rank": pm.rank,
            "told": len(losses),
            "lost": losses[0].ranks,
            "living": pm.living,
            "rolled_back": rolled_back,
            "unsure": unsure,
            "own": rows[:, pm.rank].copy(),
        }


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_training_goes_on_after_a_kill(spawn_world, victim: int) -> None:  # type: ignore[no-untyped-def]
    outcomes = spawn_world.outcomes(
        3, train_on, victim, STEPS // 3, env={"INTENTPM_ON_LOSS": "continue"}, on_loss="continue"
    )
    assert outcomes[victim].exit_code == -signal.SIGKILL
    left = [rank for rank in range(3) if rank != victim]
    for rank in left:
        assert not outcomes[rank].failed, outcomes[rank].traceback
        said = outcomes[rank].value
        assert said["told"] == 1
        assert said["lost"] == [victim]
        assert said["living"] == left
        exact = [key for key in range(KEYS) if key not in said["rolled_back"] | said["unsure"]]
        # One call may have been interrupted: it is made again, and may count twice.
        assert set(said["own"][exact]) <= {STEPS, STEPS + 1}
    assert outcomes[left[0]].value["rolled_back"] == outcomes[left[1]].value["rolled_back"]


def stop_and_wake() -> dict[str, object]:
    """Rank 2 is stopped, the others go on without it; then it is woken, and has to end."""
    said: dict[str, object] = {}
    with suppress(intentpm.PeerLostError), intentpm.init(on_loss="continue", peer_timeout=2.0) as pm:
        table = pm.create_table("t", KEYS, pm.size, dtype="float64")
        worker = pm.worker()
        pids = [int(pid) for pid in pm.allgather(str(os.getpid()).encode())]
        delta = np.zeros((KEYS, pm.size))
        delta[:, pm.rank] = 1
        losses: list[intentpm.RankLost] = []
        worker.push(table, np.arange(KEYS), delta)
        worker.wait_sync()
        pm.barrier()
        if pm.rank == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
            said = _refused(worker, table, delta)
            pm.barrier()  # still, and for good
        while not losses:
            try:
                worker.push(table, np.arange(KEYS), delta)
            except intentpm.RankLost as loss:
                losses.append(loss)
        pm.barrier()
        if pm.rank == 0:
            os.kill(pids[2], signal.SIGCONT)
        _wait_until_gone(pids[2])
        pm.barrier()
        rows = worker.pull(table, np.arange(KEYS))
        pm.barrier()
        said = {"living": pm.living, "lost": losses[0].ranks, "of 2": set(rows[:, 2])}
    return said


def _refused(worker: Any, table: Any, delta: Any) -> dict[str, object]:
    """What the rank that was stopped is told when it goes on."""
    for _ in range(10_000):
        try:
            worker.push(table, np.arange(KEYS), delta)
        except intentpm.PeerLostError as error:
            return {"refused": str(error)}
    raise AssertionError("it was not refused")


def _wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 60.0
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
        assert time.monotonic() < end, "rank 2 did not end"
        time.sleep(0.02)


def test_a_rank_that_was_stopped_is_refused_when_it_wakes(spawn_world) -> None:  # type: ignore[no-untyped-def]
    outcomes = spawn_world.outcomes(
        3, stop_and_wake, env={"INTENTPM_ON_LOSS": "continue"}, on_loss="continue", check_leaks=False
    )
    for rank in (0, 1):
        assert not outcomes[rank].failed, outcomes[rank].traceback
        assert outcomes[rank].value["living"] == [0, 1]
        assert outcomes[rank].value["lost"] == [2]
        assert outcomes[rank].value["of 2"] <= {0.0, 1.0}
    assert not outcomes[2].failed, outcomes[2].traceback
    assert "too few to go on without them" in outcomes[2].value["refused"]


def outlast_a_stopped_one() -> str:
    """Rank 1 of two is stopped: rank 0 may not go on, for it lives."""
    refused = ""
    with suppress(intentpm.PeerLostError, intentpm.RankLost), intentpm.init(peer_timeout=1.0) as pm:
        table = pm.create_table("t", KEYS, pm.size, dtype="float64")
        worker = pm.worker()
        pids = [int(pid) for pid in pm.allgather(str(os.getpid()).encode())]
        if pm.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
            while True:
                worker.pull(table, np.arange(KEYS))  # until rank 0 has ended
        refused = str(_refused(worker, table, np.ones((KEYS, pm.size)))["refused"])
        os.kill(pids[1], signal.SIGCONT)
    return refused


def test_one_of_two_does_not_go_on_beside_one_that_is_stopped(spawn_world) -> None:  # type: ignore[no-untyped-def]
    outcomes = spawn_world.outcomes(
        2, outlast_a_stopped_one, env={"INTENTPM_ON_LOSS": "continue"}, on_loss="continue", check_leaks=False
    )
    assert not outcomes[0].failed, outcomes[0].traceback
    assert "too few to go on without them" in outcomes[0].value


def test_run_lets_the_others_go_on(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, intentpm\n"
        "with intentpm.init() as pm:\n"
        "    table = pm.create_table('t', 100, 4)\n"
        "    pm.barrier()\n"
        "    if pm.rank == 0:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    worker = pm.worker()\n"
        "    while len(pm.living) == pm.size:\n"
        "        try:\n"
        "            worker.pull(table, range(100))\n"
        "        except intentpm.RankLost:\n"
        "            pass\n"
        "    print('went on', flush=True)\n"
    )
    command = [sys.executable, "-m", "intentpm", "run", "-n", "2", "--on-loss", "continue", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "went on" in done.stdout
