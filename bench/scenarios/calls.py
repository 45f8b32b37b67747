"""Timing single calls, with every sample kept: latencies have tails."""

import time
from collections.abc import Callable

WARM_UP = 5
WARM_UP_SHARE = 0.3
"""Of the time limit, at most."""
DIGITS = 9
"""Samples are kept to the nanosecond: results files stay short."""


def timed_calls(call: Callable[[], object], repeats: int, limit_s: float, pause_s: float = 0.0) -> list[float]:
    """Seconds per call, for ``repeats`` calls or as many as fit into ``limit_s``, one at least.

    pause_s: before each call.
    """
    begin = time.perf_counter()
    for _ in range(WARM_UP):
        call()
        if time.perf_counter() > begin + WARM_UP_SHARE * limit_s:
            break
    end = begin + limit_s
    samples: list[float] = []
    while not samples or (len(samples) < repeats and time.perf_counter() < end):
        if pause_s:
            time.sleep(pause_s)
        start = time.perf_counter()
        call()
        samples.append(round(time.perf_counter() - start, DIGITS))
    return samples
