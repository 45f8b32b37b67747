"""Action timing; ``timing.pxd`` is the contract."""

from libc.math cimport M_PI, ceil, exp, sqrt
from libc.stdint cimport int64_t

cdef:
    double SMOOTHING = 0.1                  # weight of the newest round in the estimate
    double FORGETTING = 0.01                # of the longest round, per round
    double INITIAL_CLOCKS_PER_ROUND = 4.0   # with one other rank
    double ROUNDS_AHEAD = 2.0               # an action that misses this round is done by the end of the next one
    double QUANTILE = 0.9999
    double QUANTILE_NORMAL = 3.719016485455709   # of the standard normal distribution
    double SUM_FROM_ZERO_BELOW = 500.0      # exp(-lambda) must not underflow, and the sum stays short
    double EXPAND_FROM = 2.0e6              # see _expansion_quantile
    int64_t MAX_CLOCKS = (<int64_t>1) << 62
    int64_t LEAST_AHEAD = 2                 # the clock in which it is looked may be all but over
    double LONG_CLOCK_NS = 50.0e6           # where clocks take so long, ...
    double LACKED_CLOCKS = 6.0              # ... a copy may lack so many, of all other ranks together, ...
    double FEW_OTHERS = 3.0                 # ... and more of fewer: what those wrote lacked fewer, too
    int64_t SLOW_ROUND_NS = 4_000_000       # what a round takes more than that, it waits for a link
    int64_t GATHERED_WAITS = 24             # of the longest round: so long writes are gathered, ...
    double PART_OF_FARTHEST = 0.25          # ... but no longer than this part of how old a copy may be when it comes, ...
    double LONGEST_GATHERING_NS = 500.0e6   # ... nor than this


cdef void timer_init(ActionTimer* timer, int64_t others) noexcept nogil:
    timer.clocks_per_round = INITIAL_CLOCKS_PER_ROUND / max(others * others, <int64_t>1)
    timer.last_round_clocks = timer.longest_round_clocks = 0
    timer.horizon_lambda = -1
    timer.horizon_clocks = 0


cdef void timer_round_passed(ActionTimer* timer, double clocks_passed) noexcept nogil:
    timer.last_round_clocks = clocks_passed
    timer.longest_round_clocks = longest_of_last(timer.longest_round_clocks, clocks_passed)
    # A worker of which no clock has been seen yet tells nothing of its speed: an estimate that fell to 0 meanwhile would make
    # it late when it goes on.
    if clocks_passed > 0:
        timer.clocks_per_round += SMOOTHING * (timer.last_round_clocks - timer.clocks_per_round)


cdef double longest_of_last(double longest, double newest) noexcept nogil:
    return max(newest, (1 - FORGETTING) * longest)


cdef int64_t timer_horizon_clocks(ActionTimer* timer) noexcept nogil:
    cdef double lam = ROUNDS_AHEAD * max(timer.clocks_per_round, timer.last_round_clocks)
    if lam != timer.horizon_lambda:
        timer.horizon_lambda = lam
        timer.horizon_clocks = poisson_quantile_9999(lam)
    return max(
        timer.horizon_clocks, LEAST_AHEAD, <int64_t>min(ROUNDS_AHEAD * timer.longest_round_clocks, <double>MAX_CLOCKS))


cdef int64_t farthest_clocks(int64_t clock_ns, int64_t others) noexcept nogil:
    cdef double shorter = LONG_CLOCK_NS / max(clock_ns, <int64_t>1)
    cdef double fewer = FEW_OTHERS / max(others, <int64_t>1)
    if clock_ns <= 0 or others <= 0:
        return MAX_CLOCKS
    return max(LEAST_AHEAD, <int64_t>(LACKED_CLOCKS * shorter * shorter / others * max(1.0, fewer * fewer)))


cdef int64_t bearable_gathering_ns(int64_t clock_ns, int64_t others) noexcept nogil:
    if clock_ns <= 0 or others <= 0:
        return 0
    return <int64_t>min(PART_OF_FARTHEST * clock_ns * farthest_clocks(clock_ns, others), LONGEST_GATHERING_NS)


cdef int64_t gathering_ns(int64_t longest_round_ns, int64_t bearable_ns) noexcept nogil:
    return min(GATHERED_WAITS * max(<int64_t>0, longest_round_ns - SLOW_ROUND_NS), bearable_ns)


