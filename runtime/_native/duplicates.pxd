"""Keys that a batch has more than once: their gradients are summed, so that each key is stepped once.

Guarantee: gradients of a key are added in the order of the batch, in the table's dtype, whatever other keys there are.
Called by a worker, which has one of its own; the GIL is not needed.
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libcpp.vector cimport vector

from intentpm.runtime._native.distinct cimport DistinctKeys
from intentpm.runtime._native.table_state cimport TableState


@cython.final
cdef class Duplicates:
    cdef DistinctKeys finder
    cdef vector[int64_t] places          # scratch: of every key of the batch, which of the distinct ones it is
    cdef vector[uint64_t] seen           # scratch: a bit per key of the table

    cdef bint _differ(self, const int64_t* keys, int64_t count, int64_t num_keys) noexcept nogil
    # How many distinct keys there are. Each is below ``num_keys``.
    cdef int64_t count_distinct(self, const int64_t* keys, int64_t count, int64_t num_keys) noexcept nogil
    # After count_distinct found fewer than there are keys: the distinct ones, and the sums of their gradients.
    cdef void sum_gradients(
        self, const TableState* table, const int64_t* keys, const char* gradients, int64_t count, int64_t* distinct,
        char* sums) noexcept nogil
