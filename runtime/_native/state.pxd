"""The slot word: who may read and write one row, and what the row is.

A slot is a place for one row in a table's slab. Its 32-bit word is the row's sequence lock and state in one:

    bit 0       LOCKED    a writer is inside: readers wait, writers queue by compare-and-swap
    bits 1-2    STATE     FREE, OWNED or REPLICA
    bit 3       SHARED    OWNED only: other ranks hold replicas, so writes must be marked dirty for them
    bits 4-31   VERSION   grows each time the row, the state or the key bound to the slot changed (28 bits, wraps)

Readers copy the row between two loads of the word and start over when it changed (Guarantee: no torn row, invariant 2 of
DESIGN section 3). Writers hold LOCKED for one row at a time and take no second lock, so they cannot deadlock.

State of a key on a rank (``TableState.slot[key]`` and the word of that slot):

    ABSENT     slot == KEY_ABSENT
    REQUESTED  slot == KEY_REQUESTED: asked for, on its way; remote requests for it are parked
    OWNED, REPLICA   slot >= 0 and STATE of its word

    ABSENT -intent due-> REQUESTED -granted-> REPLICA | OWNED;  REPLICA -relocated here-> OWNED;
    REPLICA -intent over, last delta acknowledged-> ABSENT;  OWNED -relocated away-> ABSENT (with forward pointer)
"""

from libc.stdint cimport uint32_t

from intentpm.runtime._native.primitives cimport back_off, cas_acquire, fence_release, load_acquire, store_release


cdef enum:
    KEY_ABSENT = -1
    KEY_REQUESTED = -2

# A key of a table, where keys of several tables are gathered.
cdef struct KeyRef:
    uint32_t table
    uint32_t key

cdef enum SlotState:
    SLOT_FREE = 0
    SLOT_OWNED = 1
    SLOT_REPLICA = 2

cdef enum:
    WORD_LOCKED = 1
    WORD_STATE_SHIFT = 1
    WORD_STATE_MASK = 3 << 1
    WORD_SHARED = 1 << 3
    WORD_VERSION_ONE = 1 << 4


cdef inline SlotState state_of(uint32_t word) noexcept nogil:
    return <SlotState>((word & WORD_STATE_MASK) >> WORD_STATE_SHIFT)


cdef inline uint32_t with_state(uint32_t word, SlotState state) noexcept nogil:
    """The same word in another state, not shared."""
    return (word & ~<uint32_t>(WORD_STATE_MASK | WORD_SHARED)) | (<uint32_t>state << WORD_STATE_SHIFT)


cdef inline bint is_later(uint32_t version, uint32_t other) noexcept nogil:
    """Of two versions: they wrap, and never lie half the range apart."""
    return ((version - other) & 0xfffffff) - 1 < 0x7ffffff


cdef inline uint32_t continue_version(uint32_t word, uint32_t version) noexcept nogil:
    """A word with the later one of two versions: the slot's and that of the row it is given. The slot's must not fall back:

    1. reader: sees (OWNED, version 5) and its key, and begins to copy the row
    2. engine: the key leaves; the slot is bound to another key, whose row brings version 5 from its former owner
    3. reader: ends its copy, of the other key's row, and finds the word as it was.
    """
    return (version if is_later(version, word // WORD_VERSION_ONE) else word // WORD_VERSION_ONE) * WORD_VERSION_ONE


cdef inline uint32_t read_unlocked(const uint32_t* word) noexcept nogil:
    """Waits until no writer is inside; returns the word. Writers hold it for one row, so the wait is bounded by theirs."""
    cdef uint32_t seen = load_acquire(word)
    cdef unsigned int turns = 0
    while seen & WORD_LOCKED:
        back_off(turns)
        seen = load_acquire(word)
    return seen


cdef inline bint try_lock_slot(uint32_t* word, uint32_t seen) noexcept nogil:
    """Enters as the one writer when the word is still ``seen`` (unlocked)."""
    if not cas_acquire(word, seen, seen | WORD_LOCKED):
        return False
    # Acquiring does not keep later writes behind this one (on ARM, say): without the fence a reader could copy half of a new
    # row between two looks at a word that does not show LOCKED yet.
    fence_release()
    return True


cdef inline uint32_t lock_slot(uint32_t* word) noexcept nogil:
    """Enters as the one writer; returns the word as it was (unlocked)."""
    cdef uint32_t seen
    while True:
        seen = read_unlocked(word)
        if try_lock_slot(word, seen):
            return seen


cdef inline void unlock_changed(uint32_t* word, uint32_t seen) noexcept nogil:
    """Leaves after a change: ``seen`` (possibly with another state) at the next version."""
    store_release(word, seen + WORD_VERSION_ONE)


cdef inline void unlock_unchanged(uint32_t* word, uint32_t seen) noexcept nogil:
    store_release(word, seen)
