"""Bringing near what the loops of management over many keys will look at.

A key's entries lie apart from those of the key before it: brought near a few keys ahead, they do not keep the loop waiting.
What hangs on an entry is brought near when that has come: entries, then what the slot has. Engine lock held.
"""

from libc.stdint cimport int64_t, uint32_t

from intentpm.foundation.primitives cimport load_relaxed, prefetch_read, prefetch_write
from intentpm.runtime._native.holders cimport is_shared
from intentpm.runtime._native.replicas cimport pending_row
from intentpm.runtime._native.row_pool cimport pool_row
from intentpm.runtime._native.state cimport STATE_OWNED, STATE_REPLICA, KeyRef
from intentpm.runtime._native.table_state cimport (
    PREFETCH_ROWS, ReplicaRecord, TableState, is_here, key_state, prefetch_key, prefetch_row, slot_of,
)

cdef enum:                           # keys ahead
    PREFETCH_ENTRIES = 16            # what there is per key
    PREFETCH_BESIDE = PREFETCH_ROWS  # what there is of its slot
    PREFETCH_PENDING = 2             # what hangs on that


cdef inline int64_t counted_next(
        const TableState* table, const uint32_t* keys, uint32_t i, uint32_t count) noexcept nogil:
    """What counting intents of a key looks at first. Returns the key for which that has come; -1: there is none."""
    if i + PREFETCH_ENTRIES < count:
        prefetch_read(&table.places[keys[i + PREFETCH_ENTRIES]])
        prefetch_write(&table.records[keys[i + PREFETCH_ENTRIES]])
    return <int64_t>keys[i + PREFETCH_ROWS] if i + PREFETCH_ROWS < count else -1


cdef inline void prefetch_entries(const TableState* table, uint32_t key) noexcept nogil:
    prefetch_write(&table.places[key])
    prefetch_write(&table.records[key])
    prefetch_write(&table.flags[key])


cdef inline void prefetch_beside(const TableState* table, uint32_t key) noexcept nogil:
    """Who holds a row owned here, or what is written when it leaves; what is pending of a replica, and which row it is."""
    if key_state(table, key) == STATE_OWNED:
        prefetch_write(&table.holdings_at[slot_of(table, key)])
        prefetch_write(&table.key_of[slot_of(table, key)])
    elif key_state(table, key) == STATE_REPLICA:
        prefetch_write(&table.replicas[slot_of(table, key)])


cdef inline void prefetch_intended(
        const TableState* table, const uint32_t* keys, uint32_t i, uint32_t count) noexcept nogil:
    """What counting one more intent of a key looks at."""
    cdef int64_t key = counted_next(table, keys, i, count)
    if key >= 0 and not is_here(table, key):
        prefetch_write(&table.flags[key])


cdef inline void prefetch_released(
        const TableState* table, const uint32_t* keys, uint32_t i, uint32_t count) noexcept nogil:
    """What counting one intent less looks at; only the last one leads to more."""
    cdef int64_t key = counted_next(table, keys, i, count)
    if key < 0 or table.records[key].intent_refs != 1:
        return
    if is_shared(table, <uint32_t>key):
        prefetch_read(&table.holdings_at[slot_of(table, key)])
    elif key_state(table, key) == STATE_REPLICA:
        prefetch_write(&table.flags[key])


cdef inline void prefetch_rows(
        const TableState* table, const uint32_t* keys, uint32_t i, uint32_t count) noexcept nogil:
    """What serving a record, taking an answer or a refresh looks at."""
    if i + PREFETCH_ENTRIES < count:
        prefetch_entries(table, keys[i + PREFETCH_ENTRIES])
    if i + PREFETCH_ROWS < count:
        prefetch_key(table, keys[i + PREFETCH_ROWS], True)
        prefetch_beside(table, keys[i + PREFETCH_ROWS])


