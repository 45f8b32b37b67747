"""Random keys: from a distribution over all keys of a table, or over those that this rank owns now.

Guarantees
    * Draws with a seed repeat exactly, on any machine; those among local keys as far as what is local repeats.
    * A key drawn as local was owned here when it was drawn. It may leave before it is read: the read is then remote (rare:
      sampling.py intends it at once).
    * Cost per key, amortised: O(1), whatever share of the keys is local. No draw depends on luck for its end.
Assumption: one thread at a time uses a Drawer. A Distribution never changes: any number of threads share it.

Why owned, and not replicas as well: a key has one owner, so over all ranks keys come up as the distribution says, as far as
ranks own equally many; and what is written to a sampled replica has to be sent, and makes the row news for all who hold it.

How local keys are drawn. A Drawer keeps an index: the owned keys found in the slots in use, and for distributions other
than the uniform one an alias table over them. A draw picks a position of the index and checks in ``TableState.places``
that the key is still owned here. One that has left is taken out (uniform: the last one of the index moves to its place;
each miss shortens the index, so there are never more misses than keys indexed) or passed over (alias table: counts as
many draws, so that the index is soon built anew). The index is built anew after so many draws that building it costs
less than drawing did. So of the keys local all the time since then, each is drawn with exactly its probability among
them; keys that came later have to wait for the next index. A key that moved to another slot while the index was built
is in it twice: rare, and gone with the next one.
"""

from libc.math cimport exp, log, log1p
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from cpython.pycapsule cimport PyCapsule_GetPointer

from numpy.random cimport bitgen_t

import numpy as np

from intentpm.foundation.primitives cimport load_acquire_i64, load_relaxed_i32
from intentpm.runtime._native.state cimport STATE_OWNED
from intentpm.runtime._native.store cimport Table
from intentpm.runtime._native.table_state cimport TableState, key_state

cdef extern from *:
    """
    /* Multiplies into 128 bits: the upper half is a number below ``range``, the lower half the randomness left. */
    static inline uint64_t split_draw(uint64_t random, uint64_t range, uint64_t* left) {
        unsigned __int128 product = (unsigned __int128)random * range;
        *left = (uint64_t)product;
        return (uint64_t)(product >> 64);
    }
    """
    uint64_t split_draw(uint64_t random, uint64_t range, uint64_t* left) noexcept nogil

cdef enum Kind:
    UNIFORM
    LOG_UNIFORM
    WEIGHTED

cdef enum:
    EMPTY = -1                   # in the set of keys seen
    TRIES_PER_KEY = 8            # draws without replacement, before what is missing is drawn in one sweep
    TRIES_AT_LEAST = 64
    DRAWS_PER_MISS = 16          # what a miss of the alias table counts
    SLOTS_PER_DRAW = 8           # measured: reading a slot in sequence costs about an eighth of a draw

cdef struct AliasTable:
    const uint32_t* threshold    # of 2^32: below it the position itself, else its alias
    const int32_t* alias


cdef inline int64_t below(bitgen_t* bits, int64_t count) noexcept nogil:
    """Uniform in [0, count). The bias, at most count / 2^64, cannot be measured."""
    cdef uint64_t left
    return <int64_t>split_draw(bits.next_uint64(bits.state), <uint64_t>count, &left)


cdef inline int64_t draw_alias(bitgen_t* bits, AliasTable table, int64_t count) noexcept nogil:
    # One random number does for both: the position, and of the bits it does not need the coin.
    cdef uint64_t left
    cdef int64_t position = <int64_t>split_draw(bits.next_uint64(bits.state), <uint64_t>count, &left)
    return position if (left >> 32) < table.threshold[position] else table.alias[position]


