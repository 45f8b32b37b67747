"""Keys that a batch has more than once; ``duplicates.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memset

from intentpm.foundation.primitives cimport copy_row
from intentpm.runtime._native.table_state cimport TableState

cdef enum:
    NOT_SEEN = 0xffffffff
    FEWEST_PLACES = 64


cdef inline bint _ascend(const int64_t* keys, int64_t count) noexcept nogil:
    """Whether each key is above the one before it, as those that torch.unique and numpy.unique return: none comes twice."""
    cdef int64_t i
    cdef bint ascend = True
    for i in range(1, count):
        ascend &= keys[i - 1] < keys[i]
    return ascend


cdef inline size_t _scatter(uint32_t key, size_t mask) noexcept nogil:
    return ((key * <uint32_t>2654435769) >> 7) & mask


cdef class Duplicates:
    cdef int64_t count_distinct(self, const int64_t* keys, int64_t count) noexcept nogil:
        cdef size_t size = FEWEST_PLACES
        cdef size_t at
        cdef uint32_t distinct = 0
        cdef int64_t i
        if _ascend(keys, count):
            return count
        while size < <size_t>(2 * count):
            size *= 2
        self.numbers.resize(count)
        self.places.resize(size)
        memset(self.places.data(), 0xff, size * sizeof(Seen))
        for i in range(count):
            at = _scatter(<uint32_t>keys[i], size - 1)
            while self.places[at].number != NOT_SEEN and self.places[at].key != <uint32_t>keys[i]:
                at = (at + 1) & (size - 1)
            if self.places[at].number == NOT_SEEN:
                self.places[at].key = <uint32_t>keys[i]
                self.places[at].number = distinct
                distinct += 1
            self.numbers[i] = self.places[at].number
        return distinct

    cdef void sum_gradients(
            self, const TableState* table, const int64_t* keys, const char* gradients, int64_t count, int64_t* distinct,
            char* sums) noexcept nogil:
        cdef uint32_t found = 0
        cdef int64_t i
        cdef char* sum
        for i in range(count):
            sum = sums + self.numbers[i] * table.row_bytes
            if self.numbers[i] == found:
                distinct[found] = keys[i]
                copy_row(sum, gradients + i * table.row_bytes, table.row_bytes)
                found += 1
            else:
                table.add(sum, gradients + i * table.row_bytes, table.row_items)
