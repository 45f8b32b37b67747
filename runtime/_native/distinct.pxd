"""The distinct keys of a batch, in the order in which they come first, and which of them each key is.

By a hash map: a sort of 50,000 keys takes ten times as long. One thread at a time; the GIL is not needed.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t
from libcpp.vector cimport vector


@cython.final
cdef class DistinctKeys:
    # Scratch. ``map`` is a hash map, of a power of two: where in the batch a key stands first, NO_PLACE where there is none.
    cdef vector[uint32_t] map
    cdef vector[uint32_t] firsts         # of every key of the batch

    # How many there are.
    cdef int64_t count(self, const int64_t* keys, int64_t count) noexcept nogil
    # After ``count`` of the same batch: ``distinct`` has room for so many; ``places[i]`` is where ``keys[i]`` stands in it.
    cdef void number(self, const int64_t* keys, int64_t count, int64_t* distinct, int64_t* places) noexcept nogil
