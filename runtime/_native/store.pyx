"""The local store; ``store.pxd`` is the contract."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.math cimport INFINITY, sqrt
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from libcpp.vector cimport vector
from posix.mman cimport (
    MADV_DONTNEED, MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, madvise, mmap,
    munmap,
)

import numpy as np

from intentpm.foundation.errors import DtypeError, KeyRangeError, MemoryBudgetError, ShapeError

from intentpm.runtime._native.directory cimport home_rank, known_owner
from intentpm.foundation.primitives cimport (
    cas_release_i32, copy_row, exchange_acquire_i32, fence_acquire, fence_release, let_pass, load_acquire, load_relaxed,
    load_relaxed_i32, load_relaxed_i64, optimistic_reads, prefetch_read, prefetch_write, row_add_for, row_square_for,
    store_relaxed, store_relaxed_i32, store_relaxed_i64, store_relaxed_u64, store_release_i64, void_apart, void_per_cpu,
)
from intentpm.runtime._native.state cimport (
    STATE_ABSENT, STATE_OWNED, STATE_REPLICA, WORD_HERE, WORD_LOCKED, WORD_SHARED, WORD_VERSION_ONE, KeyPlace, KeyState,
    continue_version, lock_word, read_unlocked, state_of, try_lock, unlock_changed, unlock_unchanged, with_state,
)

cdef enum:
    # Keys ahead in a batch; measured: docs/performance-kernels.md. A row is prefetched when its key's place is known; the
    # places are prefetched earlier still.
    ROWS_AHEAD = 32
    WRITTEN_ROWS_AHEAD = 16      # what is fetched but not yet written is taken away from another thread that writes it
    PLACES_AHEAD = 64
    FREE_AHEAD = 8               # slots, of those that are allocated next
    HUGE_PAGE_BYTES = 2 << 20
    PAGE_BYTES = 64 << 10        # of the largest that systems use but for huge ones

cdef enum AccessKind:
    ACCESS_ROW_PULL
    ACCESS_ROW_PUSH
    ACCESS_ROW_SET


# -- what a replica's writes leave for the owner (the key's word is LOCKED) ------------------------------------------------

cdef uint32_t _allocate_pending(TableState* table) noexcept nogil:
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


cdef void _free_pending(TableState* table, ReplicaRecord* replica) noexcept nogil:
    cdef uint32_t name = replica.pending & ~<uint32_t>PENDING_SET
    cdef uint32_t seen = lock_word(&table.pending_lock)
    (<uint32_t*>pending_row(table, name))[0] = table.pending_free
    table.pending_free = name
    unlock_unchanged(&table.pending_lock, seen)
    store_relaxed(&replica.pending, 0)


cdef void _add_pending(TableState* table, ReplicaRecord* replica, const char* delta) noexcept nogil:
    cdef uint32_t name = replica.pending
    if name:
        table.add(pending_row(table, name), delta, table.row_items)
        return
    name = _allocate_pending(table)
    copy_row(pending_row(table, name), delta, table.row_bytes)
    store_relaxed(&replica.pending, name)


cdef void _set_pending(TableState* table, ReplicaRecord* replica, const char* value) noexcept nogil:
    cdef uint32_t name = replica.pending
    if not name:
        name = _allocate_pending(table)
    copy_row(pending_row(table, name), value, table.row_bytes)
    store_relaxed(&replica.pending, name | PENDING_SET)


cdef void _put_on_top(TableState* table, int32_t slot, const char* row) noexcept nogil:
    """The row becomes ``row`` plus what is pending (invariant I4)."""
    cdef uint32_t name = table.replicas[slot].pending
    if name & PENDING_SET:
        copy_row(row_of(table, slot), pending_row(table, name), table.row_bytes)
        return
    copy_row(row_of(table, slot), row, table.row_bytes)
    if name:
        table.add(row_of(table, slot), pending_row(table, name), table.row_items)


# -- dirty keys ----------------------------------------------------------------------------------------------------------

cdef inline void _mark_dirty(TableState* table, int64_t key) noexcept nogil:
    cdef int32_t head
    if load_relaxed_i32(&table.dirty_next[key]) != NOT_DIRTY:
        return
    # The engine takes the whole stack at once, so a key cannot be popped and pushed again behind this loop's back.
    head = load_relaxed_i32(&table.dirty_head)
    while True:
        store_relaxed_i32(&table.dirty_next[key], head)
        if cas_release_i32(&table.dirty_head, &head, <int32_t>(<uint32_t>key + 2)):
            return


cdef bint is_dirty(const TableState* table) noexcept nogil:
    return load_relaxed_i32(&table.dirty_head) != END_OF_DIRTY


cdef void take_dirty(TableState* table, vector[uint32_t]& keys) noexcept nogil:
    cdef int32_t next = END_OF_DIRTY
    cdef uint32_t key
    keys.clear()
    if is_dirty(table):
        next = exchange_acquire_i32(&table.dirty_head, END_OF_DIRTY)
    while next != END_OF_DIRTY:
        key = <uint32_t>next - 2
        prefetch_write(&table.places[key])
        keys.push_back(key)
        next = load_relaxed_i32(&table.dirty_next[key])


cdef void forget_dirty(TableState* table, int64_t key) noexcept nogil:
    # Under the key's lock: a write is either seen by whoever looks at the row next, or marks it dirty anew. A key that has
    # left since has no writers.
    cdef uint32_t* word = &table.places[key].word
    cdef uint32_t seen = load_relaxed(word)
    if not seen & WORD_HERE:
        store_relaxed_i32(&table.dirty_next[key], NOT_DIRTY)
        return
    seen = lock_word(word)
    store_relaxed_i32(&table.dirty_next[key], NOT_DIRTY)
    unlock_unchanged(word, seen)


# -- replicas and relocation (engine lock held) -----------------------------------------------------------------------------

cdef uint32_t read_row(TableState* table, int64_t key, char* out) noexcept nogil:
    # Writers only hold the word for one row, so locking it to read is as short.
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    copy_row(out, row_of(table, place.slot), table.row_bytes)
    unlock_unchanged(&place.word, seen)
    return seen // WORD_VERSION_ONE


cdef int take_pending(TableState* table, int64_t key, char* out) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    cdef uint32_t name = table.replicas[place.slot].pending
    if name:
        copy_row(out, pending_row(table, name), table.row_bytes)
        _free_pending(table, &table.replicas[place.slot])
    unlock_unchanged(&place.word, seen)
    return 0 if name == 0 else 2 if name & PENDING_SET else 1


cdef void refresh_replica(TableState* table, int64_t key, const char* row) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    _put_on_top(table, place.slot, row)
    unlock_changed(&place.word, seen)


cdef void promote_replica(TableState* table, int64_t key, const char* row, uint32_t version) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    _put_on_top(table, place.slot, row)
    if table.replicas[place.slot].pending:
        _free_pending(table, &table.replicas[place.slot])
    unlock_changed(&place.word, with_state(continue_version(seen, version), STATE_OWNED))


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


cdef void apply_write(TableState* table, int64_t key, const char* row, bint is_set) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    if is_set:
        copy_row(row_of(table, place.slot), row, table.row_bytes)
    else:
        table.add(row_of(table, place.slot), row, table.row_items)
    unlock_changed(&place.word, seen)


cdef bint drop_replica(TableState* table, int64_t key) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    if table.replicas[place.slot].pending:
        unlock_unchanged(&place.word, seen)
        return False
    _unbind(table, place, seen)
    return True


cdef uint32_t move_out(TableState* table, int64_t key, char* out) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    copy_row(out, row_of(table, place.slot), table.row_bytes)
    _unbind(table, place, seen)
    return seen // WORD_VERSION_ONE


cdef void mark_shared(TableState* table, int64_t key, bint shared) noexcept nogil:
    cdef uint32_t* word = &table.places[key].word
    cdef uint32_t seen = lock_word(word)
    # A new version: a reader that saw the old word starts over, and a writer cannot have missed the bit.
    unlock_changed(word, (seen | WORD_SHARED) if shared else (seen & ~<uint32_t>WORD_SHARED))


# -- one row -------------------------------------------------------------------------------------------------------------
# Each access is one attempt. It gives up (STATE_ABSENT) when a writer is inside or the key is not here; ``*_row_atomic`` repeat
# it until it succeeds or the key is not here.

cdef inline bint _enter(KeyPlace* place, uint32_t* seen) noexcept nogil:
    seen[0] = load_relaxed(&place.word)
    return (seen[0] & (WORD_HERE | WORD_LOCKED)) == WORD_HERE and try_lock(&place.word, seen[0])


cdef inline KeyState _try_pull(TableState* table, int64_t key, char* out, size_t row_bytes) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen
    if not optimistic_reads:
        if not _enter(place, &seen):
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


cdef inline void _leave_written(TableState* table, int64_t key, uint32_t seen) noexcept nogil:
    if seen & WORD_SHARED or state_of(seen) == STATE_REPLICA:
        _mark_dirty(table, key)
    unlock_changed(&table.places[key].word, seen)


cdef inline KeyState _try_push(TableState* table, int64_t key, const char* delta) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen
    if not _enter(place, &seen):
        return STATE_ABSENT
    table.add(row_of(table, place.slot), delta, table.row_items)
    if state_of(seen) == STATE_REPLICA:
        _add_pending(table, &table.replicas[place.slot], delta)
    _leave_written(table, key, seen)
    return state_of(seen)


cdef inline KeyState _try_set(TableState* table, int64_t key, const char* value) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen
    if not _enter(place, &seen):
        return STATE_ABSENT
    copy_row(row_of(table, place.slot), value, table.row_bytes)
    if state_of(seen) == STATE_REPLICA:
        _set_pending(table, &table.replicas[place.slot], value)
    _leave_written(table, key, seen)
    return state_of(seen)


cdef KeyState pull_row_atomic(TableState* table, int64_t key, char* out) noexcept nogil:
    cdef KeyState state = STATE_ABSENT
    while state == STATE_ABSENT and read_unlocked(&table.places[key].word) & WORD_HERE:
        state = _try_pull(table, key, out, table.row_bytes)
    return state


cdef KeyState push_row_atomic(TableState* table, int64_t key, const char* delta) noexcept nogil:
    cdef KeyState state = STATE_ABSENT
    while state == STATE_ABSENT and read_unlocked(&table.places[key].word) & WORD_HERE:
        state = _try_push(table, key, delta)
    return state


cdef KeyState set_row_atomic(TableState* table, int64_t key, const char* value) noexcept nogil:
    cdef KeyState state = STATE_ABSENT
    while state == STATE_ABSENT and read_unlocked(&table.places[key].word) & WORD_HERE:
        state = _try_set(table, key, value)
    return state


# -- batches -------------------------------------------------------------------------------------------------------------

cdef int64_t check_keys(const TableState* table, const int64_t* keys, int64_t count) noexcept nogil:
    # One pass without branches over all keys; the search for the culprit runs only when there is one.
    cdef int64_t i
    cdef uint64_t largest = 0
    for i in range(count):
        largest = max(largest, <uint64_t>keys[i])
    if largest < <uint64_t>table.num_keys or count == 0:
        return -1
    for i in range(count):
        if <uint64_t>keys[i] >= <uint64_t>table.num_keys:
            return i
    return -1


cdef inline void _count(AccessCounts* counts, uint64_t owned, uint64_t replica, uint64_t missed) noexcept nogil:
    store_relaxed_u64(&counts.local, counts.local + owned)
    store_relaxed_u64(&counts.replica, counts.replica + replica)
    store_relaxed_u64(&counts.remote, counts.remote + missed)


cdef inline int64_t _rows_ahead(bint for_writing) noexcept nogil:
    return WRITTEN_ROWS_AHEAD if for_writing else ROWS_AHEAD


cdef inline void _prefetch_place(const TableState* table, int64_t key, bint for_writing) noexcept nogil:
    if for_writing:
        prefetch_write(&table.places[key])
    else:
        prefetch_read(&table.places[key])


cdef inline void _approach(TableState* table, int64_t key, size_t row_bytes, bint for_writing) noexcept nogil:
    """As ``prefetch_key``; ``row_bytes`` is compiled in."""
    if is_here(table, key):
        prefetch_row(row_of(table, slot_of(table, key)), row_bytes, for_writing)


cdef inline void _look_first(
        TableState* table, const int64_t* keys, int64_t count, size_t row_bytes, bint for_writing) noexcept nogil:
    """``_look_ahead`` for the keys before any."""
    cdef int64_t i
    if count == 1:
        return
    for i in range(min(count, <int64_t>PLACES_AHEAD)):
        _prefetch_place(table, keys[i], for_writing)
    for i in range(min(count, _rows_ahead(for_writing))):
        _approach(table, keys[i], row_bytes, for_writing)


cdef inline void _look_ahead(
        TableState* table, const int64_t* keys, int64_t i, int64_t count, size_t row_bytes, bint for_writing) noexcept nogil:
    cdef int64_t ahead = _rows_ahead(for_writing)
    if i + PLACES_AHEAD < count:
        _prefetch_place(table, keys[i + PLACES_AHEAD], for_writing)
    if i + ahead < count:
        _approach(table, keys[i + ahead], row_bytes, for_writing)


cdef void_apart _settle(
        AccessKind kind, TableState* table, int64_t key, int64_t position, char* row,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    """Further attempts of the loop below, and what comes of a key that is not here; apart, so that it keeps its registers."""
    cdef KeyState state
    if kind == ACCESS_ROW_PULL:
        state = pull_row_atomic(table, key, row)
    elif kind == ACCESS_ROW_PUSH:
        state = push_row_atomic(table, key, row)
    else:
        state = set_row_atomic(table, key, row)
    if state == STATE_ABSENT:
        misses.push_back(<int32_t>position)
    _count(counts, state == STATE_OWNED, state == STATE_REPLICA, state == STATE_ABSENT)


cdef inline void _access_rows(
        AccessKind kind, TableState* table, const int64_t* keys, int64_t count, char* rows, size_t row_bytes,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    """The one loop of all batches; ``kind`` and a constant ``row_bytes`` are compiled in."""
    cdef uint64_t owned = 0, replica = 0
    cdef KeyState state
    cdef char* row = rows
    cdef int64_t i
    cdef bint for_writing = kind != ACCESS_ROW_PULL
    cdef bint met_a_writer = False
    _look_first(table, keys, count, row_bytes, for_writing)
    for i in range(count):
        _look_ahead(table, keys, i, count, row_bytes, for_writing)
        if kind == ACCESS_ROW_PULL:
            state = _try_pull(table, keys[i], row, row_bytes)
        elif kind == ACCESS_ROW_PUSH:
            state = _try_push(table, keys[i], row)
        else:
            state = _try_set(table, keys[i], row)
        owned += state == STATE_OWNED
        replica += state == STATE_REPLICA
        if state == STATE_ABSENT:
            if for_writing and not met_a_writer and is_here(table, keys[i]):
                met_a_writer = True
                let_pass()
            _settle(kind, table, keys[i], i, row, misses, counts)
        row += row_bytes
    _count(counts, owned, replica, 0)


cdef void_per_cpu _pull_rows(
        TableState* table, const int64_t* keys, int64_t count, char* out,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    """Compiled for common lengths: a row is then copied by a few moves, not by a call."""
    if table.row_bytes == 4:
        _access_rows(ACCESS_ROW_PULL, table, keys, count, out, 4, misses, counts)
    elif table.row_bytes == 64:
        _access_rows(ACCESS_ROW_PULL, table, keys, count, out, 64, misses, counts)
    elif table.row_bytes == 128:
        _access_rows(ACCESS_ROW_PULL, table, keys, count, out, 128, misses, counts)
    elif table.row_bytes == 256:
        _access_rows(ACCESS_ROW_PULL, table, keys, count, out, 256, misses, counts)
    else:
        _access_rows(ACCESS_ROW_PULL, table, keys, count, out, table.row_bytes, misses, counts)


cdef void pull_rows(
        TableState* table, const int64_t* keys, int64_t count, char* out,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    _pull_rows(table, keys, count, out, misses, counts)


cdef void push_rows(
        TableState* table, const int64_t* keys, int64_t count, const char* deltas,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    _access_rows(ACCESS_ROW_PUSH, table, keys, count, <char*>deltas, table.row_bytes, misses, counts)


cdef void set_rows(
        TableState* table, const int64_t* keys, int64_t count, const char* values,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    _access_rows(ACCESS_ROW_SET, table, keys, count, <char*>values, table.row_bytes, misses, counts)


# -- binding -------------------------------------------------------------------------------------------------------------

cdef inline void _prefetch_free(const TableState* table, int32_t slot) noexcept nogil:
    prefetch_row(row_of(table, slot), table.row_bytes, True)
    prefetch_write(&table.key_of[slot])
    prefetch_write(&table.replicas[slot])


cdef int32_t bind_slot(TableState* table, int64_t key) noexcept nogil:
    cdef int32_t slot
    if table.free_count > 0:
        table.free_count -= 1
        slot = table.free_slots[table.free_count]
        if table.free_count >= FREE_AHEAD:
            _prefetch_free(table, table.free_slots[table.free_count - FREE_AHEAD])
    else:
        slot = <int32_t>table.slots_touched
    table.slots_bound_below = max(table.slots_bound_below, <int64_t>slot + 1)
    store_relaxed_i64(&table.slots_used, table.slots_used + 1)
    fence_release()                      # readers of the key that had this slot before: state.pxd
    store_relaxed_i32(&table.key_of[slot], <int32_t>key)
    store_relaxed_i32(&table.places[key].slot, slot)
    if slot == table.slots_touched:
        store_release_i64(&table.slots_touched, slot + 1)    # to who looks through the slots without the lock
    return slot


cdef void publish(TableState* table, int64_t key, KeyState state) noexcept nogil:
    unlock_changed(&table.places[key].word, with_state(word_of(table, key), state))


cdef void publish_owned(TableState* table, int64_t key, uint32_t version) noexcept nogil:
    unlock_changed(&table.places[key].word, with_state(continue_version(word_of(table, key), version), STATE_OWNED))


cdef void change_state(TableState* table, int64_t key, KeyState state) noexcept nogil:
    store_relaxed(&table.places[key].word, with_state(word_of(table, key), state))


cdef void _unbind(TableState* table, KeyPlace* place, uint32_t seen) noexcept nogil:
    """Frees the slot of a key whose word is LOCKED and was ``seen``; leaves."""
    store_relaxed_i32(&table.key_of[place.slot], -1)
    table.free_slots[table.free_count] = place.slot
    table.free_count += 1
    store_relaxed_i64(&table.slots_used, table.slots_used - 1)
    unlock_changed(&place.word, with_state(seen, STATE_ABSENT))


cdef int64_t trim_slots(TableState* table, size_t least_bytes) noexcept nogil:
    cdef int64_t touched = table.slots_touched
    cdef int64_t bound_below = table.slots_bound_below
    cdef int64_t end = touched
    cdef int64_t i, kept = 0
    table.slots_bound_below = 0
    if <size_t>(touched - bound_below) * table.stride_bytes < least_bytes:
        return 0
    while end > bound_below and table.key_of[end - 1] < 0:
        end -= 1
    if <size_t>(touched - end) * table.stride_bytes < least_bytes:
        return 0
    for i in range(table.free_count):
        if table.free_slots[i] < end:
            table.free_slots[kept] = table.free_slots[i]
            kept += 1
    # A reader that comes too late for a row copies zeros, and then finds that its key's word has changed. What else there is of
    # a free slot is zero or not looked at.
    _give_back(table.rows, end * table.stride_bytes, _mapped_bytes(touched * table.stride_bytes), HUGE_PAGE_BYTES)
    _give_back(table.key_of, end * sizeof(int32_t), touched * sizeof(int32_t), PAGE_BYTES)
    _give_back(table.replicas, end * sizeof(ReplicaRecord), touched * sizeof(ReplicaRecord), PAGE_BYTES)
    _give_back(table.free_slots, kept * sizeof(int32_t), table.free_count * sizeof(int32_t), PAGE_BYTES)
    table.free_count = kept
    store_relaxed_i64(&table.slots_touched, end)
    return touched - end


# -- memory --------------------------------------------------------------------------------------------------------------

cdef void* _map(size_t size_bytes, bint huge) except? NULL:
    """Zeroed memory that the system commits page by page at first touch.

    huge: by pages of 2 MiB where it is large enough: a random access then rarely misses the TLB. Such memory begins and ends
    at a multiple of them, for the kernel gives none to the rest.
    """
    cdef size_t mapped_bytes = _mapped_bytes(size_bytes)
    cdef size_t slack = HUGE_PAGE_BYTES if huge and size_bytes >= HUGE_PAGE_BYTES else 0
    cdef size_t before
    cdef char* memory = <char*>mmap(
        NULL, mapped_bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if memory == <char*>MAP_FAILED:
        raise MemoryBudgetError(
            f"the system refused {size_bytes / 2**30:.1f} GiB of address space for a table: "
            "raise `ulimit -v`, set vm.overcommit_memory to 0 or 1, or use fewer or shorter rows")
    if slack == 0:
        return memory
    before = -<size_t>memory % <size_t>HUGE_PAGE_BYTES
    if before > 0:
        munmap(memory, before)
    if before < slack:
        munmap(memory + before + mapped_bytes, slack - before)
    madvise(memory + before, mapped_bytes, MADV_HUGEPAGE)
    return memory + before


cdef inline size_t _mapped_bytes(size_t size_bytes) noexcept nogil:
    """Whole huge pages for what is at least one."""
    if size_bytes < HUGE_PAGE_BYTES:
        return max(size_bytes, <size_t>1)
    return (size_bytes + HUGE_PAGE_BYTES - 1) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES


cdef void _give_back(void* memory, size_t begin, size_t end, size_t page_bytes) noexcept nogil:
    """The pages that lie in [begin, end) of an array are zero afterwards, and not resident."""
    begin = (begin + page_bytes - 1) // page_bytes * page_bytes
    end = end // page_bytes * page_bytes
    if begin < end:
        madvise(<char*>memory + begin, end - begin, MADV_DONTNEED)


cdef void _unmap(void* memory, size_t size_bytes) noexcept nogil:
    if memory != NULL:
        munmap(memory, _mapped_bytes(size_bytes))


def stride_for(row_bytes: int) -> int:
    """Bytes from one row to the next: a power of two below a cache line, whole cache lines above."""
    if row_bytes >= CACHE_LINE_BYTES:
        return (row_bytes + CACHE_LINE_BYTES - 1) // CACHE_LINE_BYTES * CACHE_LINE_BYTES
    return 1 << max(row_bytes - 1, 0).bit_length()


def _dtype_code(dtype):
    names = ("float32", "float64", "float16", "bfloat16", "int32", "int64")
    if dtype.name not in names or not dtype.isnative:
        raise DtypeError(f"a table cannot hold dtype {dtype}: use one of {', '.join(names)} in native byte order")
    return names.index(dtype.name)


def resolve_dtype(dtype) -> np.dtype:
    """numpy.dtype of a name or dtype; "bfloat16" needs the ml_dtypes package. Raises DtypeError."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise DtypeError('dtype "bfloat16" needs the package ml_dtypes: pip install ml_dtypes') from None
        dtype = ml_dtypes.bfloat16
    try:
        resolved = np.dtype(dtype)
    except TypeError as error:
        raise DtypeError(f"dtype {dtype!r} is not understood: {error}") from None
    _dtype_code(resolved)
    return resolved


