"""What a replica's own writes leave for the owner: a pending row, a delta to add or a value to set.

Guarantees
    * A replica is the owner's row that it last saw plus what is pending (invariant I4).
    * A replica that is not written needs no pending row; the memory of one is used again.
Assumption: the key is here, and its word LOCKED where a pending row is added to (``rows``, any thread). Management calls what
is declared at the end, one key at a time, under the engine's lock; it enters the word itself.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from intentpm.foundation.primitives cimport copy_row, store_relaxed
from intentpm.runtime._native.state cimport lock_word, unlock_unchanged
from intentpm.runtime._native.table_state cimport ReplicaRecord, TableState, prefetch_row


cdef enum:
    PENDING_SET = 1              # in the name of a pending row: it holds a value to set, not a delta to add


cdef inline char* pending_row(const TableState* table, uint32_t name) noexcept nogil:
    """The pending row of that name, which is not 0."""
    return table.pending + <size_t>((name >> 1) - 1) * table.pending_stride


cdef inline uint32_t _allocate_pending(TableState* table) noexcept nogil:
    cdef uint32_t seen = lock_word(&table.pending_lock)
    cdef uint32_t name = table.pending_free
    if name:
        table.pending_free = (<uint32_t*>pending_row(table, name))[0]
        if table.pending_free:
            prefetch_row(pending_row(table, table.pending_free), table.row_bytes, True)
    else:
        table.pending_touched += 1
        name = table.pending_touched << 1
    unlock_unchanged(&table.pending_lock, seen)
    return name


cdef inline void add_pending(TableState* table, ReplicaRecord* replica, const char* delta) noexcept nogil:
    cdef uint32_t name = replica.pending
    if name:
        table.add(pending_row(table, name), delta, table.row_items)
        return
    name = _allocate_pending(table)
    copy_row(pending_row(table, name), delta, table.row_bytes)
    store_relaxed(&replica.pending, name)


cdef inline void set_pending(TableState* table, ReplicaRecord* replica, const char* value) noexcept nogil:
    cdef uint32_t name = replica.pending
    if not name:
        name = _allocate_pending(table)
    copy_row(pending_row(table, name), value, table.row_bytes)
    store_relaxed(&replica.pending, name | PENDING_SET)


# What this rank wrote to a replica since the owner was last told is moved into ``out``; 0: nothing, 1: a delta to add, 2: a
# value to set.
cdef int take_pending(TableState* table, int64_t key, char* out) noexcept nogil
cdef bint has_pending(TableState* table, int64_t key) noexcept nogil
# L2 norm of the pending delta; infinite for a pending set, negative when nothing is pending.
cdef double pending_norm(TableState* table, int64_t key) noexcept nogil
# Makes the replica ``row`` plus what is pending.
cdef void refresh_replica(TableState* table, int64_t key, const char* row) noexcept nogil
# The replica becomes the main copy, ``row`` plus what is pending, of which others hold replicas or not. apart: what its answer
# said besides; the copy may follow. True: something was pending.
cdef bint promote_replica(
    TableState* table, int64_t key, const char* row, uint32_t version, bint shared, uint8_t apart) noexcept nogil
# The same, where its row is the owner's already, but for rounding.
cdef void promote_in_place(TableState* table, int64_t key, uint32_t version) noexcept nogil
