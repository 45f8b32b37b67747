"""Rows set apart for a checkpoint; ``apart.pxd`` is the contract."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from posix.mman cimport (
    MADV_DONTNEED, MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, madvise, mmap, munmap,
)

from intentpm.foundation.primitives cimport (
    add_relaxed_i64, copy_row, load_acquire, load_acquire_i64, load_relaxed, load_relaxed_i32, load_relaxed_i64,
    store_relaxed_i32, store_release, store_release_pointer,
)
from intentpm.runtime._native.messages cimport RESULT_KEPT, RESULT_SAVED
from intentpm.runtime._native.mutations cimport (
    MUTATION_COPY_LEFT_OUT, MUTATION_LATE_WRITE_LOST, MUTATION_SAVED_TWICE, is_planted,
)
from intentpm.runtime._native.row_place cimport ROW_READ, is_home
from intentpm.runtime._native.snapshot cimport MARK_DONE, MARK_UNSEEN, UNKNOWN_VERSION, CopyRoom, Snapshot
from intentpm.runtime._native.state cimport (
    STATE_OWNED, WORD_HERE, WORD_VERSION_ONE, lock_word, read_unlocked, state_of, try_lock, unlock_unchanged,
)
from intentpm.runtime._native.table_state cimport TableState, row_of, word_of

cdef enum:
    MOST_COPIES_BYTES = 16 << 20     # of copies that wait: more, and they are written before the rows that lie still
    LOOKED_AT_ONCE = 4096            # copies, holding the engine's lock


# -- memory ----------------------------------------------------------------------------------------------------------------

cdef void* _map(size_t size_bytes) noexcept nogil:
    cdef void* memory = mmap(
        NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return NULL if memory == MAP_FAILED else memory


cdef Snapshot* new_snapshot(const TableState* table, uint32_t number, CopyRoom* room) noexcept nogil:
    cdef Snapshot* snapshot = <Snapshot*>calloc(1, sizeof(Snapshot))
    if snapshot == NULL:
        return NULL
    snapshot.number = number
    snapshot.room = room
    snapshot.num_keys = table.num_keys
    snapshot.stride_bytes = max(<size_t>8, table.stride_bytes)
    snapshot.rows = table.rows_owned
    snapshot.marks = <uint32_t*>_map(table.num_keys * sizeof(uint32_t))
    snapshot.copies = <char*>_map(table.num_keys * snapshot.stride_bytes)
    snapshot.copied_key = <int32_t*>_map(table.num_keys * sizeof(int32_t))
    snapshot.copied_version = <uint32_t*>_map(table.num_keys * sizeof(uint32_t))
    if snapshot.marks == NULL or snapshot.copies == NULL or snapshot.copied_key == NULL or snapshot.copied_version == NULL:
        _free(snapshot)
        return NULL
    return snapshot


cdef void _free(Snapshot* snapshot) noexcept nogil:
    if snapshot.marks != NULL:
        munmap(snapshot.marks, snapshot.num_keys * sizeof(uint32_t))
    if snapshot.copies != NULL:
        munmap(snapshot.copies, snapshot.num_keys * snapshot.stride_bytes)
    if snapshot.copied_key != NULL:
        munmap(snapshot.copied_key, snapshot.num_keys * sizeof(int32_t))
    if snapshot.copied_version != NULL:
        munmap(snapshot.copied_version, snapshot.num_keys * sizeof(uint32_t))
    free(snapshot)


cdef void retire_snapshot(TableState* table) noexcept nogil:
    cdef Snapshot* snapshot = table.snapshot
    cdef uint32_t seen = lock_word(&snapshot.copies_lock)
    if snapshot.room != NULL:
        add_relaxed_i64(&snapshot.room.held_bytes, -<int64_t>snapshot.copies_touched * _copy_bytes(snapshot))
        snapshot.room = NULL
    unlock_unchanged(&snapshot.copies_lock, seen)
    store_release_pointer(<void**>&table.snapshot, NULL)
    snapshot.older = table.retired
    table.retired = snapshot


cdef void give_back_snapshots(Snapshot* retired) noexcept nogil:
    cdef Snapshot* snapshot = retired
    while snapshot != NULL:
        madvise(snapshot.marks, snapshot.num_keys * sizeof(uint32_t), MADV_DONTNEED)
        madvise(snapshot.copies, snapshot.num_keys * snapshot.stride_bytes, MADV_DONTNEED)
        madvise(snapshot.copied_key, snapshot.num_keys * sizeof(int32_t), MADV_DONTNEED)
        madvise(snapshot.copied_version, snapshot.num_keys * sizeof(uint32_t), MADV_DONTNEED)
        snapshot = snapshot.older


cdef void free_snapshots(TableState* table) noexcept nogil:
    cdef Snapshot* snapshot
    while table.retired != NULL:
        snapshot = table.retired
        table.retired = snapshot.older
        _free(snapshot)


# -- copies ----------------------------------------------------------------------------------------------------------------

cdef inline char* _copy_of(const Snapshot* snapshot, uint32_t mark) noexcept nogil:
    return snapshot.copies + <size_t>(mark - 1) * snapshot.stride_bytes


cdef inline int64_t _copy_bytes(const Snapshot* snapshot) noexcept nogil:
    return <int64_t>(snapshot.stride_bytes + sizeof(int32_t) + sizeof(uint32_t))


cdef inline bint _has_room(Snapshot* snapshot) noexcept nogil:
    """For one more copy, which it has then."""
    cdef int64_t held
    if snapshot.room == NULL:
        return True
    held = add_relaxed_i64(&snapshot.room.held_bytes, _copy_bytes(snapshot))
    if held + _copy_bytes(snapshot) <= load_relaxed_i64(&snapshot.room.most_bytes):
        return True
    add_relaxed_i64(&snapshot.room.held_bytes, -_copy_bytes(snapshot))
    return False


cdef uint32_t _new_copy(
        TableState* table, Snapshot* snapshot, int64_t key, const char* row, uint32_t version) noexcept nogil:
    """Returns its mark; MARK_UNSEEN: there is no room for it, and the snapshot is broken."""
    cdef uint32_t seen = lock_word(&snapshot.copies_lock)
    cdef uint32_t mark = snapshot.copies_free
    if mark:
        snapshot.copies_free = (<uint32_t*>_copy_of(snapshot, mark))[0]
    elif snapshot.copies_touched == snapshot.num_keys or not _has_room(snapshot):
        store_release(&snapshot.broken, 1)
        unlock_unchanged(&snapshot.copies_lock, seen)
        return MARK_UNSEEN
    else:
        mark = snapshot.copies_touched + 1
        store_relaxed_i32(&snapshot.copied_key[mark - 1], -1)        # fresh memory would say key 0
        store_release(&snapshot.copies_touched, mark)
    snapshot.copies_held += 1
    unlock_unchanged(&snapshot.copies_lock, seen)
    store_relaxed_i32(&snapshot.copied_key[mark - 1], <int32_t>key)
    snapshot.copied_version[mark - 1] = version
    copy_row(_copy_of(snapshot, mark), row, table.stored_bytes)
    return mark


cdef void _take_copy(TableState* table, uint32_t mark, char* out, uint32_t* seen) noexcept nogil:
    """Moves the copy out, and frees it."""
    cdef Snapshot* snapshot = table.snapshot
    copy_row(out, _copy_of(snapshot, mark), table.stored_bytes)
    if seen != NULL:                     # of an unknown version: none was taken
        seen[snapshot.copied_key[mark - 1]] = snapshot.copied_version[mark - 1] + 1
    _free_copy(snapshot, mark)


cdef void _free_copy(Snapshot* snapshot, uint32_t mark) noexcept nogil:
    cdef uint32_t seen
    store_relaxed_i32(&snapshot.copied_key[mark - 1], -1)
    seen = lock_word(&snapshot.copies_lock)
    (<uint32_t*>_copy_of(snapshot, mark))[0] = snapshot.copies_free
    snapshot.copies_free = mark
    snapshot.copies_held -= 1
    unlock_unchanged(&snapshot.copies_lock, seen)


# -- writes ----------------------------------------------------------------------------------------------------------------

cdef inline uint32_t _version_of(const TableState* table, int64_t key) noexcept nogil:
    return word_of(table, key) // WORD_VERSION_ONE


cdef inline uint32_t* _mark_of(TableState* table, Snapshot* snapshot, int64_t key) noexcept nogil:
    return &snapshot.marks[table.places[key].slot]


cdef char* set_apart(TableState* table, Snapshot* snapshot, int64_t key, bint is_new) noexcept nogil:
    cdef uint32_t* mark = _mark_of(table, snapshot, key)
    if is_new:
        if mark[0] == MARK_UNSEEN:
            mark[0] = _new_copy(table, snapshot, key, row_of(table, table.places[key].slot), _version_of(table, key))
        return NULL
    if mark[0] == MARK_UNSEEN or mark[0] == MARK_DONE or is_planted(MUTATION_LATE_WRITE_LOST):
        return NULL
    snapshot.copied_version[mark[0] - 1] = UNKNOWN_VERSION           # it is no row's any more
    return _copy_of(snapshot, mark[0])


cdef inline char* _set_apart_here(TableState* table, Snapshot* snapshot, int64_t key) noexcept nogil:
    return set_apart(table, snapshot, key, load_relaxed(&snapshot.cut_here) != 0)


cdef void push_apart(TableState* table, Snapshot* snapshot, int64_t key, const char* delta) noexcept nogil:
    cdef char* copy = _set_apart_here(table, snapshot, key)
    if copy != NULL:
        table.add(copy, delta, table.row_items)


cdef void set_value_apart(
        TableState* table, Snapshot* snapshot, int64_t key, const char* value, size_t size_bytes) noexcept nogil:
    cdef char* copy = _set_apart_here(table, snapshot, key)
    if copy != NULL:
        copy_row(copy, value, size_bytes)


cdef void step_apart(TableState* table, Snapshot* snapshot, int64_t key, const char* gradient, double lr) noexcept nogil:
    cdef char* copy = _set_apart_here(table, snapshot, key)
    if copy != NULL:
        table.optimiser.step(copy, gradient, table.row_items, table.optimiser, lr)


# -- rows that move --------------------------------------------------------------------------------------------------------

cdef uint8_t leave_apart(TableState* table, int64_t key, char* copy) noexcept nogil:
    cdef Snapshot* snapshot = table.snapshot
    cdef uint32_t* mark = _mark_of(table, table.snapshot, key)
    if mark[0] == MARK_DONE:
        return RESULT_SAVED
    if snapshot.sealed:
        if mark[0] == MARK_UNSEEN:
            _new_copy(table, snapshot, key, row_of(table, table.places[key].slot), _version_of(table, key))
        return RESULT_SAVED
    snapshot.rows -= 1
    if mark[0] == MARK_UNSEEN or is_planted(MUTATION_COPY_LEFT_OUT):
        return 0
    _take_copy(table, mark[0], copy, NULL)
    return RESULT_KEPT


cdef void arrive_apart(TableState* table, int64_t key, uint8_t apart, const char* copy) noexcept nogil:
    cdef Snapshot* snapshot = table.snapshot
    # A rank whose part in the save is over says nothing of it with the row.
    if apart & RESULT_SAVED and not is_planted(MUTATION_SAVED_TWICE) or snapshot.is_final:
        _mark_of(table, table.snapshot, key)[0] = MARK_DONE
        return
    snapshot.rows += 1
    _mark_of(table, table.snapshot, key)[0] = (
        _new_copy(table, snapshot, key, copy, UNKNOWN_VERSION) if apart & RESULT_KEPT else <uint32_t>MARK_UNSEEN)


# -- rows for the checkpoint -----------------------------------------------------------------------------------------------

cdef inline bint _enter_owned(TableState* table, int64_t key, uint32_t* seen) noexcept nogil:
    """Locks the key's word if it is owned here. Of a key that is not here the word is the engine's alone."""
    while True:
        seen[0] = read_unlocked(&table.places[key].word)
        if not seen[0] & WORD_HERE or state_of(seen[0]) != STATE_OWNED:
            return False
        if try_lock(&table.places[key].word, seen[0]):
            return True


cdef inline bint _enter_slot(TableState* table, int64_t slot, int32_t* key, uint32_t* word) noexcept nogil:
    """Locks the word of the key whose row, owned here, lies in the slot; False: there is none."""
    key[0] = load_relaxed_i32(&table.key_of[slot])
    if key[0] < 0 or not _enter_owned(table, key[0], word):
        return False
    if table.places[key[0]].slot == slot:
        return True
    unlock_unchanged(&table.places[key[0]].word, word[0])
    return False


cdef inline bint _enter_slot_home(TableState* table, int64_t slot, int32_t* key, uint32_t* word) noexcept nogil:
    """The same, with the row in ``rows``."""
    while _enter_slot(table, slot, key, word):
        if table.tier == NULL or is_home(table, &table.places[key[0]], ROW_READ):
            return True
        unlock_unchanged(&table.places[key[0]].word, word[0])
        table.tier.bring_home(table, key[0])
    return False


cdef inline bint _is_unchanged(uint32_t version, const uint32_t* seen, int64_t key) noexcept nogil:
    return version != UNKNOWN_VERSION and seen[key] == version + 1


cdef bint _take_slot(TableState* table, int64_t slot, int32_t* key_out, char* out, uint32_t* seen) noexcept nogil:
    cdef int32_t key
    cdef uint32_t word
    cdef uint32_t* mark
    cdef bint taken
    if not _enter_slot_home(table, slot, &key, &word):
        return False
    mark = _mark_of(table, table.snapshot, key)
    taken = mark[0] != MARK_DONE
    if taken:
        key_out[0] = key
        if mark[0] == MARK_UNSEEN:
            copy_row(out, row_of(table, <int32_t>slot), table.stored_bytes)
            if seen != NULL:
                seen[key] = word // WORD_VERSION_ONE + 1
        else:
            _take_copy(table, mark[0], out, seen)
        mark[0] = MARK_DONE
    unlock_unchanged(&table.places[key].word, word)
    return taken


cdef bint _take_copied(TableState* table, uint32_t mark, int32_t* key_out, char* out, uint32_t* seen) noexcept nogil:
    """A copy, of a row that is owned here still."""
    cdef int32_t key = load_relaxed_i32(&table.snapshot.copied_key[mark - 1])
    cdef uint32_t word
    cdef bint taken
    if key < 0 or not _enter_owned(table, key, &word):
        return False
    taken = _mark_of(table, table.snapshot, key)[0] == mark
    if taken:
        _take_copy(table, mark, out, seen)
        _mark_of(table, table.snapshot, key)[0] = MARK_DONE
        key_out[0] = key
    unlock_unchanged(&table.places[key].word, word)
    return taken


cdef int64_t _take_copies(TableState* table, int64_t most, int32_t* keys, char* rows, uint32_t* seen) noexcept nogil:
    cdef Snapshot* snapshot = table.snapshot
    cdef uint32_t touched = load_acquire(&snapshot.copies_touched)
    cdef uint32_t _looked
    cdef int64_t taken = 0
    for _looked in range(touched):
        if taken == most:
            break
        snapshot.next_copy = snapshot.next_copy % touched + 1
        taken += _take_copied(table, snapshot.next_copy, &keys[taken], rows + taken * table.stored_bytes, seen)
    return taken


cdef int64_t take_rows(TableState* table, int64_t most, int32_t* keys, char* rows, uint32_t* seen) noexcept nogil:
    cdef Snapshot* snapshot = table.snapshot
    cdef int64_t taken = 0
    if <size_t>snapshot.copies_held * snapshot.stride_bytes > MOST_COPIES_BYTES:
        taken = _take_copies(table, most, keys, rows, seen)
    while taken < most and snapshot.next_slot < load_relaxed_i64(&table.slots_touched):
        taken += _take_slot(table, snapshot.next_slot, &keys[taken], rows + taken * table.stored_bytes, seen)
        snapshot.next_slot += 1
    return taken


cdef int64_t take_left_rows(TableState* table, int64_t most, int32_t* keys, char* rows, uint32_t* seen) noexcept nogil:
    cdef Snapshot* snapshot = table.snapshot
    cdef uint32_t end = min(snapshot.copies_touched, snapshot.next_left + LOOKED_AT_ONCE)
    cdef uint32_t mark
    cdef int64_t taken = 0
    while taken < most and snapshot.next_left < end:
        snapshot.next_left += 1
        mark = snapshot.next_left
        if snapshot.copied_key[mark - 1] >= 0:
            keys[taken] = snapshot.copied_key[mark - 1]
            _take_copy(table, mark, rows + taken * table.stored_bytes, seen)
            taken += 1
    return taken


cdef bint all_left_taken(const TableState* table) noexcept nogil:
    return table.snapshot.next_left >= table.snapshot.copies_touched


# -- rows that have changed ------------------------------------------------------------------------------------------------

cdef int64_t skip_unchanged(TableState* table, int64_t first, int64_t end, const uint32_t* seen) noexcept nogil:
    cdef int64_t slot, skipped = 0
    cdef int32_t key
    cdef uint32_t word
    cdef uint32_t* mark
    for slot in range(first, min(end, load_relaxed_i64(&table.slots_touched))):
        if not _enter_slot(table, slot, &key, &word):
            continue
        mark = _mark_of(table, table.snapshot, key)
        if mark[0] == MARK_UNSEEN and _is_unchanged(word // WORD_VERSION_ONE, seen, key):
            mark[0] = MARK_DONE
            skipped += 1
        elif mark[0] != MARK_UNSEEN and mark[0] != MARK_DONE and _is_unchanged(
                table.snapshot.copied_version[mark[0] - 1], seen, key):
            _free_copy(table.snapshot, mark[0])
            mark[0] = MARK_DONE
            skipped += 1
        unlock_unchanged(&table.places[key].word, word)
    return skipped


cdef int64_t skip_unchanged_left(TableState* table, uint32_t first, uint32_t end, const uint32_t* seen) noexcept nogil:
    cdef Snapshot* snapshot = table.snapshot
    cdef uint32_t mark, word
    cdef int32_t key
    cdef int64_t skipped = 0
    cdef bint lies_here
    for mark in range(first + 1, min(end, load_acquire(&snapshot.copies_touched)) + 1):
        key = load_relaxed_i32(&snapshot.copied_key[mark - 1])
        if key < 0:
            continue
        lies_here = False
        if _enter_owned(table, key, &word):
            lies_here = _mark_of(table, table.snapshot, key)[0] == mark
            unlock_unchanged(&table.places[key].word, word)
        if not lies_here and _is_unchanged(snapshot.copied_version[mark - 1], seen, key):
            _free_copy(snapshot, mark)
            skipped += 1
    return skipped


cdef void begin_slots(const TableState* table, SlotCursor* at) noexcept nogil:
    at.slot = 0
    at.times_packed = load_acquire_i64(&table.times_packed)


cdef int64_t take_changed(
        TableState* table, SlotCursor* at, int64_t most, int64_t* keys, char* rows, uint32_t* seen) noexcept nogil:
    cdef int64_t taken = 0
    cdef int32_t key
    cdef uint32_t word
    while taken < most:
        if at.slot >= load_relaxed_i64(&table.slots_touched):
            if at.times_packed == load_acquire_i64(&table.times_packed):
                break
            begin_slots(table, at)
            continue
        if _enter_slot_home(table, at.slot, &key, &word):
            if not _is_unchanged(word // WORD_VERSION_ONE, seen, key):
                copy_row(rows + taken * table.stored_bytes, row_of(table, table.places[key].slot), table.stored_bytes)
                seen[key] = word // WORD_VERSION_ONE + 1
                keys[taken] = key
                taken += 1
            unlock_unchanged(&table.places[key].word, word)
        at.slot += 1
    return taken
