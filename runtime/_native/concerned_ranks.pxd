"""The ranks that management may have something for: what a step has to look at, in a job of many ranks.

A rank is in the set from when something for it is noted until a step finds nothing left. Guarded by: engine lock.
"""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t
from libcpp.vector cimport vector

cdef extern from *:
    int lowest_bit "__builtin_ctzll"(uint64_t) nogil

cdef enum:
    NOBODY = 0xffffffff


@cython.final
cdef class ConcernedRanks:
    cdef vector[uint64_t] words          # a bit per rank

    cdef inline void add(self, uint32_t rank) noexcept nogil:
        self.words[rank >> 6] |= <uint64_t>1 << (rank & 63)

    cdef inline void remove(self, uint32_t rank) noexcept nogil:
        self.words[rank >> 6] &= ~(<uint64_t>1 << (rank & 63))

    # The first that is in the set and not less; NOBODY: none.
    cdef inline uint32_t next_from(self, uint32_t rank) noexcept nogil:
        cdef size_t at = rank >> 6
        cdef uint64_t word
        if at >= self.words.size():
            return NOBODY
        word = self.words[at] & (~<uint64_t>0 << (rank & 63))
        while word == 0:
            at += 1
            if at == self.words.size():
                return NOBODY
            word = self.words[at]
        return <uint32_t>(64 * at + lowest_bit(word))
