"""A small filter of keys: it may say that it has a key that was never marked, and never denies one that was.

Guarded by: its worker, of which one thread at a time makes a call.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memset
from libcpp.vector cimport vector


cdef enum:
    FILTER_BITS = 12

cdef struct KeyFilter:
    bint any
    uint8_t marks[1 << FILTER_BITS]


cdef inline uint32_t _place(int64_t key) noexcept nogil:
    return <uint32_t>(<uint32_t>key * <uint32_t>2654435769) >> (32 - FILTER_BITS)


# ``chosen``: places in ``keys``.
cdef inline void mark_keys(KeyFilter* marked, const int64_t* keys, const vector[int32_t]& chosen) noexcept nogil:
    cdef size_t i
    marked.any = True
    for i in range(chosen.size()):
        marked.marks[_place(keys[chosen[i]])] = 1


cdef inline bint may_have(const KeyFilter* marked, const int64_t* keys, int64_t count) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        if marked.marks[_place(keys[i])]:
            return True
    return False


cdef inline void forget_keys(KeyFilter* marked) noexcept nogil:
    memset(marked, 0, sizeof(KeyFilter))
