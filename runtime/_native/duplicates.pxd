"""Keys that a batch has more than once: their gradients are summed, so that each key is stepped once.

Guarantee: gradients of a key are added in the order of the batch, in the table's dtype, whatever other keys there are.
Called by a worker, which has one of its own; the GIL is not needed.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t
from libcpp.vector cimport vector

from intentpm.runtime._native.table_state cimport TableState


# One place of the hash map from keys to their number among the distinct ones.
cdef struct Seen:
    uint32_t key
    uint32_t number              # NOT_SEEN: the place is free


@cython.final
cdef class Duplicates:
    cdef vector[Seen] places     # scratch, a power of two
    cdef vector[uint32_t] numbers        # of every key of the batch: which distinct one it is, in order of first occurrence

    # How many distinct keys there are. When they are fewer than ``count``, ``numbers`` is filled.
    cdef int64_t count_distinct(self, const int64_t* keys, int64_t count) noexcept nogil
    # After count_distinct: the distinct keys, and the sums of their gradients.
    cdef void sum_gradients(
        self, const TableState* table, const int64_t* keys, const char* gradients, int64_t count, int64_t* distinct,
        char* sums) noexcept nogil
