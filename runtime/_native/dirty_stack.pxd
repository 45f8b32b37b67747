"""Which keys were written here and must be told to other ranks: stacks of a table, without a lock.

Guarantees
    * A written key is on its stack, or whoever has taken it from there sees the write when it looks at the row.
    * A key is on its stack at most once; so marking one again costs a load.
``rows`` marks keys, from any thread, the key's word LOCKED; management alone takes them (engine lock held).

A stack is a list through memory: who walks it waits for each key's entry before it knows the next. There are DIRTY_STACKS of
them, by the key's last bits, which are walked side by side, so that as many entries are on their way at a time.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.foundation.primitives cimport (
    cas_release_i32, exchange_acquire_i32, load_relaxed, load_relaxed_i32, prefetch_write, store_relaxed_i32,
)
from intentpm.runtime._native.state cimport WORD_HERE, lock_word, unlock_unchanged
from intentpm.runtime._native.table_state cimport DIRTY_STACKS, TableState

# In dirty_next and dirty_heads; 0 is "not dirty" so that fresh memory need not be written, and keys are stored plus 2.
cdef enum:
    NOT_DIRTY = 0
    END_OF_DIRTY = 1


cdef inline void init_dirty(TableState* table) noexcept nogil:
    cdef uint32_t stack
    for stack in range(DIRTY_STACKS):
        table.dirty_heads[stack] = END_OF_DIRTY


cdef inline void mark_dirty(TableState* table, int64_t key) noexcept nogil:
    cdef int32_t* top = &table.dirty_heads[<uint64_t>key % DIRTY_STACKS]
    cdef int32_t head
    if load_relaxed_i32(&table.dirty_next[key]) != NOT_DIRTY:
        return
    # The engine takes the whole stack at once, so a key cannot be popped and pushed again behind this loop's back.
    head = load_relaxed_i32(top)
    while True:
        store_relaxed_i32(&table.dirty_next[key], head)
        if cas_release_i32(top, &head, <int32_t>(<uint32_t>key + 2)):
            return


cdef inline bint is_dirty(const TableState* table) noexcept nogil:
    cdef uint32_t stack
    for stack in range(DIRTY_STACKS):
        if load_relaxed_i32(&table.dirty_heads[stack]) != END_OF_DIRTY:
            return True
    return False


cdef inline void take_dirty(TableState* table, vector[uint32_t]& keys) noexcept nogil:
    """Moves all into ``keys``, and asks for their places. Each is to be forgotten before its row is looked at."""
    cdef int32_t next[DIRTY_STACKS]
    cdef uint32_t stack, key
    cdef bint more = False
    keys.clear()
    for stack in range(DIRTY_STACKS):
        next[stack] = load_relaxed_i32(&table.dirty_heads[stack])
        if next[stack] != END_OF_DIRTY:
            next[stack] = exchange_acquire_i32(&table.dirty_heads[stack], END_OF_DIRTY)
            more = True
    while more:
        more = False
        for stack in range(DIRTY_STACKS):
            if next[stack] != END_OF_DIRTY:
                key = <uint32_t>next[stack] - 2
                prefetch_write(&table.places[key])
                keys.push_back(key)
                next[stack] = load_relaxed_i32(&table.dirty_next[key])
                more = True


cdef inline void forget_dirty(TableState* table, int64_t key) noexcept nogil:
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
