"""A rank whose worker waited often keeps the transport for a moment longer (``Engine._lease``): that moment ends."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import intentpm
from intentpm.runtime.manager import ParameterManager
from intentpm.transports.registry import available

UCX = available()["ucx"]
pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not UCX.usable, reason=UCX.reason or "ucx is usable"),
]

NUM_KEYS = 100
LEASE_DEADLINE_S = 20.0
DEADLINE_S = 60.0


def await_file(path: Path, what: str) -> str:
    """Its text, once it is there. Calls nothing of intentpm meanwhile."""
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:g} s for {what}"
        time.sleep(0.002)
    return path.read_text()


def write_file(path: Path, text: str) -> None:
    """All of it appears at once."""
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").rename(path)


def pull_until_leased(pm: ParameterManager, pull: Callable[[], object]) -> bool:
    """True: the last pull left with a lease in force. False: none did before the deadline."""
    deadline = time.monotonic() + LEASE_DEADLINE_S
    while time.monotonic() < deadline:
        before = pm._engine.wheel.leases
        pull()
        if pm._engine.wheel.leases > before:
            return True
    return False


def fall_silent_with_a_lease(folder: Path) -> str:
    """Rank 0 pulls from rank 1 until it holds a lease, and makes no call until rank 1 has pulled from it."""
    with intentpm.init(transport="ucx") as pm:
        table = pm.create_table("rows", NUM_KEYS, init=lambda keys: keys)
        worker = pm.worker()
        foreign = np.setdiff1d(np.arange(NUM_KEYS), table.owned_keys())
        pm.barrier()
        if pm.rank == 0:
            leased = pull_until_leased(pm, lambda: worker.pull(table, foreign[:1]))
            write_file(folder / "leased", "yes" if leased else "no")
            await_file(folder / "answered", "rank 1's pull to be answered")
        else:
            if await_file(folder / "leased", "rank 0 to hold a lease") == "yes":
                pull = worker.pull_async(table, foreign)
                pull.wait(DEADLINE_S)
                assert np.array_equal(pull.result(), foreign)
            write_file(folder / "answered", "yes")
        pm.barrier()
        return (folder / "leased").read_text()


def test_a_rank_that_falls_silent_with_a_lease_still_answers(spawn_world, tmp_path: Path) -> None:
    leased = spawn_world(2, fall_silent_with_a_lease, tmp_path, timeout_s=2 * DEADLINE_S)
    if leased[0] == "no":
        pytest.skip(f"no lease within {LEASE_DEADLINE_S:g} s: pulls took too long (busy machine, no shared memory)")
