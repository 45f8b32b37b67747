"""Intent coverage: which share of a worker's accesses were to keys that an intent of this rank had announced.

Whether a key is intended lies beside its word, not in it, so to look costs a cache line per key that an access does without.
So one access in SAMPLE_EVERY is looked at, in the order they are made; a prime, for batches are often laid out in rows of
equal length, and each column has its share.

An intent counts from when the engine acted on it to when it is over; one that is signalled and not looked at yet does not.
Called by workers, any number of threads at once; no lock is held.
"""

from libc.stdint cimport int32_t, int64_t
from libcpp.vector cimport vector

from intentpm.foundation.primitives cimport load_relaxed_u16, store_relaxed_u64
from intentpm.runtime._native.batches cimport AccessCounts
from intentpm.runtime._native.table_state cimport TableState

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


cdef inline void sample_coverage(
        const TableState* table, const int64_t* keys, int64_t count, const vector[int32_t]& misses,
        AccessCounts* counts) noexcept nogil:
    """A batch was served, but for ``misses``."""
    cdef int64_t i = counts.next_sample
    cdef int64_t sampled = 0, announced = 0, in_time = 0
    cdef bint intended
    while i < count:
        intended = load_relaxed_u16(&table.records[keys[i]].intent_refs) != 0
        sampled += 1
        announced += intended
        in_time += intended and not _is_missed(misses, i)
        i += SAMPLE_EVERY
    counts.next_sample = i - count
    if sampled:
        store_relaxed_u64(&counts.sampled, counts.sampled + sampled)
        store_relaxed_u64(&counts.announced, counts.announced + announced)
        store_relaxed_u64(&counts.in_time, counts.in_time + in_time)
