"""Writes to copies in use may be gathered: owners are told when they are due, if somebody waits, or by the release."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.simulation import simulate

from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

GATHERING_US = 50_000.0
LATENCY_US = 100.0
WINDOWS = 4
"""More than one: a copy for one clock is told of with its release in any case."""


def told_after_us(then: Callable[[Any], object], gathering_us: float = GATHERING_US) -> float:
    """Both ranks intend a key of rank 0. Rank 1 writes to its copy, and does ``then``: when the owner has the write."""
    with simulate(2, 1, Config(timing="immediate", seed=1), NetworkModel(latency_us=LATENCY_US)) as job:
        tables = job.create_table("t", 8, dtype="int64")
        workers = job.on_every_rank(lambda pm: pm.worker())
        key = tables[0].owned_keys()[:1]
        workers[0].intent(tables[0], key, 0, 10**6)
        for start in range(WINDOWS):
            workers[1].intent(tables[1], key, start, start + WINDOWS)
        job.on_every_rank(lambda pm: workers[pm.rank].wait_sync())
        assert tables[1].replica_keys().tolist() == key.tolist()
        job.gather(gathering_us)
        written_ns = [0]

        def write() -> None:
            workers[1].push(tables[1], key, np.ones(1, np.int64))
            written_ns[0] = job.network.now
            then(workers[1])

        def look() -> float:
            while workers[0].pull(tables[0], key)[0] == 0:
                job.network.pause(LATENCY_US)
            return (job.network.now - written_ns[0]) / 1000

        job.spawn(1, write)
        looking = job.spawn(0, look)
        job.run()
        return float(looking.value)


def test_it_is_told_when_due() -> None:
    assert GATHERING_US <= told_after_us(lambda worker: None) <= GATHERING_US + 40 * LATENCY_US


def test_what_is_not_gathered_is_told_at_once() -> None:
    assert told_after_us(lambda worker: None, gathering_us=0.0) <= 40 * LATENCY_US


def test_a_wait_sync_has_it_told_at_once() -> None:
    assert told_after_us(lambda worker: worker.wait_sync()) <= 40 * LATENCY_US


def test_a_release_brings_it_along() -> None:
    def leave(worker: Any) -> None:
        for _ in range(2 * WINDOWS):
            worker.advance_clock()

    assert told_after_us(leave) <= 40 * LATENCY_US


@pytest.mark.parametrize("management", ["adaptive", "adapm", "replicate"])
def test_only_adaptive_management_gathers(management: Any) -> None:
    """On a link that carries the rows of a clock in 20 ms, all ranks using the same keys all the time."""
    ranks, rows, dim, steps = 3, 400, 256, 30
    model = NetworkModel(latency_us=LATENCY_US, bandwidth_gbytes_per_s=0.025)
    with simulate(ranks, 1, Config(management=management, seed=1), model) as job:
        tables = job.create_table("t", rows, dim)

        def train(pm: Any) -> int:
            worker, table, keys = pm.worker(), tables[pm.rank], np.arange(rows)
            for clock in range(steps):
                worker.intent(table, keys, clock, clock + 3)
            longest_ns = 0
            for _ in range(steps):
                worker.push(table, keys, worker.pull(table, keys))
                job.network.pause(1000.0)
                worker.advance_clock()
                longest_ns = max(longest_ns, pm._engine.rounds.writes.gathering_ns)
            return longest_ns

        gathered_ns = job.on_every_rank(train)
        assert all(5e6 <= ns <= 500e6 if management == "adaptive" else ns == 0 for ns in gathered_ns), gathered_ns
