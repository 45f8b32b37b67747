"""What signalling an intent costs the training thread, and what advance_clock does.

Every call is timed as users make it, ``worker.intent(table, keys, start, end)``. In a job of several ranks the others
own their part of the keys, and serve. "In training" it is part of a training loop: signal the keys of a later step,
pull and push those of this one, advance the clock. The others are calls in a row: intents "far ahead" that are not due,
and keys "signalled again" that are intended already. Calls in a row pile up, so they touch fresh memory all the time,
which some virtual machines charge 10 us a page for. The limit is the copy of the keys that any intent makes.
"""

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest

from intentpm.bench.benchmarks import SUBJECT
from intentpm.bench.latency.job import MeasuringRank, create_table
from intentpm.bench.latency.measuring import declare, time_calls
from intentpm.bench.links import Link

NUM_KEYS, DIM = 200_000, 64
STEPS_AHEAD, BATCHES = 16, 64
FAR_CLOCKS, WINDOW_CLOCKS = 1_000_000_000, 1_000_000
WAITING_INTENTS = 10_000

Arguments = tuple[Any, ...]


@pytest.fixture(scope="module")
def table(job: MeasuringRank, link: Link) -> Any:
    job.everywhere(create_table, "intended", NUM_KEYS, DIM)
    return job.tables["intended"]


def in_training(worker: Any, table: Any, batches: list[Any]) -> Callable[[], Arguments]:
    rows, steps = np.zeros((len(batches[0]), DIM), np.float32), count()

    def train_a_step() -> Arguments:
        step = next(steps)
        if step:
            keys = batches[step % BATCHES]
            worker.pull(table, keys, rows)
            worker.push(table, keys, rows)
            worker.advance_clock()
        ahead = step + STEPS_AHEAD
        return table, batches[ahead % BATCHES], ahead, ahead + 1

    return train_a_step


def far_ahead(worker: Any, table: Any, batches: list[Any]) -> Callable[[], Arguments]:
    calls = count()

    def arguments() -> Arguments:
        n = next(calls)
        return table, batches[n % BATCHES], FAR_CLOCKS + n, FAR_CLOCKS + n + 1

    return arguments


def signalled_again(worker: Any, table: Any, batches: list[Any]) -> Callable[[], Arguments]:
    worker.intent(table, batches[0], 0, WINDOW_CLOCKS)
    worker.wait_sync()
    return lambda: (table, batches[0], 0, WINDOW_CLOCKS)


SITUATIONS = {"in training": in_training, "far ahead": far_ahead, "signalled again": signalled_again}


@pytest.mark.parametrize("keys", [1, 100, 10_000])
@pytest.mark.parametrize("by", [SUBJECT, "copy to uint32"])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_intent(
    benchmark: Any, job: MeasuringRank, link: Link, table: Any, keys: int, by: str, situation: str, budget_s: float
) -> None:
    declare(
        benchmark, "intent", by, situation=situation, keys=keys, dim=DIM, num_keys=NUM_KEYS, ranks=job.size,
        transport=link.name,
    )  # fmt: skip
    batches = list(np.random.default_rng(0).integers(0, NUM_KEYS, (BATCHES, keys)))
    if by != SUBJECT:
        turns = count()
        time_calls(benchmark, lambda batch: batch.astype(np.uint32), budget_s,
                   setup=lambda: (batches[next(turns) % BATCHES],))  # fmt: skip
        return
    worker = job.pm.worker()
    time_calls(benchmark, worker.intent, budget_s, setup=SITUATIONS[situation](worker, table, batches))
    worker.wait_sync()


@pytest.mark.parametrize(
    ("by", "situation"), [(SUBJECT, "no intents"), (SUBJECT, "waiting intents"), ("dict.clear", "no intents")]
)
def test_advance_clock(benchmark: Any, job: MeasuringRank, link: Link, table: Any, by: str, situation: str) -> None:
    declare(benchmark, "advance_clock", by, situation=situation, ranks=job.size, transport=link.name)
    worker = job.pm.worker()
    if situation == "waiting intents":
        for n in range(WAITING_INTENTS):
            worker.intent(table, np.array([n]), FAR_CLOCKS + n)
    benchmark(worker.advance_clock if by == SUBJECT else {}.clear)
