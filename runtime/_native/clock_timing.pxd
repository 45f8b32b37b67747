"""How long a worker's clocks take, as the engine sees them when it looks.

Twice, for a clock that waits for keys says something of the link and nothing of the worker:

    clock_ns       what the worker takes: a clock that took far longer was a pause, or a wait
    pace_ns        what its clocks take with what it waits for keys, over more of them: on a full link that is most of it. It
                   bounds how far ahead keys are taken (timing.pxd), which must not seem short because keys are here

The first clock is no clock of either kind: the worker may have done anything before it. But where it waited for its keys, those
of all clocks that were asked for at once came in that time, and ``pace_ns`` begins with a clock's share of it. So it is known
before the clocks have passed whose keys are here by then.

Pure: no clock, no memory but the struct. One per worker. Guarded by: engine lock, except ``clock_ns``.
"""

from libc.stdint cimport int64_t


cdef struct ClockTimer:
    int64_t clock_ns             # smoothed; 0: not known. Atomic relaxed: the engine stores / the worker loads
    int64_t pace_ns              # smoothed; 0: not known
    int64_t seen_clock           # the clock when it was last looked, ...
    int64_t seen_ns              # ... and the time; 0: no clock has passed
    int64_t asked_ns             # when keys were first asked for; 0: not yet
    bint waits                   # keys of the clock that is going on had not come when it began


# Keys of some clocks are asked for.
cdef inline void clocks_asked_for(ClockTimer* timer, int64_t now_ns) noexcept nogil:
    if timer.asked_ns == 0:
        timer.asked_ns = now_ns

# Keys of the clock that is going on were not here when it began.
cdef inline void clock_waits(ClockTimer* timer) noexcept nogil:
    timer.waits = True

# It is looked at ``now_ns``. ahead: of how many clocks at once keys are asked for.
cdef void clock_seen(ClockTimer* timer, int64_t clock, int64_t ahead, int64_t now_ns) noexcept nogil