cdef class Table:
    """One table as this rank sees it: the rows that live here and where every other key is.

    Made by ``ParameterManager.create_table``; pass it to a worker's calls. Any thread may read its attributes.
    """

    DTYPES = ("float32", "float64", "float16", "bfloat16", "int32", "int64")

    def __cinit__(self):
        self.state = NULL

    def __init__(self, name: str, table_id: int, num_keys: int, row_shape, dtype, rank: int, size: int):
        """Reserves address space for all rows and commits what is touched; every key is absent."""
        self.name = name
        self.table_id = table_id
        self.num_keys = num_keys
        self.row_shape = tuple(row_shape)
        self.dtype = resolve_dtype(dtype)
        if len(self.row_shape) > MAX_ROW_NDIM:
            raise ShapeError(f"table {name!r}: row_shape has {len(self.row_shape)} dimensions, at most {MAX_ROW_NDIM} work")
        self.row_ndim = len(self.row_shape)
        for axis in range(self.row_ndim):
            self.row_dims[axis] = self.row_shape[axis]
        cdef size_t items = int(np.prod(self.row_shape, dtype=np.int64))
        cdef TableState* state = <TableState*>calloc(1, sizeof(TableState))
        if state == NULL:
            raise MemoryBudgetError("out of memory")
        self.state = state
        state.table_id = table_id
        state.rank = rank
        state.size = size
        state.num_keys = num_keys
        state.row_items = items
        state.row_bytes = items * self.dtype.itemsize
        state.stride_bytes = stride_for(state.row_bytes)
        state.add = row_add_for(_dtype_code(self.dtype))
        state.square = row_square_for(_dtype_code(self.dtype))
        state.places = <KeyPlace*>_map(num_keys * sizeof(KeyPlace), True)
        state.key_of = <int32_t*>_map(num_keys * sizeof(int32_t), False)
        state.rows = <char*>_map(num_keys * state.stride_bytes, True)
        self._prepare_management()

    def __dealloc__(self):
        cdef TableState* state = self.state
        if state == NULL:
            return
        _unmap(state.places, state.num_keys * sizeof(KeyPlace))
        _unmap(state.key_of, state.num_keys * sizeof(int32_t))
        _unmap(state.rows, state.num_keys * state.stride_bytes)
        _unmap(state.records, state.num_keys * sizeof(KeyRecord))
        _unmap(state.flags, state.num_keys)
        _unmap(state.dirty_next, state.num_keys * sizeof(int32_t))
        _unmap(state.replicas, state.num_keys * sizeof(ReplicaRecord))
        _unmap(state.holders, 2 * state.num_keys * state.holder_words * sizeof(RankWord))
        _unmap(state.pending, state.num_keys * state.pending_stride)
        _unmap(state.free_slots, state.num_keys * sizeof(int32_t))
        free(state)

    cdef _prepare_management(self):
        """Arrays that only keys with intents, replicas or relocations touch; a one-rank job touches none."""
        cdef TableState* state = self.state
        cdef size_t keys = state.num_keys
        state.holder_words = (state.size + RANKS_PER_WORD - 1) // RANKS_PER_WORD
        state.pending_stride = max(<size_t>8, state.stride_bytes)
        state.dirty_head = END_OF_DIRTY
        state.records = <KeyRecord*>_map(keys * sizeof(KeyRecord), True)
        state.flags = <uint8_t*>_map(keys, False)
        state.dirty_next = <int32_t*>_map(keys * sizeof(int32_t), False)
        state.replicas = <ReplicaRecord*>_map(keys * sizeof(ReplicaRecord), False)
        state.holders = <RankWord*>_map(2 * keys * state.holder_words * sizeof(RankWord), False)
        state.pending = <char*>_map(keys * state.pending_stride, False)
        state.free_slots = <int32_t*>_map(keys * sizeof(int32_t), False)

    def home_keys(self) -> np.ndarray:
        """The keys whose home is this rank, ascending. int64 [K]."""
        cdef TableState* state = self.state
        owners = np.empty(state.num_keys, dtype=np.bool_)
        cdef unsigned char[::1] here = owners.view(np.uint8)
        cdef int64_t key
        with nogil:
            for key in range(state.num_keys):
                here[key] = home_rank(key, state.size) == state.rank
        return np.flatnonzero(owners).astype(np.int64, copy=False)

    def adopt(self, const int64_t[::1] keys, rows) -> None:
        """Makes this rank the owner of ``keys``, which are absent here.

        keys: int64 [K]. rows: [K, *row_shape] of the table's dtype, C-contiguous, or None for zeros.
        Called before the table is known to the engine, or under its lock.
        """
        cdef const unsigned char[::1] source = None
        cdef TableState* state = self.state
        cdef int64_t i
        cdef int32_t slot
        if rows is not None:
            if rows.shape != (keys.shape[0], *self.row_shape) or rows.dtype != self.dtype:
                raise ShapeError(
                    f"table {self.name!r}: initial rows have shape {rows.shape} and dtype {rows.dtype}, "
                    f"expected {(keys.shape[0], *self.row_shape)} and {self.dtype}")
            source = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        with nogil:
            for i in range(keys.shape[0]):
                slot = bind_slot(state, keys[i])
                if source is not None and state.row_bytes > 0:
                    memcpy(row_of(state, slot), &source[<size_t>i * state.row_bytes], state.row_bytes)
                publish(state, keys[i], STATE_OWNED)

    def disown(self, const int64_t[::1] keys) -> None:
        """The reverse of ``adopt``: makes ``keys``, which are here, absent; their rows are lost. int64 [K]."""
        cdef int64_t i
        for i in range(keys.shape[0]):
            drop_replica(self.state, keys[i])

    def owned_keys(self) -> np.ndarray:
        """The keys this rank owns now, ascending. int64 [K]. A snapshot; any thread."""
        return self._keys_in(STATE_OWNED)

    def replica_keys(self) -> np.ndarray:
        """The keys this rank holds replicas of now, ascending. int64 [K]. A snapshot; any thread."""
        return self._keys_in(STATE_REPLICA)

    def owners(self) -> np.ndarray:
        """This rank's last known owner of each key. uint16 [num_keys]; a snapshot."""
        owners = np.empty(self.num_keys, dtype=np.uint16)
        cdef uint16_t[::1] out = owners
        cdef int64_t key
        with nogil:
            for key in range(out.shape[0]):
                out[key] = <uint16_t>known_owner(self.state, key)
        return owners

    def epochs(self) -> np.ndarray:
        """The epoch at which this rank learned each key's owner. uint32 [num_keys]; a snapshot."""
        epochs = np.empty(self.num_keys, dtype=np.uint32)
        cdef uint32_t[::1] out = epochs
        cdef int64_t key
        with nogil:
            for key in range(out.shape[0]):
                out[key] = self.state.records[key].epoch
        return epochs

    def rows_here(self, const int64_t[::1] keys) -> np.ndarray:
        """The rows of ``keys``, which are owned or replicated here: [K, *row_shape], each as some write left it. Any thread.

        Raises KeyRangeError naming the first key that is not here.
        """
        rows = np.empty((keys.shape[0], *self.row_shape), dtype=self.dtype)
        cdef unsigned char[::1] out = rows.reshape(-1).view(np.uint8)
        cdef int64_t i
        for i in range(keys.shape[0]):
            if not 0 <= keys[i] < self.num_keys or (
                    pull_row_atomic(self.state, keys[i], <char*>&out[0] + i * self.state.row_bytes) == STATE_ABSENT):
                raise KeyRangeError(f"key {keys[i]} of table {self.name!r} has no row on rank {self.state.rank}")
        return rows

    cdef _keys_in(self, KeyState wanted):
        marks = np.empty(self.num_keys, dtype=np.bool_)
        cdef unsigned char[::1] mark = marks.view(np.uint8)
        cdef int64_t key
        with nogil:
            for key in range(mark.shape[0]):
                mark[key] = key_state(self.state, key) == wanted
        return np.flatnonzero(marks).astype(np.int64, copy=False)

    def memory(self) -> dict:
        """Bytes: ``rows`` (slots in use), ``index`` (per-key and per-slot arrays)."""
        cdef TableState* state = self.state
        return {
            "rows": load_relaxed_i64(&state.slots_used) * state.stride_bytes,
            "index": state.num_keys * sizeof(KeyPlace) + load_relaxed_i64(&state.slots_touched) * sizeof(int32_t),
        }

    def __repr__(self):
        return f"<intentpm.Table {self.name!r}: {self.num_keys} keys x {self.row_shape} {self.dtype}>"