# -- Poisson quantile --------------------------------------------------------------------------------------------------

cdef int64_t poisson_quantile_9999(double lam) noexcept nogil:
    if lam < SUM_FROM_ZERO_BELOW:
        return _summed_quantile(lam)
    if lam < EXPAND_FROM:
        return _searched_quantile(lam)
    return <int64_t>min(ceil(_expansion_quantile(lam)), <double>MAX_CLOCKS)


cdef int64_t _summed_quantile(double lam) noexcept nogil:
    """By the definition: adds up probabilities from k = 0."""
    cdef int64_t k = 0
    cdef double probability = exp(-lam)
    cdef double total = probability
    while total < QUANTILE:
        k += 1
        probability *= lam / k
        total += probability
    return k


cdef int64_t _searched_quantile(double lam) noexcept nogil:
    """Starts near the quantile and walks to it by the recurrence of the probabilities; a step or two."""
    cdef double allowed = 1.0 - QUANTILE
    cdef int64_t k = <int64_t>ceil(_expansion_quantile(lam))
    cdef double probability = _probability(k, lam)
    cdef double above = _probability_above(k, probability, lam)
    while above > allowed:
        k += 1
        probability *= lam / k
        above -= probability
    while above + probability <= allowed:
        above += probability
        probability *= k / lam
        k -= 1
    return k


cdef double _expansion_quantile(double lam) noexcept nogil:
    """Cornish-Fisher expansion about the normal distribution, less the half of the continuity correction.

    The first term left out is of order 1 / lambda: above ``EXPAND_FROM`` rounding up is wrong, by 1, for less than one
    lambda in a million.
    """
    cdef double z = QUANTILE_NORMAL
    return lam + z * sqrt(lam) + (z * z - 1) / 6 + (z - z * z * z) / (72 * sqrt(lam)) - 0.5


cdef double _probability(int64_t k, double lam) noexcept nogil:
    """P(X = k) for k near lambda, both large, to almost full precision (the saddle-point form of C. Loader, 2000).

    The deviance k log(k / lambda) + lambda - k is summed as a series: written out it would cancel to nothing.
    """
    cdef double ratio = (k - lam) / (k + lam)
    cdef double power = 2 * k * ratio
    cdef double deviance = (k - lam) * ratio
    cdef double stirling = (1 - 1 / (30.0 * k * k)) / (12.0 * k)
    cdef int n
    for n in range(3, 41, 2):
        power *= ratio * ratio
        deviance += power / n
    return exp(-deviance - stirling) / sqrt(2 * M_PI * k)


cdef double _probability_above(int64_t k, double probability, double lam) noexcept nogil:
    """P(X > k), summed from P(X = k) upwards until terms no longer count; for k > lambda."""
    cdef double total = 0
    while probability > 1e-17 * total:
        k += 1
        probability *= lam / k
        total += probability
    return total


# -- for tests and simulations -----------------------------------------------------------------------------------------

def poisson_quantile(double lam) -> int:
    """Smallest k with P(X <= k) >= 0.9999 for X ~ Poisson(``lam``). Raises ValueError unless ``lam`` >= 0."""
    if not lam >= 0:
        raise ValueError(f"lambda={lam}: a Poisson distribution needs one >= 0")
    return poisson_quantile_9999(lam)


def farthest(clock_ns: int, others: int) -> int:
    """The most that a horizon may be, clocks, of a worker whose clocks take so long (0: not known), beside so many ranks."""
    return farthest_clocks(clock_ns, others)


def gathering(longest_round_ns: int, clock_ns: int, others: int) -> int:
    """How long writes to copies in use are gathered, ns: ``timing.pxd``."""
    return gathering_ns(longest_round_ns, bearable_gathering_ns(clock_ns, others))


cdef class Timer:
    """An ActionTimer for Python: pure, not thread-safe. others: ranks beside this one."""

    cdef ActionTimer timer

    def __cinit__(self, others: int = 1):
        timer_init(&self.timer, others)

    @property
    def clocks_per_round(self) -> float:
        """The smoothed estimate."""
        return self.timer.clocks_per_round

    def round_passed(self, clocks_passed: float) -> None:
        """A round ended that took so many of the worker's clocks, or a part of one."""
        timer_round_passed(&self.timer, clocks_passed)

    def horizon_clocks(self) -> int:
        """How many clocks ahead of their start intents are due."""
        return timer_horizon_clocks(&self.timer)
