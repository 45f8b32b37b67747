"""Keys that a batch has more than once; ``duplicates.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint64_t

from intentpm.foundation.primitives cimport copy_row
from intentpm.runtime._native.distinct cimport DistinctKeys
from intentpm.runtime._native.table_state cimport TableState


cdef inline bint _ascend(const int64_t* keys, int64_t count) noexcept nogil:
    """Whether each key is above the one before it, as those that numpy.unique returns: none comes twice."""
    cdef int64_t i
    for i in range(1, count):
        if keys[i - 1] >= keys[i]:
            return False
    return True


cdef enum:
    BITS_PER_KEY = 128           # of a batch: as much memory as the hash map of DistinctKeys
    KEYS_BETWEEN_LOOKS = 64


cdef class Duplicates:
    def __cinit__(self):
        self.finder = DistinctKeys()

    cdef int64_t count_distinct(self, const int64_t* keys, int64_t count, int64_t num_keys) noexcept nogil:
        if _ascend(keys, count) or num_keys <= BITS_PER_KEY * count and self._differ(keys, count, num_keys):
            return count
        return self.finder.count(keys, count)

    cdef bint _differ(self, const int64_t* keys, int64_t count, int64_t num_keys) noexcept nogil:
        """Whether no key comes twice, by a bit per key of the table: no branch here that random keys would mispredict."""
        cdef int64_t i = 0, end
        cdef uint64_t* seen
        cdef uint64_t bit, twice = 0
        self.seen.assign((num_keys >> 6) + 1, 0)
        seen = self.seen.data()
        while i < count and twice == 0:
            end = min(i + KEYS_BETWEEN_LOOKS, count)
            while i < end:
                bit = <uint64_t>1 << (keys[i] & 63)
                twice |= seen[keys[i] >> 6] & bit
                seen[keys[i] >> 6] |= bit
                i += 1
        return twice == 0

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
