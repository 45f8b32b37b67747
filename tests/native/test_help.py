"""A worker does what its rank's progress thread should have done by now, but did not get to (``Turns.help``)."""

import threading
import time

import numpy as np
import pytest

from intentpm.runtime.manager import ParameterManager
from intentpm.testing import run_ranks

NUM_KEYS = 40
WINDOW_CLOCKS = 1_000_000
STEP_S = 5e-4
DEADLINE_S = 30.0


def end_progress_thread(pm: ParameterManager) -> None:
    """From now on only calls of workers look at what was signalled, and at the transport."""
    pm._engine.stop()
    pm._thread.join(DEADLINE_S)
    assert not pm._thread.is_alive(), f"the progress thread did not end within {DEADLINE_S:g} s"


@pytest.mark.timeout(90)
@pytest.mark.parametrize("kind", ["loopback", "tcp"])
def test_a_worker_does_a_look_that_is_overdue(kind: str) -> None:
    done = threading.Event()

    def train(pm: ParameterManager) -> tuple[int, int]:
        """Rank 0: how many of rank 1's keys have come, by calls that wait for nothing, and of how many."""
        table = pm.create_table("rows", NUM_KEYS)
        worker = pm.worker()
        pm.barrier()
        if pm.rank == 1:  # its progress thread serves
            done.wait(2 * DEADLINE_S)
            pm.barrier()
            return 0, 0
        foreign = np.setdiff1d(np.arange(NUM_KEYS), table.owned_keys())
        end_progress_thread(pm)
        deadline = time.monotonic() + DEADLINE_S
        while (here := pm.count_local(table, foreign)) < len(foreign) and time.monotonic() < deadline:
            worker.intent(table, foreign, worker.clock, worker.clock + WINDOW_CLOCKS)
            worker.advance_clock()
            time.sleep(STEP_S)
        done.set()
        pm.barrier()
        return here, len(foreign)

    here, wanted = run_ranks(2, train, kind, timeout=3 * DEADLINE_S)[0]
    assert wanted > 0
    assert here == wanted, f"waited {DEADLINE_S:g} s for {wanted} intended keys to come; {here} did"
