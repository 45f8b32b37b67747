"""What pytest-benchmark is told of a case, and how it is given rounds that are single calls or were timed elsewhere."""

import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from intentpm.bench.benchmarks import describe_case
from intentpm.bench.results import source_commit

MOST_ROUNDS, FEWEST_ROUNDS = 1000, 20
WARM_UP_SHARE = 0.2
"""Of the budget."""


def declare(benchmark: Any, operation: str, by: str, **info: Any) -> None:
    """Names the case: ``by`` and all that it is compared with share operation and ``info``, hence their group."""
    benchmark.extra_info |= {"operation": operation, "by": by, "unit": "s", **info, "commit": _commit()}
    benchmark.group, benchmark.name = describe_case(benchmark.extra_info), by


_commit = cache(source_commit)


def time_calls(
    benchmark: Any, call: Callable[..., object], budget_s: float, *, pause_s: float = 0.0, setup: Any = None
) -> None:
    """Every call is a round, for as many as fit into ``budget_s``: latencies have tails.

    Timed here, as rounds of ``benchmark.pedantic`` lie 5 us apart: requests would not be back to back, and what waits
    between them would go to sleep.

    pause_s: before each call. setup: returns the arguments of the next call; not timed.
    """
    _samples(call, WARM_UP_SHARE * budget_s, pause_s, setup)
    record(benchmark, _samples(call, budget_s, pause_s, setup))


def _samples(call: Callable[..., object], budget_s: float, pause_s: float, setup: Any) -> list[float]:
    samples: list[float] = []
    end = time.perf_counter() + budget_s
    while len(samples) < MOST_ROUNDS and (len(samples) < FEWEST_ROUNDS or time.perf_counter() < end):
        if pause_s:
            time.sleep(pause_s)
        arguments = setup() if setup else ()
        start = time.perf_counter()
        call(*arguments)
        samples.append(time.perf_counter() - start)
    return samples


def record(benchmark: Any, samples_s: Iterable[float]) -> None:
    """Rounds that something else has timed."""
    benchmark.pedantic(lambda: None)
    if benchmark.stats:  # none with --benchmark-disable
        benchmark.stats.stats.data.clear()
        for sample in samples_s:
            benchmark.stats.update(sample)
