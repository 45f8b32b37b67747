"""Where clocks are long the progress thread naps between messages of management (``naps.pxd``)."""

import time

import numpy as np
import pytest

import intentpm
from intentpm.runtime.manager import ParameterManager
from intentpm.transports.registry import available

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(180)]

NUM_KEYS = 400
LONG_CLOCK_S = 0.02
LONG_CLOCKS = 40
SHORT_CLOCKS = 2000
BUSY_CLOCK_S = 0.001
"""A busy machine makes clocks without a pause so long that some may be napped through."""
PULLS = 200
PAUSE_S = 0.001
TRANSPORTS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            not available()[name].usable, reason=available()[name].reason or f"{name} cannot be used"
        ),
    )
    for name in ("ucx", "tcp")
]


def naps_of(pm: ParameterManager) -> int:
    return int(pm._engine.wheel.naps.taken)


def batches_of(rank: int, clocks: int) -> list[np.ndarray]:
    random = np.random.default_rng(rank)
    return [np.unique(random.integers(NUM_KEYS, size=40)) for _ in range(clocks)]


def train(pm: ParameterManager, clocks: int, clock_s: float) -> None:
    """Every rank adds 1 to keys that it has announced two clocks ahead. All that was added is there in the end."""
    table, worker, batches = (
        pm.create_table("rows", NUM_KEYS, dtype="float64"),
        pm.worker(),
        batches_of(pm.rank, clocks),
    )
    pm.barrier()
    for clock, keys in enumerate(batches):
        if clock + 2 < clocks:
            worker.intent(table, batches[clock + 2], clock + 2, clock + 3)
        time.sleep(clock_s)
        worker.push(table, keys, np.ones(len(keys)))
        worker.advance_clock()
    worker.wait_sync()
    pm.barrier()
    added = sum(len(keys) for rank in range(pm.size) for keys in batches_of(rank, clocks))
    assert worker.pull(table, np.arange(NUM_KEYS)).sum() == added


def nap_through_long_clocks_alone(transport: str) -> tuple[int, int, float]:
    """How many naps in many short clocks, and in some long ones; how long the short ones took on average."""
    with intentpm.init(transport=transport) as pm:
        began = time.perf_counter()
        train(pm, SHORT_CLOCKS, 0.0)
        took_s = (time.perf_counter() - began) / SHORT_CLOCKS
        short = naps_of(pm)
        pm.barrier()
    with intentpm.init(transport=transport) as pm:
        train(pm, LONG_CLOCKS, LONG_CLOCK_S)
        return short, naps_of(pm), took_s


def pull_after_long_clocks(transport: str) -> int:
    """Rank 0 pulls rows of rank 1 one after the other; how often that naps meanwhile."""
    with intentpm.init(transport=transport) as pm:
        train(pm, LONG_CLOCKS, LONG_CLOCK_S)
        table = pm.create_table("others", NUM_KEYS, init=1.0)
        worker = pm.worker()
        pm.barrier()
        before = naps_of(pm)
        if pm.rank == 0:
            foreign = np.setdiff1d(np.arange(NUM_KEYS), table.owned_keys())
            for pull in range(PULLS):
                worker.pull(table, foreign[pull % len(foreign)][np.newaxis])
                time.sleep(PAUSE_S)  # the other thread does not poll for so long
        else:
            time.sleep(2 * PULLS * PAUSE_S)  # a worker that waits in a barrier would serve the pulls itself
        took = naps_of(pm) - before
        pm.barrier()
        return took


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_it_naps_where_clocks_are_long_and_only_there(spawn_world, transport: str) -> None:
    for short, long, took_s in spawn_world(2, nap_through_long_clocks_alone, transport):
        assert long > 0
        assert 2 * short < long or took_s > BUSY_CLOCK_S


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_waits_for_rows_is_not_kept_waiting(spawn_world, transport: str) -> None:
    _, naps = spawn_world(2, pull_after_long_clocks, transport)
    assert naps < PULLS // 4, "the next pull would find it napping"
