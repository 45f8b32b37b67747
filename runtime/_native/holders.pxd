"""Which ranks hold replicas of a row owned here, and have news of it to come: a bit per rank and slot.

Guarded by the engine's lock, as the arrays ``holders`` and ``news`` of a table are.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from intentpm.runtime._native.primitives cimport load_relaxed
from intentpm.runtime._native.state cimport WORD_SHARED
from intentpm.runtime._native.store cimport TableState


cdef inline uint32_t bit_number(uint64_t bit) noexcept nogil:
    cdef uint32_t number = 0
    while bit > 1:
        bit >>= 1
        number += 1
    return number


cdef inline bint is_shared(const TableState* table, int32_t slot) noexcept nogil:
    """Whether any rank holds a replica. The slot's word says so too: no need to look at ``holders`` of most rows."""
    return (load_relaxed(&table.head[slot].word) & WORD_SHARED) != 0


cdef inline bint others_hold(const TableState* table, int32_t slot, uint32_t holder) noexcept nogil:
    cdef size_t word
    cdef uint64_t bits
    if not is_shared(table, slot):
        return False
    for word in range(table.holder_words):
        bits = table.holders[slot * table.holder_words + word]
        if holder >> 6 == word:
            bits &= ~(<uint64_t>1 << (holder & 63))
        if bits:
            return True
    return False


cdef inline int64_t only_holder(const TableState* table, int32_t slot) noexcept nogil:
    """The rank that alone holds a replica; -1: none or several."""
    cdef int64_t only = -1
    cdef size_t word
    cdef uint64_t bits
    if not is_shared(table, slot):
        return -1
    for word in range(table.holder_words):
        bits = table.holders[slot * table.holder_words + word]
        if bits == 0:
            continue
        if only >= 0 or bits & (bits - 1):
            return -1
        only = word * 64 + bit_number(bits)
    return only


cdef inline bint take_news(TableState* table, int32_t slot, uint32_t holder) noexcept nogil:
    cdef size_t word = slot * table.holder_words + (holder >> 6)
    cdef uint64_t bit = <uint64_t>1 << (holder & 63)
    if not table.news[word] & bit:
        return False
    table.news[word] &= ~bit
    return True
