"""One row, read or written under its key's word (``state.pxd``).

Guarantees
    * Pull, push and set of one row are atomic, from any number of threads, without the GIL. No row is torn.
    * A row that others have to hear of is marked dirty (``dirty_stack``); what its owner has to hear is pending (``replicas``).
Called by ``batches`` (``try_*``), by ``remote`` and ``serving`` (``*_row_atomic``), and by management (the rest).
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from intentpm.foundation.primitives cimport (
    copy_row, fence_acquire, load_acquire, load_relaxed, load_relaxed_i32, optimistic_reads,
)
from intentpm.runtime._native.apart cimport push_apart, set_apart, set_value_apart, snapshot_of
from intentpm.runtime._native.dirty_stack cimport mark_dirty
from intentpm.runtime._native.message_rows cimport pushed_bytes
from intentpm.runtime._native.messages cimport RECORD_ADD, RECORD_GRADIENT, RECORD_SET, RECORD_STEP
from intentpm.runtime._native.replicas cimport add_pending, set_pending
from intentpm.runtime._native.row_optimiser cimport take_gradient
from intentpm.runtime._native.row_place cimport ROW_READ, ROW_WRITE, RowUse, is_home, lock_row
from intentpm.runtime._native.snapshot cimport Snapshot
from intentpm.runtime._native.state cimport (
    STATE_ABSENT, STATE_OWNED, STATE_REPLICA, WORD_HERE, WORD_LOCKED, WORD_SHARED, WORD_VERSION_ONE, KeyPlace, KeyState,
    lock_word, read_unlocked, state_of, try_lock, unlock_changed, unlock_unchanged,
)
from intentpm.runtime._native.table_state cimport TableState, row_of


# -- any thread ------------------------------------------------------------------------------------------------------------
# ``try_*`` are one attempt. It gives up (STATE_ABSENT) when a writer is inside or the key is not here; ``*_row_atomic`` repeat
# it until it succeeds or the key is not here. They return the state the key had.

cdef inline bint enter_row(KeyPlace* place, uint32_t* seen) noexcept nogil:
    seen[0] = load_relaxed(&place.word)
    return (seen[0] & (WORD_HERE | WORD_LOCKED)) == WORD_HERE and try_lock(&place.word, seen[0])


cdef inline KeyState try_pull(TableState* table, int64_t key, char* out, size_t row_bytes) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen
    if not optimistic_reads:
        if not enter_row(place, &seen):
            return STATE_ABSENT
        copy_row(out, row_of(table, load_relaxed_i32(&place.slot)), row_bytes)
        unlock_unchanged(&place.word, seen)
        return state_of(seen)
    seen = load_acquire(&place.word)
    if (seen & (WORD_HERE | WORD_LOCKED)) != WORD_HERE:
        return STATE_ABSENT
    copy_row(out, row_of(table, load_relaxed_i32(&place.slot)), row_bytes)
    fence_acquire()
    return state_of(seen) if load_relaxed(&place.word) == seen else STATE_ABSENT


cdef inline void leave_written(TableState* table, int64_t key, uint32_t seen) noexcept nogil:
    if seen & WORD_SHARED or state_of(seen) == STATE_REPLICA:
        mark_dirty(table, key)
    unlock_changed(&table.places[key].word, seen)


cdef inline KeyState _push_entered(TableState* table, int64_t key, uint32_t seen, const char* delta) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef Snapshot* snapshot = snapshot_of(table)
    if snapshot != NULL and state_of(seen) == STATE_OWNED:
        push_apart(table, snapshot, key, delta)
    table.add(row_of(table, place.slot), delta, table.row_items)
    if state_of(seen) == STATE_REPLICA:
        add_pending(table, &table.replicas[place.slot], delta)
    leave_written(table, key, seen)
    return state_of(seen)


cdef inline KeyState try_push(TableState* table, int64_t key, const char* delta) noexcept nogil:
    cdef uint32_t seen
    if not enter_row(&table.places[key], &seen):
        return STATE_ABSENT
    return _push_entered(table, key, seen, delta)


cdef inline KeyState _set_entered(TableState* table, int64_t key, uint32_t seen, const char* value) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef Snapshot* snapshot = snapshot_of(table)
    if snapshot != NULL and state_of(seen) == STATE_OWNED:
        set_value_apart(table, snapshot, key, value, table.row_bytes)
    copy_row(row_of(table, place.slot), value, table.row_bytes)
    if state_of(seen) == STATE_REPLICA:
        set_pending(table, &table.replicas[place.slot], value)
    leave_written(table, key, seen)
    return state_of(seen)


cdef inline KeyState try_set(TableState* table, int64_t key, const char* value) noexcept nogil:
    cdef uint32_t seen
    if not enter_row(&table.places[key], &seen):
        return STATE_ABSENT
    return _set_entered(table, key, seen, value)


cdef inline bint enter_if_here(KeyPlace* place, uint32_t* seen) noexcept nogil:
    """Waits for the writer inside. False: the key is not here, and its word is the engine's alone."""
    while read_unlocked(&place.word) & WORD_HERE:
        if enter_row(place, seen):
            return True
    return False


