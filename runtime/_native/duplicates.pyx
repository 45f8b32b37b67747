"""Keys that a batch has more than once; ``duplicates.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from intentpm.foundation.primitives cimport copy_row
from intentpm.runtime._native.table_state cimport TableState

cdef enum:
    NO_KEY = 0xffffffff
    FEWEST_PLACES = 64


cdef inline bint _ascend(const int64_t* keys, int64_t count) noexcept nogil:
    """Whether each key is above the one before it, as those that torch.unique and numpy.unique return: none comes twice."""
    cdef int64_t i
    cdef bint ascend = True
    for i in range(1, count):
        ascend &= keys[i - 1] < keys[i]
    return ascend


cdef inline size_t _scatter(int64_t key, size_t mask) noexcept nogil:
    return (<uint64_t>key * <uint64_t>11400714819323198485 >> 32) & mask


cdef class Duplicates:
    cdef int64_t count_distinct(self, const int64_t* keys, int64_t count) noexcept nogil:
        cdef size_t size = FEWEST_PLACES
        cdef size_t at
        cdef uint32_t* places
        cdef int64_t i, distinct = 0
        if _ascend(keys, count):
            return count
        while size < <size_t>(2 * count):
            size *= 2
        self.firsts.resize(count)
        self.places.resize(size)
        places = self.places.data()
        memset(places, 0xff, size * sizeof(uint32_t))
        for i in range(count):
            at = _scatter(keys[i], size - 1)
            while places[at] != NO_KEY and keys[places[at]] != keys[i]:
                at = (at + 1) & (size - 1)
            if places[at] == NO_KEY:
                places[at] = <uint32_t>i
                distinct += 1
            self.firsts[i] = places[at]
        return distinct

    cdef void sum_gradients(
            self, const TableState* table, const int64_t* keys, const char* gradients, int64_t count, int64_t* distinct,
            char* sums) noexcept nogil:
        cdef uint32_t found = 0
        cdef int64_t i
        self.numbers.resize(count)
        for i in range(count):
            if self.firsts[i] == i:
                self.numbers[i] = found
                distinct[found] = keys[i]
                copy_row(sums + found * table.row_bytes, gradients + i * table.row_bytes, table.row_bytes)
                found += 1
            else:
                table.add(
                    sums + self.numbers[self.firsts[i]] * table.row_bytes, gradients + i * table.row_bytes, table.row_items)
