"""The distinct keys of a batch; ``distinct.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cimport numpy as cnp

import numpy as np

cnp.import_array()

cdef enum:
    NO_PLACE = 0xffffffff
    FEWEST_ENTRIES = 64


cdef inline size_t _scatter(int64_t key, size_t mask) noexcept nogil:
    return (<uint64_t>key * <uint64_t>11400714819323198485 >> 32) & mask


cdef class DistinctKeys:
    cdef int64_t count(self, const int64_t* keys, int64_t count) noexcept nogil:
        cdef size_t size = FEWEST_ENTRIES
        cdef size_t at
        cdef uint32_t* map
        cdef int64_t i, found = 0
        while size < <size_t>(2 * count):
            size *= 2
        self.map.assign(size, NO_PLACE)
        self.firsts.resize(count)
        map = self.map.data()
        for i in range(count):
            at = _scatter(keys[i], size - 1)
            while map[at] != NO_PLACE and keys[map[at]] != keys[i]:
                at = (at + 1) & (size - 1)
            if map[at] == NO_PLACE:
                map[at] = <uint32_t>i
                found += 1
            self.firsts[i] = map[at]
        return found

    cdef void number(self, const int64_t* keys, int64_t count, int64_t* distinct, int64_t* places) noexcept nogil:
        cdef int64_t i, found = 0
        for i in range(count):
            if self.firsts[i] == i:
                distinct[found] = keys[i]
                places[i] = found
                found += 1
            else:
                places[i] = places[self.firsts[i]]


def distinct_keys(keys):
    """``keys``: int64 [K]. Returns the distinct ones, int64 [U], in the order in which they come first, and the place of each
    key among them, int64 [K]: ``distinct[places] == keys``. Any thread.
    """
    cdef cnp.ndarray given = np.ascontiguousarray(keys)
    cdef DistinctKeys finder = DistinctKeys()
    cdef int64_t count, found
    if given.ndim != 1 or given.dtype != np.int64:
        raise TypeError(f"keys are {given.dtype} of {given.ndim} dimensions: pass int64 of one")
    cdef const int64_t* wanted = <const int64_t*>cnp.PyArray_DATA(given)
    count = len(given)
    cdef cnp.ndarray places = np.empty(count, np.int64)
    with nogil:
        found = finder.count(wanted, count)
    cdef cnp.ndarray distinct = np.empty(found, np.int64)
    with nogil:
        finder.number(wanted, count, <int64_t*>cnp.PyArray_DATA(distinct), <int64_t*>cnp.PyArray_DATA(places))
    return distinct, places