cdef inline KeyState enter_home(TableState* table, int64_t key, RowUse use, uint32_t* seen) noexcept nogil:
    """Of a table with a tier: enters a row that is in ``rows``, having it brought. ABSENT: the key is not here."""
    cdef KeyPlace* place = &table.places[key]
    while read_unlocked(&place.word) & WORD_HERE:
        if not enter_row(place, seen):
            continue
        if is_home(table, place, use):
            return state_of(seen[0])
        unlock_unchanged(&place.word, seen[0])
        table.tier.bring_home(table, key)
    return STATE_ABSENT


cdef inline KeyState pull_home(TableState* table, int64_t key, char* out, size_t row_bytes) noexcept nogil:
    cdef uint32_t seen
    cdef KeyState state = enter_home(table, key, ROW_READ, &seen)
    if state != STATE_ABSENT:
        copy_row(out, row_of(table, table.places[key].slot), row_bytes)
        unlock_unchanged(&table.places[key].word, seen)
    return state


cdef inline KeyState push_home(TableState* table, int64_t key, const char* delta) noexcept nogil:
    cdef uint32_t seen
    if enter_home(table, key, ROW_WRITE, &seen) == STATE_ABSENT:
        return STATE_ABSENT
    return _push_entered(table, key, seen, delta)


cdef inline KeyState set_home(TableState* table, int64_t key, const char* value) noexcept nogil:
    cdef uint32_t seen
    if enter_home(table, key, ROW_WRITE, &seen) == STATE_ABSENT:
        return STATE_ABSENT
    return _set_entered(table, key, seen, value)


cdef inline KeyState pull_row_atomic(TableState* table, int64_t key, char* out) noexcept nogil:
    cdef KeyState state = STATE_ABSENT
    if table.tier != NULL:
        return pull_home(table, key, out, table.row_bytes)
    while state == STATE_ABSENT and read_unlocked(&table.places[key].word) & WORD_HERE:
        state = try_pull(table, key, out, table.row_bytes)
    return state


cdef inline KeyState push_row_atomic(TableState* table, int64_t key, const char* delta) noexcept nogil:
    cdef KeyState state = STATE_ABSENT
    if table.tier != NULL:
        return push_home(table, key, delta)
    while state == STATE_ABSENT and read_unlocked(&table.places[key].word) & WORD_HERE:
        state = try_push(table, key, delta)
    return state


cdef inline KeyState set_row_atomic(TableState* table, int64_t key, const char* value) noexcept nogil:
    cdef KeyState state = STATE_ABSENT
    if table.tier != NULL:
        return set_home(table, key, value)
    while state == STATE_ABSENT and read_unlocked(&table.places[key].word) & WORD_HERE:
        state = try_set(table, key, value)
    return state


# -- management: keys that are here, engine lock held ------------------------------------------------------------------------

cdef inline uint32_t read_row(TableState* table, int64_t key, char* out, size_t size_bytes) noexcept nogil:
    """The whole stored row, or its weights_bytes; returns the version of the row it copied."""
    # Writers only hold the word for one row, so locking it to read is as short.
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_row(table, key, ROW_READ)
    copy_row(out, row_of(table, place.slot), size_bytes)
    unlock_unchanged(&place.word, seen)
    return seen // WORD_VERSION_ONE


cdef inline uint32_t version_of(const TableState* table, int64_t key) noexcept nogil:
    """Of the row as it is now; a writer that is inside has not changed it yet."""
    return load_acquire(&table.places[key].word) // WORD_VERSION_ONE


cdef inline const char* kept_of(const TableState* table, uint8_t record, const char* rows) noexcept nogil:
    """The kept row, or the gradient, among the rows of a record that has one."""
    return rows + pushed_bytes(table, record)


cdef inline void _write(const TableState* table, uint8_t record, const char* rows, char* row) noexcept nogil:
    if record & RECORD_SET:
        copy_row(row, rows, table.row_bytes)
    elif record & RECORD_ADD:
        table.add(row, rows, table.row_items)
    if record & RECORD_GRADIENT:
        take_gradient(row, kept_of(table, record, rows), table.row_items, table.optimiser)
    elif record & RECORD_STEP:
        table.optimiser.take(row, kept_of(table, record, rows), table.row_items, table.optimiser)


cdef inline uint32_t apply_record(
        TableState* table, int64_t key, uint8_t record, const char* rows, bint is_new) noexcept nogil:
    """What a holder has written, at the owner: marks nothing dirty, for the caller knows who has to hear of it.

    is_new: cuts.pxd. Returns the row's version before; it has the next one now.
    """
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_row(table, key, ROW_WRITE)
    cdef char* copy = set_apart(table, table.snapshot, key, is_new) if table.snapshot != NULL else <char*>NULL
    _write(table, record, rows, row_of(table, place.slot))
    if copy != NULL:
        _write(table, record, rows, copy)
    unlock_changed(&place.word, seen)
    return seen // WORD_VERSION_ONE


cdef inline void mark_shared(TableState* table, int64_t key, bint shared) noexcept nogil:
    """Sets or clears SHARED of an owned key."""
    cdef uint32_t* word = &table.places[key].word
    cdef uint32_t seen = lock_word(word)
    # Another word, so a writer cannot have missed the bit. No new version: the row is as it was, and who has it needs none.
    unlock_unchanged(word, (seen | WORD_SHARED) if shared else (seen & ~<uint32_t>WORD_SHARED))
