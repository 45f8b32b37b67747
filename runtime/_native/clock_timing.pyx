"""Timing of clocks; ``clock_timing.pxd`` is the contract."""

from libc.stdint cimport int64_t
from libc.string cimport memset

from intentpm.foundation.primitives cimport store_relaxed_i64

cdef enum:
    LONGEST_NS = 1_000_000_000           # that a clock counts for
    SHORTEST_NS = 1_000                  # of an estimate, where it is multiplied
    PAUSE_CLOCKS = 4                     # a clock counts for so many at most; ...
    WAIT_CLOCKS = 16                     # ... one that waited for keys for so many: it may have paused, too, between two epochs
    CLOCKS_SMOOTHED = 8
    PACE_SMOOTHED = 16


cdef void clock_seen(ClockTimer* timer, int64_t clock, int64_t ahead, int64_t now_ns) noexcept nogil:
    cdef int64_t passed = clock - timer.seen_clock
    if passed <= 0:
        return
    if timer.seen_ns:
        _take(timer, min((now_ns - timer.seen_ns) // passed, <int64_t>LONGEST_NS), passed)
    elif timer.waits and timer.asked_ns:
        timer.pace_ns = min((now_ns - timer.asked_ns) // max(ahead, <int64_t>1), <int64_t>LONGEST_NS)
    timer.waits = False
    timer.seen_clock = clock
    timer.seen_ns = now_ns


cdef void _take(ClockTimer* timer, int64_t took_ns, int64_t passed) noexcept nogil:
    """Each of so many clocks took so long."""
    cdef int64_t alone_ns, counts_ns
    if timer.clock_ns == 0:
        store_relaxed_i64(&timer.clock_ns, took_ns)
        timer.pace_ns = max(timer.pace_ns, took_ns)
        return
    alone_ns = counts_ns = min(took_ns, PAUSE_CLOCKS * max(timer.clock_ns, <int64_t>SHORTEST_NS))
    if timer.waits:
        counts_ns = min(took_ns, WAIT_CLOCKS * max(timer.pace_ns, <int64_t>SHORTEST_NS))
    store_relaxed_i64(&timer.clock_ns, timer.clock_ns + (alone_ns - timer.clock_ns) // CLOCKS_SMOOTHED)
    timer.pace_ns += (counts_ns - timer.pace_ns) * min(passed, <int64_t>PACE_SMOOTHED) // PACE_SMOOTHED


# -- for tests -----------------------------------------------------------------------------------------------------------

cdef class Clocks:
    """A ClockTimer for Python: pure, not thread-safe."""

    cdef ClockTimer timer

    def __cinit__(self):
        memset(&self.timer, 0, sizeof(self.timer))

    @property
    def times_ns(self) -> tuple[int, int]:
        """What the worker takes for a clock, and what its clocks take with waits; ns, 0: not known."""
        return self.timer.clock_ns, self.timer.pace_ns

    def asked_for(self, now_ns: int) -> None:
        """Keys of some clocks are asked for."""
        clocks_asked_for(&self.timer, now_ns)

    def waits(self) -> None:
        """Keys of the clock that is going on were not here when it began."""
        clock_waits(&self.timer)

    def seen(self, clock: int, ahead: int, now_ns: int) -> None:
        """It is looked at ``now_ns``. ahead: of how many clocks at once keys are asked for."""
        clock_seen(&self.timer, clock, ahead, now_ns)
