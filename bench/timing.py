"""Timing several callables against each other on a machine that other work disturbs."""

import time
from collections.abc import Callable, Mapping

MIN_SAMPLE_S = 200e-6
"""A sample takes at least this long, by repeating the call: the clock and the loop around it do not count then."""
MAX_CALLS = 2_000


def interleaved(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Times each of ``calls`` ``repeats`` times, in turn, so that a disturbance hits them all alike.

    Returns the seconds per call of each repeat.
    """
    loops = {name: _loops(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            samples[name].append(_seconds(call, loops[name]) / loops[name])
    return samples


def _loops(call: Callable[[], object]) -> int:
    call()
    once = max(_seconds(call, 3) / 3, 1e-9)
    return max(1, min(MAX_CALLS, round(MIN_SAMPLE_S / once)))


def _seconds(call: Callable[[], object], loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        call()
    return time.perf_counter() - start
