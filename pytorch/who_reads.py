"""WhoReads: whether a loader is read by a thread beside the loop over it, or by the loop itself between two batches.

A thread reads while the loop waits: for other ranks, a device, a disk. A loop that does not wait wants the interpreter
(the GIL) and the processor in turn with it, and both are slower for that: by a fifth, where two ranks share two cores.
What the system tells of a thread does not tell which it is (one that polls a device looks busy), so both are timed.

States
    TRYING    by turns, SEGMENT_BATCHES each, TRIES of each way; the thread is first. Times of the first batches of a
              segment do not count: what the other way has read is used up in them
    CHOSEN    the faster way, the thread unless the loop gains GAIN; after KEEP_BATCHES it is TRYING again

Threads: that of the loop.
"""

import time
from collections.abc import Callable

SEGMENT_BATCHES, SETTLING_BATCHES = 32, 8
TRIES = 2
KEEP_BATCHES = 4096
GAIN = 0.03
OUTLIERS = 0.1
"""Of the longest times, which do not count: what else happens between two batches now and then."""


class WhoReads:
    """Of one IntentLoader, for all its epochs."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last: float | None = None
        self.in_loop = False
        """Who reads now."""
        self._segment = self._at = 0
        self._times: dict[bool, list[float]] = {False: [], True: []}

    def began(self) -> None:
        """A loop over the batches begins: what was before is no time of a batch."""
        self._last = None

    def next_batch(self) -> None:
        """The loop asks for a batch. May change ``in_loop``."""
        now, last = self._clock(), self._last
        self._last = now
        if last is None:
            return
        trying = self._segment < 2 * TRIES
        if trying and self._at >= SETTLING_BATCHES:
            self._times[self.in_loop].append(now - last)
        self._at += 1
        if self._at == (SEGMENT_BATCHES if trying else KEEP_BATCHES):
            self._at = 0
            self._segment = self._segment + 1 if trying else 0
            self._turn()

    def _turn(self) -> None:
        if self._segment < 2 * TRIES:
            self.in_loop = self._segment % 2 == 1
            return
        self.in_loop = _typical(self._times[True]) < (1 - GAIN) * _typical(self._times[False])
        self._times = {False: [], True: []}


def _typical(times: list[float]) -> float:
    """Their mean without OUTLIERS."""
    kept = sorted(times)[: round((1 - OUTLIERS) * len(times))]
    return sum(kept) / len(kept)