cdef double build_alias(
        const double* weights, int64_t count, uint32_t* threshold, int32_t* alias, int32_t* order) noexcept nogil:
    """Vose's method. ``order``: scratch, count. Returns the sum of the weights, > 0 for a table that can be used."""
    cdef double total = 0, share
    cdef int64_t i, heaviest = 0, light = 0, heavy = count
    cdef vector[double] shares
    for i in range(count):
        total += weights[i]
        if weights[i] > weights[heaviest]:
            heaviest = i
    if not total > 0:
        return 0
    shares.resize(count)
    for i in range(count):           # light ones from the left, heavy ones from the right
        shares[i] = weights[i] / total * count
        if shares[i] < 1:
            order[light] = <int32_t>i
            light += 1
        else:
            heavy -= 1
            order[heavy] = <int32_t>i
    while light > 0 and heavy < count:
        light -= 1
        i = order[light]
        share = shares[i]
        threshold[i] = <uint32_t>(share * 4294967296.0)
        alias[i] = order[heavy]
        shares[order[heavy]] -= 1 - share
        if shares[order[heavy]] < 1:
            order[light] = order[heavy]
            light += 1
            heavy += 1
    # What rounding left over has a share of 1, but a key of weight 0 must never be drawn.
    for i in range(light):
        _close(order[i], heaviest, weights, threshold, alias)
    for i in range(heavy, count):
        _close(order[i], heaviest, weights, threshold, alias)
    return total


cdef inline void _close(
        int32_t i, int64_t heaviest, const double* weights, uint32_t* threshold, int32_t* alias) noexcept nogil:
    threshold[i] = 0xFFFFFFFF if weights[i] > 0 else 0
    alias[i] = i if weights[i] > 0 else <int32_t>heaviest


cdef class Distribution:
    """A probability for each key of a table. Immutable.

    Parameters
        num_keys: 1 to 2^31 - 1.
        kind: "uniform"; "log-uniform", P(key) = log((key + 2) / (key + 1)) / log(num_keys + 1), for keys sorted by
            falling frequency; "weighted", P(key) = weights[key] / sum.
        weights: float64 [num_keys], finite, >= 0, not all 0; for "weighted" only. Checked by the caller.
    Memory: none, or for "weighted" 16 bytes per key.
    """

    cdef Kind kind
    cdef readonly int64_t num_keys
    cdef double log_range
    cdef double total
    cdef AliasTable table
    cdef const double* weight_of
    cdef object kept             # the arrays the pointers point into
    cdef readonly int64_t possible_keys      # with a probability above 0

    def __init__(self, num_keys: int, kind: str, weights=None):
        self.num_keys = num_keys
        self.possible_keys = num_keys
        self.kind = {"uniform": UNIFORM, "log-uniform": LOG_UNIFORM, "weighted": WEIGHTED}[kind]
        self.log_range = log(<double>num_keys + 1)
        self.total = 1
        if self.kind == WEIGHTED:
            self._weigh(weights)

    cdef _weigh(self, object weights):
        weights = np.array(weights, dtype=np.float64)
        threshold = np.empty(self.num_keys, dtype=np.uint32)
        alias = np.empty(self.num_keys, dtype=np.int32)
        order = np.empty(self.num_keys, dtype=np.int32)
        cdef const double[::1] weight_view = weights
        cdef uint32_t[::1] threshold_view = threshold
        cdef int32_t[::1] alias_view = alias
        cdef int32_t[::1] order_view = order
        with nogil:
            self.total = build_alias(
                &weight_view[0], self.num_keys, &threshold_view[0], &alias_view[0], &order_view[0])
        self.weight_of = &weight_view[0]
        self.table.threshold = &threshold_view[0]
        self.table.alias = &alias_view[0]
        self.kept = (weights, threshold, alias)
        self.possible_keys = int(np.count_nonzero(weights))

    cdef inline int64_t draw(self, bitgen_t* bits) noexcept nogil:
        cdef int64_t key
        if self.kind == UNIFORM:
            return below(bits, self.num_keys)
        if self.kind == WEIGHTED:
            return draw_alias(bits, self.table, self.num_keys)
        key = <int64_t>exp(bits.next_double(bits.state) * self.log_range) - 1
        return min(max(key, 0), self.num_keys - 1)       # rounding may step outside

    cdef inline double probability(self, int64_t key) noexcept nogil:
        if self.kind == UNIFORM:
            return 1.0 / self.num_keys
        if self.kind == WEIGHTED:
            return self.weight_of[key] / self.total
        return log1p(1.0 / (key + 1)) / self.log_range

    def probabilities(self, const int64_t[::1] keys) -> np.ndarray:
        """The probabilities of ``keys`` (int64 [K], in range): float64 [K]."""
        result = np.empty(keys.shape[0])
        cdef double[::1] view = result
        cdef int64_t i
        for i in range(keys.shape[0]):
            view[i] = self.probability(keys[i])
        return result


