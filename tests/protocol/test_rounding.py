"""Floating-point deltas: copies agree bit for bit once all is synchronised, in whatever order they were added where."""

from typing import Any

import numpy as np
import pytest
from support.simulation import simulate

from intentpm.runtime._native import mutations
from intentpm.runtime.config import Config

NUM_KEYS, DIM, STEPS, RANKS = 12, 3, 15, 3


def copies(seed: int, management: str, dtype: str) -> tuple[list[np.ndarray], int]:
    """The rows of all keys on each rank that holds them all, after random pushes and synchronisation; rows spared."""
    with simulate(RANKS, seed, Config(management=management, seed=seed)) as job:  # type: ignore[arg-type]
        tables = job.create_table("t", NUM_KEYS, (DIM,), dtype=dtype, init=0 if dtype == "int64" else 1 / 3)

        workers = job.on_every_rank(lambda pm: pm.worker())

        def train(pm: Any) -> None:
            worker, table = workers[pm.rank], tables[pm.rank]
            random = np.random.default_rng([seed, pm.rank])
            worker.intent(table, np.arange(NUM_KEYS), 0, 10 * STEPS)
            worker.wait_sync()
            for _ in range(STEPS):
                keys = random.choice(NUM_KEYS, 4, replace=False)
                worker.push(
                    table,
                    keys,
                    (random.standard_normal((4, DIM)) * (9 if dtype == "int64" else 0.1)).astype(table.dtype),
                )
                if random.random() < 0.3:
                    worker.wait_sync()
                worker.advance_clock()
            worker.wait_sync()
            pm.barrier()

        job.on_every_rank(train)
        spared = sum(pm._engine.rounds.owner.rows_spared for pm in job.ranks)
        return [tables[rank].rows_here(np.arange(NUM_KEYS)) for rank in range(RANKS)], spared


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64"])
@pytest.mark.parametrize("management", ["adaptive", "replicate", "full_replication"])
def test_copies_are_bit_identical_after_synchronisation(management: str, dtype: str) -> None:
    total = 0
    for seed in range(10):
        rows, spared = copies(seed, management, dtype)
        total += spared
        for other in rows[1:]:
            assert rows[0].tobytes() == other.tobytes(), f"seed {seed}"
    assert total > 0, "no answer was spared its row: this test tested nothing"


def test_a_flush_that_forgets_rounded_rows_is_found() -> None:
    with mutations.plant("rounding forgotten"):
        for seed in range(50):
            rows, _ = copies(seed, "replicate", "float32")
            if any(rows[0].tobytes() != other.tobytes() for other in rows[1:]):
                return
    pytest.fail("50 programs did not notice")
