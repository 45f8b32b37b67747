"""Collective calls that real ranks give up: by deadlines, by Ctrl-C, by exceptions of signal handlers."""

import gc
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from support.world import WorldSpawner

import intentpm

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(180)]

TRANSPORTS = ("tcp", "ucx")


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    if request.param == "ucx":
        pytest.importorskip("libucx")
    return str(request.param)


def wait_in_slices(straggler: int, folder: str) -> tuple[int, bool]:
    """How often this rank's barrier passed its deadline, and whether every message named the straggler."""
    errors: list[str] = []
    with intentpm.init() as pm:
        table = pm.create_table("t", 10)
        if pm.rank == straggler:
            while len(os.listdir(folder)) < pm.size - 1:  # until every other rank has given up at least twice
                time.sleep(0.01)
        while True:
            try:
                pm.barrier(timeout=0.05)
                break
            except intentpm.WaitTimeoutError as error:
                errors.append(str(error))
                if len(errors) == 2:
                    open(os.path.join(folder, str(pm.rank)), "w").close()
        pm.worker().push(table, np.arange(10), np.ones(10, np.float32))
        pm.barrier()
        assert (pm.worker().pull(table, np.arange(10)) == pm.size).all()
    return len(errors), all(f"ranks [{straggler}] have not come" in error for error in errors[:1])


@pytest.mark.parametrize("size", [2, 4])
def test_a_barrier_is_waited_for_in_slices(spawn_world: WorldSpawner, tmp_path: Any, transport: str, size: int) -> None:
    for straggler in (0, size - 1):
        folder = tmp_path / str(straggler)
        folder.mkdir()
        outcomes = spawn_world(size, wait_in_slices, straggler, str(folder), transport=transport)
        for rank, (errors, named) in enumerate(outcomes):
            assert errors >= 2 * (rank != straggler)
            assert named or rank == straggler


def be_interrupted(hasty: int, how: str) -> str:
    """One rank's create_table ends by a signal while it waits; the job goes on."""
    with intentpm.init() as pm:
        table = pm.create_table("t", 10)
        worker = pm.worker()
        pm.barrier()
        if pm.rank == hasty:
            said = interrupt_creation(pm, how)
            gc.collect()
            for _ in range(100):
                worker.push(table, np.arange(10), np.ones(10, np.float32))
        else:
            time.sleep(1.0)
            with pytest.raises(intentpm.Error) as caught:
                pm.create_table("big", 100_000, 64, init=1.0)
            said = str(caught.value)
        pm.barrier(timeout=20)
        assert (worker.pull(table, np.arange(10)) == 100.0).all()
        again = pm.create_table("big", 1000, 4, init=2.0)
        assert (pm.worker().pull(again, np.arange(1000)) == 2.0).all()
    return said


def interrupt_creation(pm: Any, how: str) -> str:
    if how == "handler":
        signal.signal(signal.SIGUSR1, raise_system_exit)
    number = signal.SIGUSR1 if how == "handler" else signal.SIGINT
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    try:
        pm.create_table("big", 100_000, 64, init=1.0)
    except (KeyboardInterrupt, SystemExit) as problem:
        return repr(problem)
    finally:
        timer.join()
    raise AssertionError("create_table was not interrupted")


def raise_system_exit(*_: Any) -> None:
    raise SystemExit(3)


@pytest.mark.parametrize("how", ["ctrl-c", "handler"])
@pytest.mark.parametrize("hasty", [0, 1])
def test_a_creation_that_a_signal_ends_fails_on_every_rank_and_the_job_goes_on(
    spawn_world: WorldSpawner, transport: str, hasty: int, how: str
) -> None:
    said = spawn_world(2, be_interrupted, hasty, how, transport=transport)
    assert f"rank {hasty} gave up, because of {said[hasty]}" in said[1 - hasty]


def interrupt_barrier() -> bool:
    with intentpm.init() as pm:
        pm.create_table("t", 10)
        if pm.rank == 0:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                pm.barrier()
            with pytest.raises(intentpm.CollectiveMismatchError, match=r"given up barrier\(\)"):
                pm.allgather(b"")
        else:
            time.sleep(0.6)
        pm.barrier(timeout=20)
        return pm.allgather(b"%d" % pm.rank) == [b"0", b"1"]


def test_a_barrier_that_ctrl_c_ends_is_made_again(spawn_world: WorldSpawner, transport: str) -> None:
    assert spawn_world(2, interrupt_barrier, transport=transport) == [True, True]