cdef class Drawer:
    """Draws keys of one table.

    Parameters
        table: whose keys; draws among local keys look at it.
        distribution: over the table's keys.
        bit_generator: numpy.random.BitGenerator, used by this object alone.
        min_local_keys: with fewer local keys than this, ``draw_local`` draws from the distribution instead.
    """

    cdef Distribution distribution
    cdef readonly Table table
    cdef object bit_generator
    cdef bitgen_t* bits
    cdef int64_t min_local_keys
    cdef vector[int32_t] seen            # keys drawn: open addressing, EMPTY or a key
    cdef vector[int32_t] local_keys      # the index
    cdef vector[uint32_t] threshold      # alias table over the index; empty for the uniform distribution
    cdef vector[int32_t] alias
    cdef int64_t indexed                 # length of the index when it was built
    cdef int64_t worked                  # draws since, misses included
    cdef int64_t rebuild_after
    cdef double local_probability        # of all keys of the index together
    cdef readonly int64_t drawn          # keys drawn, by either call
    cdef readonly int64_t drawn_local    # of these, from the index
    cdef readonly int64_t indexes_built
    cdef double departure_sum

    def __init__(
            self, Table table not None, Distribution distribution not None, bit_generator, min_local_keys: int = 0):
        self.table = table
        self.distribution = distribution
        self.bit_generator = bit_generator
        self.bits = <bitgen_t*>PyCapsule_GetPointer(bit_generator.capsule, "BitGenerator")
        self.min_local_keys = min_local_keys

    @property
    def departure(self) -> float:
        """Mean over all draws so far of the total variation distance between the distribution drawn from and the one
        asked for: 0 (the same) to 1. For draws among local keys it is the probability of all other keys."""
        return self.departure_sum / self.drawn if self.drawn else 0.0

    @property
    def local_keys_now(self) -> int:
        """Length of the index of local keys; 0 before the first draw from it."""
        return self.local_keys.size()

    def draw(self, count: int, distinct: bool = False) -> np.ndarray:
        """``count`` keys from the distribution, int64 [count].

        distinct: each drawn from the keys not drawn before it; needs ``count`` <= ``possible_keys``.
        """
        keys = np.empty(count, dtype=np.int64)
        self._forget_seen(count if distinct else 0)
        self._draw_rest(keys, 0, distinct)
        return keys

    def draw_local(self, count: int, distinct: bool = False) -> np.ndarray:
        """``count`` keys, int64 [count], from the distribution conditional on the keys that are owned here now.

        Where these are fewer than ``min_local_keys``, or too few to be distinct, (some) keys are drawn as ``draw`` does.
        """
        keys = np.empty(count, dtype=np.int64)
        cdef int64_t[::1] out = keys
        cdef bint no_repeats = distinct
        cdef int64_t filled
        self._forget_seen(count if distinct else 0)
        with nogil:
            filled = self._fill_local(out, no_repeats)
        self.drawn_local += filled
        self.departure_sum += filled * (1 - self.local_probability)
        self.drawn += filled
        self._draw_rest(keys, filled, distinct)
        return keys

    cdef _draw_rest(self, object keys, int64_t filled, bint distinct):
        cdef int64_t[::1] out = keys
        self.drawn += out.shape[0] - filled
        with nogil:
            filled = self._fill(out, filled, distinct)
        if filled < out.shape[0]:
            keys[filled:] = self._sweep(keys[:filled], out.shape[0] - filled)

    cdef int64_t _fill(self, int64_t[::1] out, int64_t at, bint distinct) noexcept nogil:
        """Fills ``out`` from position ``at`` on; returns how far it came."""
        cdef int64_t tries = TRIES_PER_KEY * out.shape[0] + TRIES_AT_LEAST
        cdef int64_t key
        while at < out.shape[0] and tries > 0:
            tries -= distinct
            key = self.distribution.draw(self.bits)
            if not distinct or self._first_time(key):
                out[at] = key
                at += 1
        return at

    cdef _sweep(self, object keys, int64_t count):
        """``count`` more keys, none of ``keys``, one after the other: exponential times with the weights as rates come in
        just the order of such draws (Efraimidis and Spirakis 2006)."""
        everything = np.arange(self.distribution.num_keys)
        rates = self.distribution.probabilities(everything)
        rates[keys] = 0
        candidates = np.flatnonzero(rates)
        times = np.random.Generator(self.bit_generator).exponential(size=len(candidates)) / rates[candidates]
        first = np.argpartition(times, count - 1)[:count]
        return candidates[first[np.argsort(times[first])]]

    # -- keys seen ---------------------------------------------------------------------------------------------------

    cdef _forget_seen(self, int64_t count):
        cdef size_t size = 16
        if count == 0:
            return
        while size < 2 * <size_t>count:
            size *= 2
        self.seen.assign(size, EMPTY)

    cdef inline bint _first_time(self, int64_t key) noexcept nogil:
        cdef size_t mask = self.seen.size() - 1
        cdef size_t place = <size_t>(<uint32_t>key * <uint32_t>2654435769) & mask
        while self.seen[place] != EMPTY:
            if self.seen[place] == key:
                return False
            place = (place + 1) & mask
        self.seen[place] = <int32_t>key
        return True

    # -- local keys --------------------------------------------------------------------------------------------------

    cdef int64_t _fill_local(self, int64_t[::1] out, bint distinct) noexcept nogil:
        """Fills ``out`` from the start; returns how far it came."""
        cdef int64_t needed = max(self.min_local_keys, 2 * out.shape[0] if distinct else 1)
        cdef int64_t tries = TRIES_PER_KEY * out.shape[0] + TRIES_AT_LEAST
        cdef int64_t at = 0, position, key
        cdef TableState* state = self.table.state
        while at < out.shape[0] and tries > 0:
            if self.worked >= self.rebuild_after:
                self._build_index()
            if <int64_t>self.local_keys.size() < needed or self.local_probability <= 0:
                self.worked += out.shape[0] - at     # so that the index is not built for each of many small samples
                return at
            position = self._draw_position()
            key = self.local_keys[position]
            self.worked += 1
            if key_state(state, key) != STATE_OWNED:
                self._miss(position)
                tries -= not self.alias.empty()      # without one, misses end by themselves
            elif not distinct or self._first_time(key):
                out[at] = key
                at += 1
            else:
                tries -= 1
        return at

    cdef inline int64_t _draw_position(self) noexcept nogil:
        cdef AliasTable table
        if self.alias.empty():
            return below(self.bits, <int64_t>self.local_keys.size())
        table.threshold = self.threshold.data()
        table.alias = self.alias.data()
        return draw_alias(self.bits, table, <int64_t>self.local_keys.size())

    cdef void _miss(self, int64_t position) noexcept nogil:
        if not self.alias.empty():
            self.worked += DRAWS_PER_MISS
            return
        self.local_keys[position] = self.local_keys.back()
        self.local_keys.pop_back()
        self.local_probability -= 1.0 / self.distribution.num_keys
        if 2 * <int64_t>self.local_keys.size() < self.indexed:
            self.worked = self.rebuild_after

    cdef void _build_index(self) noexcept nogil:
        cdef TableState* state = self.table.state
        # A slot bound for the first time meanwhile is missed, as any that is bound after the scan.
        cdef int64_t slots = load_acquire_i64(&state.slots_touched)
        cdef int64_t slot, key
        self.local_keys.clear()
        for slot in range(slots):
            key = load_relaxed_i32(&state.key_of[slot])
            if key >= 0 and key_state(state, key) == STATE_OWNED:
                self.local_keys.push_back(<int32_t>key)
        self.indexed = <int64_t>self.local_keys.size()
        self.worked = 0
        self.indexes_built += 1
        self.rebuild_after = max(slots // SLOTS_PER_DRAW, <int64_t>TRIES_AT_LEAST)
        if self.distribution.kind == UNIFORM:
            self.local_probability = <double>self.indexed / self.distribution.num_keys
        else:
            self._weigh_index()

    cdef void _weigh_index(self) noexcept nogil:
        cdef vector[double] weights
        cdef vector[int32_t] order
        cdef int64_t i
        self.rebuild_after = max(self.indexed, <int64_t>TRIES_AT_LEAST)
        weights.resize(self.indexed)
        order.resize(self.indexed)
        self.threshold.resize(self.indexed)
        self.alias.resize(self.indexed)
        for i in range(self.indexed):
            weights[i] = self.distribution.probability(self.local_keys[i])
        self.local_probability = build_alias(
            weights.data(), self.indexed, self.threshold.data(), self.alias.data(), order.data())
