"""Intents of one worker: signalled by the worker, acted on by the engine when they are due, forgotten when they are over.

    SIGNALLED (incoming) -> WAITING (heap by start) -due-> ACTIVE (heap by end) -clock reaches end-> over

Cost: signalling copies the keys; an intent that is far ahead costs nothing until it is due (one heap entry).

Guarantees
    * ``signal`` and ``advance`` never wait for the engine.
    * ``advance`` tells the engine only when something is due or over (``wake_clock``).
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t
from libcpp.pair cimport pair
from libcpp.queue cimport priority_queue
from libcpp.vector cimport vector

from intentpm.runtime._native.budget cimport IntentRoom
from intentpm.runtime._native.clock_timing cimport ClockTimer
from intentpm.runtime._native.timing cimport ActionTimer


cdef struct Intent:
    int64_t start
    int64_t end
    int64_t number               # of this worker's intents, in the order they were signalled
    uint32_t table_id
    uint32_t count
    uint32_t* keys               # in the same allocation

cdef enum:
    NEVER = 0x7fffffffffffffff
    MAX_SIGNALLED_KEYS = 1 << 28     # per worker, not over yet: 1 GiB of keys


# What of the engine is needed after a signal or a step of the clock.
cdef enum Attention:
    NO_ATTENTION = 0
    DUE = 1                          # a look, soon
    URGENT = 2                       # a look now: its window starts within a round


# Of a heap: when (negated, for the earliest comes first), number (negated), Intent*. Ties are broken by number, not by
# address: what happens must not depend on where memory was free.
ctypedef pair[pair[int64_t, int64_t], size_t] HeapEntry


@cython.final
cdef class IntentQueue:
    cdef readonly uint32_t worker_id
    cdef int64_t others              # set once: ranks beside this one
    cdef int64_t clock               # atomic: the worker stores release / the engine loads acquire
    cdef int64_t wake_clock          # atomic, written under incoming_lock: at this clock the engine has to look
    cdef int64_t act_before          # guarded by: incoming_lock. Intents that start before this clock are due
    cdef int64_t signalled_keys      # atomic: the worker adds / the engine subtracts
    cdef int64_t keys_signalled      # atomic relaxed: by this worker since start
    cdef int64_t horizon             # guarded by: incoming_lock. Clocks ahead of which intents are due
    cdef int64_t look_by_clock       # as wake_clock: from here on, one of ``incoming`` starts within a round
    cdef int64_t clocks_per_round    # guarded by: incoming_lock. As estimated: one that starts sooner would be late
    cdef IntentRoom* room            # set once; NULL: no limit
    cdef uint32_t incoming_lock      # atomic: guards ``incoming``; held for a few instructions
    cdef vector[Intent*] incoming
    # guarded by: engine lock
    cdef int64_t collected           # intents so far
    cdef int64_t seen_clock          # the clock when the engine began to look
    cdef vector[Intent*] collected_now       # what ``collect`` has just taken
    cdef priority_queue[HeapEntry] waiting   # by start
    cdef priority_queue[HeapEntry] active    # by end
    cdef priority_queue[HeapEntry] starting  # by start: active ones of which a key was not here when they were acted on
    cdef ActionTimer timer
    cdef ClockTimer clocks
    cdef bint immediate
    cdef int64_t round_clock         # clock from which the round is measured; -1: none is being measured
    cdef int64_t looked_clock        # the clock, ...
    cdef int64_t looked_ns           # ... and the time, when it began

    # Worker side, any one thread. False: too many keys are signalled already, or out of memory. ``attention`` is set if the
    # intent needs any. One for which the memory budget has no room is forgotten: its keys stay where they are.
    cdef bint signal(
        self, uint32_t table_id, const int64_t* keys, uint32_t count, int64_t start, int64_t end,
        Attention* attention) noexcept nogil
    # What the new clock needs of the engine.
    cdef Attention advance(self) noexcept nogil

    # Engine side. ``next_due`` and ``next_over`` hand out one intent each until there is none (NULL): a due one becomes
    # active when taken; one that is over must be given to ``forget``.
    cdef void collect(self) noexcept nogil
    cdef Intent* next_due(self) noexcept nogil
    cdef Intent* next_over(self) noexcept nogil
    cdef void forget(self, Intent* intent) noexcept nogil
    # An active intent whose keys were not all here; handed out when its window has started. Ask before next_over.
    cdef void watch_start(self, Intent* intent) noexcept nogil
    cdef Intent* next_started(self, int64_t clock) noexcept nogil
    cdef int64_t now(self) noexcept nogil
    # Says up to where intents are due and when to look again. False: look again now, something happened meanwhile.
    cdef bint publish(self) noexcept nogil
    # Of a worker that is closed: every active intent, and every one that is not due; each must be given to ``forget``.
    cdef Intent* next_active(self) noexcept nogil
    cdef Intent* next_waiting(self) noexcept nogil
    # How many clocks a round takes is measured from the clock at which the engine should have looked (so the time it took
    # to wake counts too) until an answer has come. ``asked``: looking led to something being asked for.
    cdef void look_began(self, int64_t now_ns) noexcept nogil
    cdef void look_ended(self, bint asked) noexcept nogil
    cdef void round_ended(self, int64_t now_ns) noexcept nogil
    # private
    cdef double _clocks_since_look(self, int64_t now_ns) noexcept nogil
    cdef bint _has_room(self, uint32_t count) noexcept nogil
    cdef void _leave_room(self, uint32_t count) noexcept nogil
