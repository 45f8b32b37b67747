"""Slots that nobody needs any more: their memory goes back to the system at a barrier, and they can be used again."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.simulation import simulate

from intentpm.runtime.config import Config

NUM_KEYS, DIM = 80_000, 64
ROWS_BYTES = NUM_KEYS // 2 * 4 * DIM
"""Of the replicas of one rank: 10 MB."""


class Job:
    """Two ranks and a table; either rank holds replicas of the other's keys, or none."""

    def __init__(self, simulation: Any) -> None:
        self.simulation = simulation
        self.tables = simulation.create_table("t", NUM_KEYS, (DIM,), init=0.0)
        self.workers = simulation.on_every_rank(lambda manager: manager.worker())
        self.pushed = 0

    def replicate(self) -> None:
        """Rows of all keys are on both ranks, and written to."""

        def hold(manager: Any) -> None:
            worker, table = self.workers[manager.rank], self.tables[manager.rank]
            worker.intent(table, np.arange(NUM_KEYS), worker.clock)
            worker.wait_sync()
            worker.push(table, np.arange(NUM_KEYS), np.ones((NUM_KEYS, DIM), np.float32))
            worker.wait_sync()
            assert manager.count_local(table, np.arange(NUM_KEYS)) == NUM_KEYS

        self.simulation.on_every_rank(hold)
        self.pushed += 2

    def drop(self) -> None:
        """All intents are over."""

        def let_go(manager: Any) -> None:
            self.workers[manager.rank].advance_clock()
            self.workers[manager.rank].wait_sync()

        self.simulation.on_every_rank(let_go)

    def barrier(self) -> None:
        self.simulation.on_every_rank(lambda manager: manager.barrier())

    def slots(self) -> int:
        """Used once or more and not given back, of rank 0."""
        return (self.tables[0].memory()["index"] - 8 * NUM_KEYS) // 4

    def check_values(self) -> None:
        def check(manager: Any) -> None:
            rows = self.workers[manager.rank].pull(self.tables[manager.rank], np.arange(NUM_KEYS))
            assert (rows == self.pushed).all()

        self.simulation.on_every_rank(check)


@pytest.fixture
def job() -> Iterator[Job]:
    with simulate(2, seed=3, config=Config(seed=3, management="replicate")) as simulation:
        yield Job(simulation)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_of_dropped_replicas_goes_back_at_a_barrier(job: Job) -> None:
    owned = job.slots()
    job.replicate()
    assert job.slots() == NUM_KEYS
    job.barrier()
    job.drop()
    held = resident_bytes()
    assert job.slots() == NUM_KEYS, "nothing is given back before a barrier"
    job.barrier()
    assert job.slots() == owned
    assert resident_bytes() < held - 2 * 0.8 * ROWS_BYTES, "two ranks' rows, but for the ends of huge pages"
    job.check_values()


def test_slots_given_back_are_used_again(job: Job) -> None:
    for _ in range(3):
        job.replicate()
        job.barrier()
        job.drop()
        job.barrier()
        job.check_values()
    assert job.slots() < NUM_KEYS


def test_memory_that_was_needed_since_the_last_barrier_stays(job: Job) -> None:
    job.barrier()
    job.replicate()
    job.drop()
    job.barrier()
    assert job.slots() == NUM_KEYS, "a job that does so between all barriers would have to get it anew each time"
    job.barrier()
    assert job.slots() < NUM_KEYS
    job.check_values()
