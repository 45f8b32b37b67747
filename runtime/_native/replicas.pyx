"""What a replica's writes leave for the owner; ``replicas.pxd`` is the contract."""

from libc.math cimport INFINITY, sqrt
from libc.stdint cimport int32_t, int64_t, uint32_t

from intentpm.foundation.primitives cimport copy_row, store_relaxed
from intentpm.runtime._native.state cimport (
    KeyPlace, as_owned, lock_word, unlock_changed, unlock_unchanged,
)
from intentpm.runtime._native.table_state cimport ReplicaRecord, TableState, row_of


cdef void _free_pending(TableState* table, ReplicaRecord* replica) noexcept nogil:
    cdef uint32_t name = replica.pending & ~<uint32_t>PENDING_SET
    cdef uint32_t seen = lock_word(&table.pending_lock)
    (<uint32_t*>pending_row(table, name))[0] = table.pending_free
    table.pending_free = name
    unlock_unchanged(&table.pending_lock, seen)
    store_relaxed(&replica.pending, 0)


cdef void _put_on_top(TableState* table, int32_t slot, const char* row) noexcept nogil:
    """The row becomes ``row`` plus what is pending (invariant I4)."""
    cdef uint32_t name = table.replicas[slot].pending
    if name & PENDING_SET:
        copy_row(row_of(table, slot), pending_row(table, name), table.row_bytes)
        return
    copy_row(row_of(table, slot), row, table.row_bytes)
    if name:
        table.add(row_of(table, slot), pending_row(table, name), table.row_items)


cdef int take_pending(TableState* table, int64_t key, char* out) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    cdef uint32_t name = table.replicas[place.slot].pending
    if name:
        copy_row(out, pending_row(table, name), table.row_bytes)
        _free_pending(table, &table.replicas[place.slot])
    unlock_unchanged(&place.word, seen)
    return 0 if name == 0 else 2 if name & PENDING_SET else 1


cdef bint has_pending(TableState* table, int64_t key) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    cdef bint pending = table.replicas[place.slot].pending != 0
    unlock_unchanged(&place.word, seen)
    return pending


cdef double pending_norm(TableState* table, int64_t key) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    cdef uint32_t name = table.replicas[place.slot].pending
    cdef double norm = -1.0
    if name & PENDING_SET:
        norm = INFINITY
    elif name:
        norm = sqrt(table.square(pending_row(table, name), table.row_items))
    unlock_unchanged(&place.word, seen)
    return norm


cdef void refresh_replica(TableState* table, int64_t key, const char* row) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    _put_on_top(table, place.slot, row)
    unlock_changed(&place.word, seen)


cdef bint promote_replica(TableState* table, int64_t key, const char* row, uint32_t version, bint shared) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    cdef bint pending = table.replicas[place.slot].pending != 0
    _put_on_top(table, place.slot, row)
    if pending:
        _free_pending(table, &table.replicas[place.slot])
    unlock_changed(&place.word, as_owned(seen, version, shared))
    return pending


cdef void promote_in_place(TableState* table, int64_t key, uint32_t version) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    if table.replicas[place.slot].pending:
        _free_pending(table, &table.replicas[place.slot])
    unlock_changed(&place.word, as_owned(seen, version, False))
