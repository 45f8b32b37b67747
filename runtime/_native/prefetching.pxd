"""Bringing near what the loops of management over many keys will look at.

A key's entries lie apart from those of the key before it, in memory of their own each: brought near a few keys ahead, they do
not keep the loop waiting. What hangs on an entry is brought near when that has come: entries, then the slot's word, then what
such a slot has. Engine lock held.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t

from intentpm.runtime._native.primitives cimport load_relaxed, load_relaxed_i32, prefetch_read, prefetch_write
from intentpm.runtime._native.state cimport SLOT_OWNED, SLOT_REPLICA, KeyRef, state_of
from intentpm.runtime._native.store cimport (
    PREFETCH_ROWS, TableState, pending_row, prefetch_key, prefetch_row, row_of,
)

cdef enum:                           # keys ahead
    PREFETCH_ENTRIES = 16            # what there is per key
    PREFETCH_BESIDE = PREFETCH_ROWS // 2    # what there is beside a slot's word
    PREFETCH_PENDING = 2


cdef inline void prefetch_count(const TableState* table, uint32_t key) noexcept nogil:
    prefetch_read(&table.slot[key])
    prefetch_write(&table.intent_refs[key])


cdef inline void prefetch_entries(const TableState* table, uint32_t key) noexcept nogil:
    prefetch_count(table, key)
    prefetch_write(&table.flags[key])
    prefetch_read(&table.owner[key])


cdef inline void prefetch_place(const TableState* table, uint32_t key) noexcept nogil:
    prefetch_read(&table.owner[key])
    prefetch_read(&table.epoch[key])


cdef inline void prefetch_beside(const TableState* table, uint32_t key) noexcept nogil:
    """Who holds a row owned here; what is pending of a replica, and which row it is."""
    cdef int32_t slot = table.slot[key]
    cdef uint32_t word
    if slot < 0:
        return
    word = load_relaxed(&table.head[slot].word)
    if state_of(word) == SLOT_OWNED:
        prefetch_write(&table.holders[slot * table.holder_words])
        prefetch_write(&table.news[slot * table.holder_words])
    elif state_of(word) == SLOT_REPLICA:
        prefetch_read(&table.pending_of[slot])
        prefetch_read(&table.seen_version[slot])


cdef inline void prefetch_intended(
        const TableState* table, const uint32_t* keys, uint32_t i, uint32_t count) noexcept nogil:
    """What counting one more intent of a key looks at."""
    cdef uint32_t key
    if i + PREFETCH_ENTRIES < count:
        prefetch_count(table, keys[i + PREFETCH_ENTRIES])
    if i + PREFETCH_ROWS < count:
        key = keys[i + PREFETCH_ROWS]
        if table.slot[key] < 0:
            prefetch_write(&table.flags[key])
            prefetch_place(table, key)


cdef inline void prefetch_released(
        const TableState* table, const uint32_t* keys, uint32_t i, uint32_t count) noexcept nogil:
    """What counting one intent less looks at; only the last one leads to more."""
    cdef uint32_t key
    cdef int32_t slot
    if i + PREFETCH_ENTRIES < count:
        prefetch_count(table, keys[i + PREFETCH_ENTRIES])
    if i + PREFETCH_ROWS < count:
        key = keys[i + PREFETCH_ROWS]
        slot = table.slot[key]
        if slot >= 0 and table.intent_refs[key] == 1:
            prefetch_read(&table.head[slot])
            prefetch_read(&table.holders[slot * table.holder_words])


cdef inline void prefetch_slots(
        const TableState* table, const uint32_t* keys, uint32_t i, uint32_t count) noexcept nogil:
    """What serving a record, taking an answer or a refresh looks at."""
    if i + PREFETCH_ENTRIES < count:
        prefetch_entries(table, keys[i + PREFETCH_ENTRIES])
        prefetch_read(&table.epoch[keys[i + PREFETCH_ENTRIES]])
    if i + PREFETCH_ROWS < count:
        prefetch_key(table, keys[i + PREFETCH_ROWS], True)
    if i + PREFETCH_BESIDE < count:
        prefetch_beside(table, keys[i + PREFETCH_BESIDE])


cdef inline void prefetch_places(const TableState* table, const uint32_t* keys, uint32_t i, uint32_t count) noexcept nogil:
    """What learning of a new owner looks at."""
    if i + PREFETCH_ENTRIES < count:
        prefetch_place(table, keys[i + PREFETCH_ENTRIES])


cdef inline int64_t key_at(const TableState* table, const KeyRef* references, size_t at, size_t count) noexcept nogil:
    """-1: there is none, or it is of another table."""
    return references[at].key if at < count and references[at].table == table.table_id else -1


cdef inline int32_t slot_at(const TableState* table, const KeyRef* references, size_t at, size_t count) noexcept nogil:
    """Of that key; negative: none."""
    cdef int64_t key = key_at(table, references, at, count)
    return table.slot[key] if key >= 0 else -1


cdef inline void prefetch_records(
        const TableState* table, const KeyRef* references, size_t i, size_t count) noexcept nogil:
    """What making a record looks at."""
    cdef int64_t key = key_at(table, references, i + PREFETCH_ENTRIES, count)
    cdef int32_t slot = slot_at(table, references, i + PREFETCH_ROWS, count)
    cdef uint32_t pending
    if key >= 0:
        prefetch_entries(table, <uint32_t>key)
    if slot >= 0:
        prefetch_write(&table.head[slot])
        prefetch_write(&table.pending_of[slot])
    slot = slot_at(table, references, i + PREFETCH_PENDING, count)
    pending = load_relaxed(&table.pending_of[slot]) if slot >= 0 else 0
    if pending:
        prefetch_row(pending_row(table, pending), table.row_bytes, True)


cdef inline void prefetch_news(
        const TableState* table, const KeyRef* references, size_t i, size_t count) noexcept nogil:
    """What making a refresh looks at."""
    cdef int64_t key = key_at(table, references, i + PREFETCH_ENTRIES, count)
    cdef int32_t slot = slot_at(table, references, i + PREFETCH_ROWS, count)
    if key >= 0:
        prefetch_read(&table.slot[key])
        prefetch_place(table, <uint32_t>key)
    if slot >= 0:
        prefetch_write(&table.head[slot])
        prefetch_write(&table.news[slot * table.holder_words])
        prefetch_row(row_of(table, slot), table.row_bytes, False)


cdef inline void prefetch_hints(
        const TableState* table, const KeyRef* references, size_t i, size_t count, bint offers) noexcept nogil:
    """What telling others of moves, or offering keys, looks at."""
    cdef int64_t key = key_at(table, references, i + PREFETCH_ENTRIES, count)
    cdef int32_t slot
    if key >= 0:
        prefetch_place(table, <uint32_t>key)
    if not offers:
        return
    slot = slot_at(table, references, i + PREFETCH_ROWS, count)
    if key >= 0:
        prefetch_count(table, <uint32_t>key)
    if slot >= 0:
        prefetch_read(&table.head[slot])
        prefetch_read(&table.holders[slot * table.holder_words])


cdef inline void prefetch_dirty(const TableState* table, const int32_t* slots, size_t i, size_t count) noexcept nogil:
    """What sorting dirty slots looks at; their words were asked for before."""
    cdef int32_t slot
    cdef uint32_t key
    if i + PREFETCH_ROWS >= count:
        return
    slot = slots[i + PREFETCH_ROWS]
    if state_of(load_relaxed(&table.head[slot].word)) == SLOT_OWNED:
        prefetch_read(&table.holders[slot * table.holder_words])
        prefetch_write(&table.news[slot * table.holder_words])
    else:
        key = <uint32_t>load_relaxed_i32(&table.head[slot].key)
        if key < table.num_keys:
            prefetch_write(&table.flags[key])
            prefetch_read(&table.owner[key])
