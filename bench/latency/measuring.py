"""What pytest-benchmark is told of a case, and how it is given rounds that are single calls or were timed elsewhere."""

import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from intentpm.bench.benchmarks import describe_case
from intentpm.bench.results import source_commit

MOST_ROUNDS, FEWEST_ROUNDS, TRIAL_ROUNDS = 1000, 20, 5


def declare(benchmark: Any, operation: str, by: str, **info: Any) -> None:
    """Names the case: ``by`` and all that it is compared with share operation and ``info``, hence their group."""
    benchmark.extra_info |= {"operation": operation, "by": by, "unit": "s", **info, "commit": _commit()}
    benchmark.group, benchmark.name = describe_case(benchmark.extra_info), by


_commit = cache(source_commit)


def time_calls(
    benchmark: Any, call: Callable[..., object], budget_s: float, *, pause_s: float = 0.0, setup: Any = None
) -> None:
    """Every call is a round, for as many as fit into ``budget_s``: latencies have tails.

    pause_s: before each call. setup: as in ``benchmark.pedantic``, not timed.
    """

    def prepare() -> Any:
        if pause_s:
            time.sleep(pause_s)
        return setup() if setup else None

    begin = time.perf_counter()
    for _ in range(TRIAL_ROUNDS):
        arguments, keywords = prepare() or ((), {})
        call(*arguments, **keywords)
    round_s = max(1e-9, (time.perf_counter() - begin) / TRIAL_ROUNDS)
    rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(budget_s / round_s)))
    benchmark.pedantic(call, setup=prepare, rounds=rounds)


def record(benchmark: Any, samples_s: Iterable[float]) -> None:
    """Rounds that something else has timed."""
    benchmark.pedantic(lambda: None)
    if benchmark.stats:  # none with --benchmark-disable
        benchmark.stats.stats.data.clear()
        for sample in samples_s:
            benchmark.stats.update(sample)
