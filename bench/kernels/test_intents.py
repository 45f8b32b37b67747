"""Signalling intents and advancing the clock in a one-rank job under pytest-benchmark: ``pytest bench/kernels``.

All keys are here, so what is measured is the worker's own side; ``bench/suite/intents_cost.py`` measures two ranks.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import intentpm

NUM_KEYS = 200_000


@pytest.fixture(scope="module")
def job() -> Iterator[tuple[Any, Any]]:
    with intentpm.init() as pm:
        yield pm, pm.create_table("rows", num_keys=NUM_KEYS, row_shape=(64,), dtype="float32", init=1.0)


@pytest.mark.parametrize("batch_size", [1, 100, 10_000])
def test_intent_a_step_ahead(benchmark: Any, job: tuple[Any, Any], batch_size: int) -> None:
    pm, table = job
    worker = pm.worker()
    keys = np.random.default_rng(0).integers(0, NUM_KEYS, batch_size)

    def signal_and_advance() -> None:
        worker.intent(table, keys, worker.clock + 1)
        worker.advance_clock()

    benchmark.group = f"intent {batch_size}"
    benchmark(signal_and_advance)


def test_advance_clock(benchmark: Any, job: tuple[Any, Any]) -> None:
    benchmark.group = "advance_clock"
    benchmark(job[0].worker().advance_clock)
