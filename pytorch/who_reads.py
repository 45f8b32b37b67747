"""WhoReads: whether a loader is read by a thread beside the loop over it, or by the loop itself between two batches.

A thread reads while the loop waits: for other ranks, a device, a disk. A loop that does not wait wants the interpreter
(the GIL) and the processor in turn with it, and both are slower for that: by a fifth, where two ranks share two cores.
What the system tells of a thread does not tell which it is (one that polls a device looks busy), so both are timed.

States
    TRYING    by turns, one segment each, TRIES of each way; the thread is first. A segment is COUNTED_BATCHES long.
              Before it, and where an epoch begins, SETTLING_BATCHES do not count: what the other way has read is used
              up in them, or what is read ahead is filled
    CHOSEN    the faster way, the thread unless the loop gains GAIN; after KEEP_BATCHES it is TRYING again

A way takes the median of its segments, whole: a thread that wants the interpreter gets it for 5 ms at once, so that few
batches bear what it costs all of them. Where it reads less than is used, what it has read counts. At the end of an
epoch, where nothing is left to be read, nothing counts; in epochs of few batches the thread reads.

Threads: that of the loop.
"""

import time
from collections.abc import Callable
from statistics import median

COUNTED_BATCHES, SETTLING_BATCHES = 56, 8
TRIES = 3
KEEP_BATCHES = 4096
GAIN = 0.03


class WhoReads:
    """Of one IntentLoader, for all its epochs."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last: float | None = None
        self.in_loop = False
        """Who reads now."""
        self._read = 0
        self._kept_for = 0
        self._times: dict[bool, list[float]] = {False: [], True: []}
        """Seconds a batch, of each segment; empty in CHOSEN."""
        self._begin_segment()

    def began(self) -> None:
        """A loop over the batches begins: what was before is no time of a batch."""
        self._last = None
        self._to_settle = SETTLING_BATCHES

    def read(self, batches: int) -> None:
        """So many were read since this was last told."""
        self._read += batches

    def next_batch(self) -> None:
        """The loop asks for a batch, and more are to be read. May change ``in_loop``."""
        now, last = self._clock(), self._last
        self._last = now
        read, self._read = self._read, 0
        if last is None:
            return
        if self._kept_for > 0:
            self._kept_for -= 1
            self.in_loop &= self._kept_for > 0  # the thread is tried first
        elif self._to_settle > 0:
            self._to_settle -= 1
        else:
            self._count(now - last, read)

    def _begin_segment(self) -> None:
        self._seconds, self._used_here, self._read_here = 0.0, 0, 0
        self._to_settle = SETTLING_BATCHES

    def _count(self, seconds: float, read: int) -> None:
        self._seconds += seconds
        self._used_here += 1
        self._read_here += read
        if self._used_here == COUNTED_BATCHES:
            batches = self._used_here if self.in_loop else max(1, min(self._used_here, self._read_here))
            self._times[self.in_loop].append(self._seconds / batches)
            self._turn()

    def _turn(self) -> None:
        self._begin_segment()
        if len(self._times[True]) < TRIES:
            self.in_loop = not self.in_loop
            return
        self.in_loop = median(self._times[True]) < (1 - GAIN) * median(self._times[False])
        self._times = {False: [], True: []}
        self._kept_for = KEEP_BATCHES
