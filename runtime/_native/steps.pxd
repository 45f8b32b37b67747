"""One step of a table's optimiser on one row, and whole rows with its state, under the key's word.

Guarantees
    * A step is atomic, as a push is (``rows.pxd``): weights and state are those before it or after it.
    * A step on a replica's row is kept for the owner (``replicas.pxd``). A whole row is overwritten at the owner alone.
Called by ``batches``, ``remote`` and ``serving``.
"""

from libc.stdint cimport int64_t, uint32_t

from intentpm.foundation.primitives cimport copy_row, load_relaxed
from intentpm.runtime._native.apart cimport set_value_apart, snapshot_of, step_apart
from intentpm.runtime._native.replicas cimport keep_step
from intentpm.runtime._native.row_place cimport ROW_WRITE
from intentpm.runtime._native.rows cimport enter_home, enter_row, leave_written, pull_home, try_pull
from intentpm.runtime._native.snapshot cimport Snapshot
from intentpm.runtime._native.state cimport (
    STATE_ABSENT, STATE_OWNED, STATE_REPLICA, WORD_HERE, KeyPlace, KeyState, read_unlocked, state_of,
    unlock_unchanged,
)
from intentpm.runtime._native.table_state cimport TableState, row_of


cdef inline KeyState _step_entered(
        TableState* table, int64_t key, uint32_t seen, const char* gradient, double lr) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef Snapshot* snapshot = snapshot_of(table)
    if state_of(seen) == STATE_REPLICA:
        keep_step(table, &table.replicas[place.slot], row_of(table, place.slot), gradient, lr)
    else:
        if snapshot != NULL:
            step_apart(table, snapshot, key, gradient, lr)
        table.optimiser.step(row_of(table, place.slot), gradient, table.row_items, table.optimiser, lr)
    leave_written(table, key, seen)
    return state_of(seen)


cdef inline KeyState try_step(TableState* table, int64_t key, const char* gradient, double lr) noexcept nogil:
    cdef uint32_t seen
    if not enter_row(&table.places[key], &seen):
        return STATE_ABSENT
    return _step_entered(table, key, seen, gradient, lr)


cdef inline KeyState step_home(TableState* table, int64_t key, const char* gradient, double lr) noexcept nogil:
    cdef uint32_t seen
    if enter_home(table, key, ROW_WRITE, &seen) == STATE_ABSENT:
        return STATE_ABSENT
    return _step_entered(table, key, seen, gradient, lr)


cdef inline KeyState step_row_atomic(TableState* table, int64_t key, const char* gradient, double lr) noexcept nogil:
    cdef KeyState state = STATE_ABSENT
    if table.tier != NULL:
        return step_home(table, key, gradient, lr)
    while state == STATE_ABSENT and read_unlocked(&table.places[key].word) & WORD_HERE:
        state = try_step(table, key, gradient, lr)
    return state


cdef inline KeyState pull_stored_atomic(TableState* table, int64_t key, char* out) noexcept nogil:
    """The whole row: weights and state of one moment."""
    cdef KeyState state = STATE_ABSENT
    if table.tier != NULL:
        return pull_home(table, key, out, table.stored_bytes)
    while state == STATE_ABSENT and read_unlocked(&table.places[key].word) & WORD_HERE:
        state = try_pull(table, key, out, table.stored_bytes)
    return state


cdef inline KeyState _set_stored_entered(TableState* table, int64_t key, uint32_t seen, const char* row) noexcept nogil:
    cdef Snapshot* snapshot = snapshot_of(table)
    if snapshot != NULL and state_of(seen) == STATE_OWNED:
        set_value_apart(table, snapshot, key, row, table.stored_bytes)
    copy_row(row_of(table, table.places[key].slot), row, table.stored_bytes)
    leave_written(table, key, seen)
    return state_of(seen)


cdef inline KeyState try_set_stored(TableState* table, int64_t key, const char* row) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen
    if state_of(load_relaxed(&place.word)) != STATE_OWNED or not enter_row(place, &seen):
        return STATE_ABSENT
    return _set_stored_entered(table, key, seen, row)


cdef inline KeyState set_stored_home(TableState* table, int64_t key, const char* row) noexcept nogil:
    cdef uint32_t seen
    cdef KeyState state = enter_home(table, key, ROW_WRITE, &seen)
    if state == STATE_OWNED:
        return _set_stored_entered(table, key, seen, row)
    if state != STATE_ABSENT:
        unlock_unchanged(&table.places[key].word, seen)
    return STATE_ABSENT


cdef inline KeyState set_stored_atomic(TableState* table, int64_t key, const char* row) noexcept nogil:
    """Overwrites the whole row of a table with an optimiser: weights and state. A replica counts as absent."""
    cdef KeyState state = STATE_ABSENT
    if table.tier != NULL:
        return set_stored_home(table, key, row)
    while state == STATE_ABSENT and state_of(read_unlocked(&table.places[key].word)) == STATE_OWNED:
        state = try_set_stored(table, key, row)
    return state
