"""Keys that a batch has more than once; ``duplicates.pxd`` is the contract."""

from libc.stdint cimport int64_t

from intentpm.foundation.primitives cimport copy_row
from intentpm.runtime._native.distinct cimport DistinctKeys
from intentpm.runtime._native.table_state cimport TableState


cdef inline bint _ascend(const int64_t* keys, int64_t count) noexcept nogil:
    """Whether each key is above the one before it, as those that numpy.unique returns: none comes twice."""
    cdef int64_t i
    cdef bint ascend = True
    for i in range(1, count):
        ascend &= keys[i - 1] < keys[i]
    return ascend


cdef class Duplicates:
    def __cinit__(self):
        self.finder = DistinctKeys()

    cdef int64_t count_distinct(self, const int64_t* keys, int64_t count) noexcept nogil:
        if _ascend(keys, count):
            return count
        return self.finder.count(keys, count)

    cdef void sum_gradients(
            self, const TableState* table, const int64_t* keys, const char* gradients, int64_t count, int64_t* distinct,
            char* sums) noexcept nogil:
        cdef int64_t found = 0
        cdef int64_t i, place
        self.places.resize(count)
        self.finder.number(keys, count, distinct, self.places.data())
        for i in range(count):
            place = self.places[i]
            if place == found:
                copy_row(sums + found * table.row_bytes, gradients + i * table.row_bytes, table.row_bytes)
                found += 1
            else:
                table.add(sums + place * table.row_bytes, gradients + i * table.row_bytes, table.row_items)
