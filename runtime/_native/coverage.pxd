"""Intent coverage: which share of a worker's accesses were to keys that an intent of this rank had announced.

Whether a key is intended lies beside its word, not in it, so to look costs a cache line per key that an access does without.
So one access in SAMPLE_EVERY is looked at, in the order they are made; a prime, for batches are often laid out in rows of
equal length, and each column has its share.

Of a pull from a replica that is looked at it is noted how old the row was: for how long it had not been known to be the
owner's. If nobody wrote meanwhile it was the owner's all the same, so this is the most it can have been out of date.

An intent counts from when the engine acted on it to when it is over; one that is signalled and not looked at yet does not.
Called by workers, any number of threads at once; no lock is held.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.foundation.primitives cimport load_relaxed, load_relaxed_i64, load_relaxed_u16, store_relaxed_u64
from intentpm.runtime._native.batches cimport AGES, AccessCounts
from intentpm.runtime._native.holders cimport ns_since
from intentpm.runtime._native.state cimport STATE_REPLICA
from intentpm.runtime._native.table_state cimport TableState, key_state, slot_of
from intentpm.transports.base cimport Transport

cdef enum:
    SAMPLE_EVERY = 251


cdef inline bint _is_missed(const vector[int32_t]& misses, int64_t position) noexcept nogil:
    """``misses`` ascend."""
    cdef size_t low = 0, high = misses.size(), middle
    while low < high:
        middle = (low + high) // 2
        if misses[middle] < position:
            low = middle + 1
        else:
            high = middle
    return low < misses.size() and misses[low] == position


cdef inline void _count_age(uint64_t* ages, int64_t age_ns, int64_t unit_ns) noexcept nogil:
    cdef int64_t below_ns = max(unit_ns, <int64_t>1)
    cdef uint32_t i = 0
    while i < AGES - 1 and age_ns >= below_ns:
        below_ns *= 2
        i += 1
    store_relaxed_u64(&ages[i], ages[i] + 1)


cdef inline void sample_coverage(
        const TableState* table, const int64_t* keys, int64_t count, const vector[int32_t]& misses,
        AccessCounts* counts, bint reads, Transport transport, const int64_t* clock_ns) noexcept nogil:
    """A batch was served, but for ``misses``. clock_ns: how long a clock of the worker takes."""
    cdef int64_t i = counts.next_sample
    cdef int64_t sampled = 0, announced = 0, in_time = 0, age_ns
    cdef bint intended
    while i < count:
        intended = load_relaxed_u16(&table.records[keys[i]].intent_refs) != 0
        sampled += 1
        announced += intended
        in_time += intended and not _is_missed(misses, i)
        if reads and key_state(table, keys[i]) == STATE_REPLICA:
            age_ns = ns_since(load_relaxed(&table.replicas[slot_of(table, keys[i])].seen_tick), transport.now_ns())
            _count_age(counts.ages_ms, age_ns, 1_000_000)
            _count_age(counts.ages_clocks, age_ns, load_relaxed_i64(clock_ns))
        i += SAMPLE_EVERY
    counts.next_sample = i - count
    if sampled:
        store_relaxed_u64(&counts.sampled, counts.sampled + sampled)
        store_relaxed_u64(&counts.announced, counts.announced + announced)
        store_relaxed_u64(&counts.in_time, counts.in_time + in_time)