cdef inline void prefetch_offers(const TableState* table, const uint32_t* keys, uint32_t i, uint32_t count) noexcept nogil:
    """What asking again for a replica looks at."""
    if i + PREFETCH_ENTRIES < count:
        prefetch_entries(table, keys[i + PREFETCH_ENTRIES])


cdef inline void prefetch_owners(const TableState* table, const uint32_t* keys, uint32_t i, uint32_t count) noexcept nogil:
    """What learning of a new owner looks at."""
    if i + PREFETCH_ENTRIES < count:
        prefetch_write(&table.records[keys[i + PREFETCH_ENTRIES]])


cdef inline int64_t key_at(const TableState* table, const KeyRef* references, size_t at, size_t count) noexcept nogil:
    """-1: there is none, or it is of another table."""
    return references[at].key if at < count and references[at].table == table.table_id else -1


cdef inline int64_t key_here_at(const TableState* table, const KeyRef* references, size_t at, size_t count) noexcept nogil:
    """-1: as above, or it is not here."""
    cdef int64_t key = key_at(table, references, at, count)
    return key if key >= 0 and is_here(table, key) else -1


cdef inline void prefetch_records(
        const TableState* table, const KeyRef* references, size_t i, size_t count) noexcept nogil:
    """What making a record looks at."""
    cdef int64_t key = key_at(table, references, i + PREFETCH_ENTRIES, count)
    cdef ReplicaRecord* replica
    cdef uint32_t pending, kept
    if key >= 0:
        prefetch_entries(table, <uint32_t>key)
    key = key_here_at(table, references, i + PREFETCH_ROWS, count)
    if key >= 0:
        prefetch_write(&table.replicas[slot_of(table, key)])
    key = key_here_at(table, references, i + PREFETCH_PENDING, count)
    if key < 0:
        return
    replica = &table.replicas[slot_of(table, key)]
    pending, kept = load_relaxed(&replica.pending), load_relaxed(&replica.kept)
    if pending:
        prefetch_row(pending_row(table, pending), table.row_bytes, True)
    if kept:
        prefetch_row(pool_row(&table.kept, kept), table.record_bytes + table.optimiser.gradient_bytes, True)


cdef inline void prefetch_news(
        const TableState* table, const KeyRef* references, size_t i, size_t count) noexcept nogil:
    """What making a refresh looks at."""
    cdef int64_t key = key_at(table, references, i + PREFETCH_ENTRIES, count)
    if key >= 0:
        prefetch_write(&table.places[key])
        prefetch_read(&table.records[key])
    key = key_here_at(table, references, i + PREFETCH_ROWS, count)
    if key >= 0:
        prefetch_write(&table.holdings_at[slot_of(table, key)])
        prefetch_key(table, key, False)


cdef inline void prefetch_hints(
        const TableState* table, const KeyRef* references, size_t i, size_t count, bint offers) noexcept nogil:
    """What telling others of moves, or offering keys, looks at."""
    cdef int64_t key = key_at(table, references, i + PREFETCH_ENTRIES, count)
    if key >= 0:
        prefetch_read(&table.records[key])
    if not offers:
        return
    if key >= 0:
        prefetch_read(&table.places[key])
    key = key_here_at(table, references, i + PREFETCH_ROWS, count)
    if key >= 0:
        prefetch_read(&table.holdings_at[slot_of(table, key)])


cdef inline void prefetch_dirty(const TableState* table, const uint32_t* keys, size_t i, size_t count) noexcept nogil:
    """What sorting dirty keys looks at; their places were asked for before."""
    cdef uint32_t key
    if i + PREFETCH_ROWS >= count:
        return
    key = keys[i + PREFETCH_ROWS]
    prefetch_write(&table.dirty_next[key])
    if key_state(table, key) == STATE_OWNED:
        prefetch_write(&table.holdings_at[slot_of(table, key)])
    else:
        prefetch_write(&table.flags[key])
        prefetch_read(&table.records[key])
