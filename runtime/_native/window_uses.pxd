"""When a key is used next, as far as the windows of this rank's workers say: what a tier keeps, and what it gives up first.

Of the windows that are signalled and not due, the two that start first are kept, and how many there are. Where there were more,
what comes after the second is not known until another is signalled: the key counts as needed soon. The window that becomes due
is taken for the first of them; where several workers run at different speeds it may be the second, which costs time alone.

Guarded by: engine lock; ``active`` and ``queued`` are written under it, and read relaxed by anybody.
"""

from libc.stdint cimport int32_t, uint16_t, uint32_t

from intentpm.foundation.primitives cimport load_relaxed, load_relaxed_u16, store_relaxed, store_relaxed_u16


# All zero: no window.
cdef struct WindowUses:
    uint32_t first               # tick at which the next window starts that is not due; meant if there is one
    uint32_t second
    uint16_t waiting             # windows that are not due
    uint16_t active              # windows that are due and not over
    uint32_t queued              # the tier is about to look whether the device has the row

cdef enum:
    MOST_WINDOWS = 0xffff        # from there on there are that many for good: such a key is always needed
    NO_USE = 0x7fffffff          # ticks from now


cdef inline bint _is_before(uint32_t tick, uint32_t other) noexcept nogil:
    return <int32_t>(tick - other) < 0


cdef inline bint is_in_window(const WindowUses* uses) noexcept nogil:
    return load_relaxed_u16(&uses.active) != 0


cdef inline bint is_queued(const WindowUses* uses) noexcept nogil:
    return load_relaxed(&uses.queued) != 0


cdef inline void set_queued(WindowUses* uses, bint queued) noexcept nogil:
    store_relaxed(&uses.queued, queued)


cdef inline void window_signalled(WindowUses* uses, uint32_t tick) noexcept nogil:
    if uses.waiting == 0:
        uses.first = uses.second = tick
    elif _is_before(tick, uses.first):
        uses.second = uses.first
        uses.first = tick
    elif uses.waiting == 1 or _is_before(tick, uses.second):
        uses.second = tick
    if uses.waiting < MOST_WINDOWS:
        uses.waiting += 1


cdef inline void window_withdrawn(WindowUses* uses) noexcept nogil:
    if uses.waiting < MOST_WINDOWS:
        uses.waiting -= 1


cdef inline void window_due(WindowUses* uses) noexcept nogil:
    """It is taken for the one that starts first."""
    window_withdrawn(uses)
    uses.first = uses.second
    if uses.active < MOST_WINDOWS:
        store_relaxed_u16(&uses.active, uses.active + 1)


cdef inline void window_over(WindowUses* uses) noexcept nogil:
    if uses.active < MOST_WINDOWS:
        store_relaxed_u16(&uses.active, uses.active - 1)


cdef inline int32_t ticks_to_use(const WindowUses* uses, uint32_t now) noexcept nogil:
    """0: now, or at any moment."""
    if uses.active:
        return 0
    return max(<int32_t>(uses.first - now), 0) if uses.waiting else <int32_t>NO_USE
