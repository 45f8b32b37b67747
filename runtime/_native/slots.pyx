"""Slots; ``slots.pxd`` is the contract."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memset
from libcpp.algorithm cimport nth_element, sort

from intentpm.foundation.primitives cimport (
    copy_row, fence_release, prefetch_write, store_relaxed, store_relaxed_i32, store_relaxed_i64, store_release_i64,
)
from intentpm.runtime._native.apart cimport leave_apart
from intentpm.runtime._native.replicas cimport is_written
from intentpm.runtime._native.row_place cimport ROW_READ, lock_row
from intentpm.runtime._native.slabs cimport give_back_holdings, give_back_pool, give_back_slots
from intentpm.runtime._native.state cimport (
    STATE_ABSENT, STATE_REPLICA, WORD_VERSION_ONE, KeyPlace, KeyState, as_owned, lock_word, unlock_changed, unlock_unchanged,
    with_state,
)
from intentpm.runtime._native.table_state cimport ReplicaRecord, TableState, prefetch_row, row_of, word_of

cdef enum:
    FREE_AHEAD = 8               # slots, of those that are bound next


cdef inline void _prefetch_free(const TableState* table, int32_t slot) noexcept nogil:
    prefetch_row(row_of(table, slot), table.stored_bytes, True)
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
    if table.tier != NULL:
        table.tier.where[slot] = 0
    store_relaxed_i32(&table.key_of[slot], <int32_t>key)
    store_relaxed_i32(&table.places[key].slot, slot)
    if slot == table.slots_touched:
        store_release_i64(&table.slots_touched, slot + 1)    # to who looks through the slots without the lock
    return slot


cdef void publish(TableState* table, int64_t key, KeyState state) noexcept nogil:
    unlock_changed(&table.places[key].word, with_state(word_of(table, key), state))
    if table.tier != NULL and table.tier.lacks != NULL:
        table.tier.lacks(table, key)


cdef void publish_owned(TableState* table, int64_t key, uint32_t version, bint shared) noexcept nogil:
    table.rows_owned += 1
    unlock_changed(&table.places[key].word, as_owned(word_of(table, key), version, shared))
    if table.tier != NULL and table.tier.lacks != NULL:
        table.tier.lacks(table, key)


cdef void change_state(TableState* table, int64_t key, KeyState state) noexcept nogil:
    store_relaxed(&table.places[key].word, with_state(word_of(table, key), state))


cdef void _unbind(TableState* table, KeyPlace* place, uint32_t seen) noexcept nogil:
    """Frees the slot of a key whose word is LOCKED and was ``seen``; leaves."""
    store_relaxed_i32(&table.key_of[place.slot], -1)
    table.free_slots[table.free_count] = place.slot
    table.free_count += 1
    store_relaxed_i64(&table.slots_used, table.slots_used - 1)
    unlock_changed(&place.word, with_state(seen, STATE_ABSENT))


cdef bint drop_replica(TableState* table, int64_t key) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    if is_written(&table.replicas[place.slot]):
        unlock_unchanged(&place.word, seen)
        return False
    _unbind(table, place, seen)
    return True


cdef void _give_row(TableState* table, int64_t key, char* out, uint8_t* apart) noexcept nogil:
    """Of an owned key whose word is LOCKED: the row, and what a checkpoint needs of it, go to the next owner."""
    copy_row(out, row_of(table, table.places[key].slot), table.stored_bytes)
    apart[0] = leave_apart(table, key, out + table.stored_bytes) if table.snapshot != NULL else <uint8_t>0
    table.rows_owned -= 1


cdef uint32_t move_out(TableState* table, int64_t key, char* out, uint8_t* apart) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_row(table, key, ROW_READ)
    _give_row(table, key, out, apart)
    _unbind(table, place, seen)
    return seen // WORD_VERSION_ONE


cdef uint32_t keep_as_replica(TableState* table, int64_t key, char* out, uint8_t* apart) noexcept nogil:
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_row(table, key, ROW_READ)
    _give_row(table, key, out, apart)
    table.replicas[place.slot].seen_version = seen // WORD_VERSION_ONE
    unlock_changed(&place.word, with_state(seen, STATE_REPLICA))
    return seen // WORD_VERSION_ONE


cdef void _move_row(TableState* table, int64_t key, int32_t to) noexcept nogil:
    """Of a key that is here, owned or a replica, into a free slot that is among ``free_slots`` no more."""
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    cdef int32_t old = place.slot
    copy_row(row_of(table, to), row_of(table, old), table.stored_bytes)
    table.replicas[to] = table.replicas[old]
    memset(&table.replicas[old], 0, sizeof(ReplicaRecord))
    table.holdings_at[to] = table.holdings_at[old]
    store_relaxed_i32(&table.key_of[old], -1)
    store_relaxed_i32(&table.key_of[to], <int32_t>key)
    store_relaxed_i32(&place.slot, to)
    unlock_changed(&place.word, seen)    # as bind_slot: who copies from the old slot finds another word


cdef int64_t pack_slots(TableState* table, int64_t most) noexcept nogil:
    cdef int64_t slot = table.slots_touched - 1
    cdef int64_t lowest = 0
    cdef int64_t usable = min(most, table.free_count)    # the lowest free slots
    cdef int32_t key
    if table.free_count == 0 or table.snapshot != NULL or table.tier != NULL:
        return 0
    if usable < table.free_count:
        nth_element(table.free_slots, table.free_slots + usable, table.free_slots + table.free_count)
    sort(table.free_slots, table.free_slots + usable)
    store_release_i64(&table.times_packed, table.times_packed + 1)
    while lowest < usable and table.free_slots[lowest] < slot:
        key = table.key_of[slot]
        if key >= 0:
            _move_row(table, key, table.free_slots[lowest])
            table.free_slots[lowest] = <int32_t>slot
            lowest += 1
        slot -= 1
    table.slots_bound_below = 0
    return trim_slots(table, 1)


cdef int64_t trim_slots(TableState* table, size_t least_bytes) noexcept nogil:
    cdef int64_t touched = table.slots_touched
    cdef int64_t bound_below = table.slots_bound_below
    cdef int64_t end = touched
    cdef int64_t i, kept = 0
    table.slots_bound_below = 0
    if table.holdings_used == 0:
        give_back_holdings(table)
    if table.slots_used == table.rows_owned:     # without a copy nobody has anything to keep for its owner
        give_back_pool(&table.pending)
        give_back_pool(&table.kept)
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
    give_back_slots(table, end, kept)
    table.free_count = kept
    store_relaxed_i64(&table.slots_touched, end)
    return touched - end
