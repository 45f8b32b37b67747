"""What a replica's writes leave for the owner; ``replicas.pxd`` is the contract."""

from libc.math cimport INFINITY, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from intentpm.foundation.primitives cimport copy_row, store_relaxed
from intentpm.runtime._native.apart cimport arrive_apart, set_apart
from intentpm.runtime._native.messages cimport RECORD_ADD, RECORD_GRADIENT, RECORD_SET, RECORD_STEP
from intentpm.runtime._native.row_optimiser cimport single_gradient
from intentpm.runtime._native.row_place cimport ROW_OVERWRITE, ROW_WRITE, lock_row
from intentpm.runtime._native.row_pool cimport give_pool_row
from intentpm.runtime._native.state cimport KeyPlace, as_owned, lock_word, unlock_changed, unlock_unchanged
from intentpm.runtime._native.table_state cimport ReplicaRecord, TableState, row_of


cdef void _free_pending(TableState* table, ReplicaRecord* replica) noexcept nogil:
    if replica.pending:
        give_pool_row(&table.pending, replica.pending >> 1)
        store_relaxed(&replica.pending, 0)
    if replica.kept:
        give_pool_row(&table.kept, replica.kept)
        store_relaxed(&replica.kept, 0)


cdef void _put_on_top(TableState* table, int32_t slot, const char* row) noexcept nogil:
    """The row becomes ``row`` plus what is pending (invariant I4)."""
    copy_row(row_of(table, slot), row, table.stored_bytes)
    _write_pending(table, &table.replicas[slot], row_of(table, slot))


cdef inline void _write_pushed(TableState* table, const ReplicaRecord* replica, char* row) noexcept nogil:
    if replica.pending & PENDING_SET:
        copy_row(row, pending_row(table, replica.pending), table.row_bytes)
    elif replica.pending:
        table.add(row, pending_row(table, replica.pending), table.row_items)


cdef void _write_pending(TableState* table, const ReplicaRecord* replica, char* row) noexcept nogil:
    """What is pending of a replica, on a row."""
    _write_pushed(table, replica, row)
    if replica.kept:
        table.optimiser.take(row, kept_row(table, replica), table.row_items, table.optimiser)


cdef void _arrive_apart(TableState* table, int64_t key, const char* row, uint8_t apart) noexcept nogil:
    """The row comes from its owner, and a copy of it may follow. What is pending is written before or after this rank's cut."""
    cdef int32_t slot = table.places[key].slot
    cdef char* copy
    copy_row(row_of(table, slot), row, table.stored_bytes)
    arrive_apart(table, key, apart, row + table.stored_bytes)
    if is_written(&table.replicas[slot]):
        copy = set_apart(table, table.snapshot, key, table.snapshot.cut_here != 0)
        if copy != NULL:
            _write_pending(table, &table.replicas[slot], copy)


cdef int take_pending(TableState* table, int64_t key, char* out) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    cdef ReplicaRecord* replica = &table.replicas[place.slot]
    cdef const void* gradient
    cdef int found = 0
    if replica.pending:
        found = RECORD_SET if replica.pending & PENDING_SET else RECORD_ADD
        copy_row(out, pending_row(table, replica.pending), table.row_bytes)
        out += table.weights_bytes
    if replica.kept:
        # Beside what is pending a step has to do at the owner what it did here, in whatever order they were made: as a block.
        gradient = single_gradient(kept_row(table, replica), table.optimiser) if not replica.pending else NULL
        if gradient != NULL:
            found = RECORD_STEP | RECORD_GRADIENT
            copy_row(out, <const char*>gradient, table.optimiser.gradient_bytes)
        else:
            found |= RECORD_STEP
            copy_row(out, kept_row(table, replica), table.optimiser.kept_bytes)
    _free_pending(table, replica)
    unlock_unchanged(&place.word, seen)
    return found


cdef bint has_pending(TableState* table, int64_t key) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    cdef bint pending = is_written(&table.replicas[place.slot])
    unlock_unchanged(&place.word, seen)
    return pending


cdef double pending_norm(TableState* table, int64_t key) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    cdef uint32_t name = table.replicas[place.slot].pending
    cdef double norm = -1.0
    if name & PENDING_SET or table.replicas[place.slot].kept:
        norm = INFINITY
    elif name:
        norm = sqrt(table.square(pending_row(table, name), table.row_items))
    unlock_unchanged(&place.word, seen)
    return norm


cdef bint refresh_replica(TableState* table, int64_t key, const char* row) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_row(table, key, ROW_OVERWRITE)
    cdef bint is_kept = table.replicas[place.slot].kept != 0
    _put_on_top(table, place.slot, row)
    unlock_changed(&place.word, seen)
    return is_kept and table.optimiser.gradient_bytes > 0


cdef void refresh_weights(TableState* table, int64_t key, const char* weights) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_row(table, key, ROW_WRITE)
    cdef const ReplicaRecord* replica = &table.replicas[place.slot]
    cdef char* row = row_of(table, place.slot)
    copy_row(row, weights, table.weights_bytes)
    _write_pushed(table, replica, row)
    if replica.kept:
        table.optimiser.show(row, kept_row(table, replica), table.row_items, table.optimiser)
    unlock_changed(&place.word, seen)


cdef bint promote_replica(
        TableState* table, int64_t key, const char* row, uint32_t version, bint shared, uint8_t apart) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_row(table, key, ROW_OVERWRITE)
    cdef bint written = is_written(&table.replicas[place.slot])
    if table.snapshot != NULL:
        _arrive_apart(table, key, row, apart)
    table.rows_owned += 1
    _put_on_top(table, place.slot, row)
    _free_pending(table, &table.replicas[place.slot])
    unlock_changed(&place.word, as_owned(seen, version, shared))
    return written


cdef void promote_in_place(TableState* table, int64_t key, uint32_t version) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    if table.snapshot != NULL:           # what is pending is from before this rank's cut: holder.pxd, ``cutting``
        arrive_apart(table, key, 0, NULL)
    table.rows_owned += 1
    _free_pending(table, &table.replicas[place.slot])
    unlock_changed(&place.word, as_owned(seen, version, False))
