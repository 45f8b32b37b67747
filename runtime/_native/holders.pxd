"""Which ranks hold replicas of a row owned here, and have news of it to come: a bit per rank and slot.

Guarded by the engine's lock. The two sets of a slot lie side by side. The key's word says whether the first is empty (SHARED):
no need to look at those of most keys.
"""

from libc.stdint cimport int64_t, uint32_t

from intentpm.runtime._native.state cimport WORD_SHARED
from intentpm.runtime._native.table_state cimport RANKS_PER_WORD, RankWord, TableState, slot_of, word_of


cdef inline RankWord* holders_of(const TableState* table, uint32_t key) noexcept nogil:
    return table.holders + 2 * table.holder_words * <size_t>slot_of(table, key)


cdef inline RankWord* news_of(const TableState* table, uint32_t key) noexcept nogil:
    """Subset of the holders that lack the newest row."""
    return holders_of(table, key) + table.holder_words


cdef inline RankWord bit_of(uint32_t rank) noexcept nogil:
    """In word ``rank // RANKS_PER_WORD`` of a set."""
    return <RankWord>(1 << rank % RANKS_PER_WORD)


cdef inline uint32_t bit_number(uint32_t bit) noexcept nogil:
    cdef uint32_t number = 0
    while bit > 1:
        bit >>= 1
        number += 1
    return number


cdef inline bint is_shared(const TableState* table, uint32_t key) noexcept nogil:
    """Whether any rank holds a replica."""
    return (word_of(table, key) & WORD_SHARED) != 0


cdef inline bint others_hold(const TableState* table, uint32_t key, uint32_t holder) noexcept nogil:
    cdef const RankWord* holders
    cdef uint32_t word, bits
    if not is_shared(table, key):
        return False
    holders = holders_of(table, key)
    for word in range(table.holder_words):
        bits = holders[word]
        if holder // RANKS_PER_WORD == word:
            bits &= ~bit_of(holder)
        if bits:
            return True
    return False


cdef inline int64_t only_holder(const TableState* table, uint32_t key) noexcept nogil:
    """The rank that alone holds a replica; -1: none or several."""
    cdef int64_t only = -1
    cdef const RankWord* holders
    cdef uint32_t word
    if not is_shared(table, key):
        return -1
    holders = holders_of(table, key)
    for word in range(table.holder_words):
        if holders[word] == 0:
            continue
        if only >= 0 or holders[word] & (holders[word] - 1):
            return -1
        only = word * RANKS_PER_WORD + bit_number(holders[word])
    return only


cdef inline bint take_news(const TableState* table, uint32_t key, uint32_t holder) noexcept nogil:
    cdef RankWord* news = news_of(table, key) + holder // RANKS_PER_WORD
    if not news[0] & bit_of(holder):
        return False
    news[0] &= <RankWord>~bit_of(holder)
    return True
