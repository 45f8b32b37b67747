"""Action timing: how many clocks ahead of their start intents must be acted on (arXiv 2206.00470, algorithm 1).

One addition: the horizon is at least twice the longest of the last rounds. Rounds that wait for a busy core are no Poisson
process: one in hundreds takes many times as long as the others, and each makes the keys of many clocks late.

And it is at most as far as copies may be old. What is taken so many clocks ahead lacks what each other rank writes in as many.
So it begins short where many write: the first steps of training are the longest.
Where rounds take many clocks because a link is full, acting earlier brings no key sooner; it saves bytes, for keys that are
held on to are synchronised once for many uses. Where clocks are short that is worth it. Where they are long, training suffers
more than the link gains (docs/management.md): there it is two clocks of four ranks.

For the same reason what is written to copies in use is gathered where rounds wait for a link, for many times as long. Told of
with every round, it would be the more bytes the shorter rounds are, and the horizon, which follows rounds, would stay short.

Pure: no clock, no memory but the struct. One timer per worker; guarded by whatever guards the worker's intents.
"""

from libc.stdint cimport int64_t


cdef struct ActionTimer:
    double clocks_per_round      # estimate, smoothed exponentially
    double last_round_clocks     # clocks the worker passed in the last round
    double longest_round_clocks  # as last_round_clocks, longest_of_last
    double horizon_lambda        # the lambda ``horizon_clocks`` belongs to; negative: none yet
    int64_t horizon_clocks       # cached: a worker of steady speed asks for the same one every round


# others: ranks beside this one.
cdef void timer_init(ActionTimer* timer, int64_t others) noexcept nogil

# A round ended that took so many of the worker's clocks, or a part of one. 0: nobody knows.
cdef void timer_round_passed(ActionTimer* timer, double clocks_passed) noexcept nogil

# The longest of the last rounds, which fades away round by round; one took so long now.
cdef double longest_of_last(double longest, double newest) noexcept nogil

# An intent that starts before the worker's clock plus this is due now: the round after next may be too late for it.
cdef int64_t timer_horizon_clocks(ActionTimer* timer) noexcept nogil

# The most that a horizon may be of a worker whose clocks take so long, with what it waits for keys (0: not known), where so
# many other ranks write.
cdef int64_t farthest_clocks(int64_t clock_ns, int64_t others) noexcept nogil

# How long a worker bears at most that writes to copies in use are gathered before their owners are told. 0: not known.
cdef int64_t bearable_gathering_ns(int64_t clock_ns, int64_t others) noexcept nogil

# How long they are gathered where the longest of the last rounds took so long.
cdef int64_t gathering_ns(int64_t longest_round_ns, int64_t bearable_ns) noexcept nogil

# Smallest k with P(X <= k) >= 0.9999 for X ~ Poisson(lambda); lambda >= 0.
cdef int64_t poisson_quantile_9999(double lam) noexcept nogil
