"""Bringing near what the loops of management over a message's or an intent's keys will look at.

A key's entries lie apart from those of the key before it: brought near a few keys ahead, they do not keep the loop waiting.
Engine lock held.
"""

from libc.stdint cimport int32_t, uint32_t

from intentpm.runtime._native.primitives cimport load_relaxed, prefetch_read, prefetch_write
from intentpm.runtime._native.state cimport SLOT_REPLICA, WORD_SHARED, state_of
from intentpm.runtime._native.store cimport PREFETCH_ROWS, TableState, prefetch_key

cdef enum:
    PREFETCH_ENTRIES = 16            # keys ahead; PREFETCH_ROWS for what hangs on their slots


cdef inline void prefetch_entries(const TableState* table, uint32_t key) noexcept nogil:
    prefetch_read(&table.slot[key])
    prefetch_write(&table.intent_refs[key])
    prefetch_write(&table.flags[key])
    prefetch_read(&table.owner[key])


cdef inline void prefetch_counted(
        const TableState* table, const uint32_t* keys, uint32_t i, uint32_t count) noexcept nogil:
    """What counting an intent of a key looks at."""
    cdef uint32_t key
    cdef int32_t slot
    if i + PREFETCH_ENTRIES < count:
        prefetch_entries(table, keys[i + PREFETCH_ENTRIES])
    if i + PREFETCH_ROWS < count:
        key = keys[i + PREFETCH_ROWS]
        slot = table.slot[key]
        if slot >= 0:
            prefetch_read(&table.head[slot])
        else:
            prefetch_read(&table.epoch[key])


cdef inline void prefetch_slots(
        const TableState* table, const uint32_t* keys, uint32_t i, uint32_t count) noexcept nogil:
    """What serving a record or taking an answer looks at: entries, then word and row, then what else such a slot has."""
    cdef int32_t slot
    cdef uint32_t word
    if i + PREFETCH_ENTRIES < count:
        prefetch_entries(table, keys[i + PREFETCH_ENTRIES])
        prefetch_read(&table.epoch[keys[i + PREFETCH_ENTRIES]])
    if i + PREFETCH_ROWS < count:
        prefetch_key(table, keys[i + PREFETCH_ROWS], True)
    if i + PREFETCH_ROWS // 2 < count:
        slot = table.slot[keys[i + PREFETCH_ROWS // 2]]
        if slot >= 0:
            word = load_relaxed(&table.head[slot].word)
            if word & WORD_SHARED:
                prefetch_write(&table.holders[slot * table.holder_words])
                prefetch_write(&table.news[slot * table.holder_words])
            elif state_of(word) == SLOT_REPLICA:
                prefetch_read(&table.pending_of[slot])
                prefetch_read(&table.seen_version[slot])
