"""Many rows in one call: what of a worker's batch is on this rank is served here, in one loop without the GIL.

Guarantee: a batch looks at every key once; keys that are not here are returned as misses and nothing was done to them.
Called by workers, any number of threads at once. No lock is held, and each row is under its key's word (``rows``).
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libcpp.vector cimport vector

from intentpm.runtime._native.table_state cimport TableState


cdef enum:
    AGES = 14                    # below 1 ms to below 4.1 s, and older


# What a batch did, for statistics. One per worker and table, written by that worker alone, read relaxed by stats().
cdef struct AccessCounts:
    uint64_t local               # keys served from an owned row
    uint64_t replica             # keys served from a replica
    uint64_t remote              # keys that were not here
    # Of those looked at (coverage.pxd), how many were intended here, and how many of these were here.
    uint64_t sampled
    uint64_t announced
    uint64_t in_time
    int64_t next_sample          # accesses until one is looked at; the worker's alone
    # Of these, pulls from replicas, by the age of the row that was read: below 1, 2, 4, ... ms and clocks; the last: any.
    uint64_t ages_ms[AGES]
    uint64_t ages_clocks[AGES]


# First key that is not in [0, num_keys), as its position; -1 when all are good.
cdef int64_t check_keys(const TableState* table, const int64_t* keys, int64_t count) noexcept nogil

# Batches over contiguous rows of row_bytes; positions of keys that are not here are appended to ``misses``.
# ``pull_stored_rows`` and ``set_stored_rows`` copy whole rows, of stored_bytes; ``step_rows`` takes a step of the table's
# optimiser on each.
cdef void pull_rows(
    TableState* table, const int64_t* keys, int64_t count, char* out,
    vector[int32_t]& misses, AccessCounts* counts) noexcept nogil
cdef void pull_stored_rows(
    TableState* table, const int64_t* keys, int64_t count, char* out,
    vector[int32_t]& misses, AccessCounts* counts) noexcept nogil
cdef void push_rows(
    TableState* table, const int64_t* keys, int64_t count, const char* deltas,
    vector[int32_t]& misses, AccessCounts* counts) noexcept nogil
cdef void set_rows(
    TableState* table, const int64_t* keys, int64_t count, const char* values,
    vector[int32_t]& misses, AccessCounts* counts) noexcept nogil
cdef void set_stored_rows(
    TableState* table, const int64_t* keys, int64_t count, const char* rows,
    vector[int32_t]& misses, AccessCounts* counts) noexcept nogil
cdef void step_rows(
    TableState* table, const int64_t* keys, int64_t count, const char* gradients, double lr,
    vector[int32_t]& misses, AccessCounts* counts) noexcept nogil
