"""The key word: who may read and write one row, and what the row is.

Every rank has a ``KeyPlace`` per key of a table: a 32-bit word and the number of the slot where the key's row lies, if it is
here. The word is the row's sequence lock and the key's state in one:

    bit 0       LOCKED    a writer is inside: readers wait, writers queue by compare-and-swap
    bits 1-2    STATE     ABSENT, REQUESTED, REPLICA or OWNED
    bit 3       SHARED    OWNED only: other ranks hold replicas, so writes must be marked dirty for them
    bits 4-31   VERSION   grows each time the row or the state changed (28 bits, wraps)

Readers copy the row between two loads of the word and start over when it changed (Guarantee: no torn row, invariant 2 of
DESIGN section 3). Writers hold LOCKED for one row at a time and take no second lock, so they cannot deadlock.

    ABSENT -intent due-> REQUESTED -granted-> REPLICA | OWNED;  REPLICA -relocated here-> OWNED;
    REPLICA -intent over, last delta acknowledged-> ABSENT;  OWNED -relocated away-> ABSENT (with forward pointer);
    OWNED -handed over, still intended-> REPLICA (with forward pointer)

REQUESTED: asked for, on its way; remote requests for the key are parked. The engine alone changes the state, under its lock. Of
a key that is not here nobody else writes the word, and it is never LOCKED.

A slot may be bound to another key once the word of the one before says ABSENT. A reader that still copies from it finds its own
key's word changed: the row and ``slot`` are written after a release fence that follows that store (``bind_slot``), and the
reader looks at the word after an acquire fence.
"""

from libc.stdint cimport int32_t, uint32_t

from intentpm.foundation.mapped_vector cimport mapped_vector
from intentpm.foundation.primitives cimport back_off, cas_acquire, fence_release, load_acquire, store_release


# The two things every access looks at, on one cache line. All zero: absent.
cdef struct KeyPlace:
    uint32_t word                # atomic
    int32_t slot                 # atomic relaxed; of a key that is not here: any it had

# A key of a table, where keys of several tables are gathered.
cdef struct KeyRef:
    uint32_t table
    uint32_t key
    uint32_t tick                # of one that is asked for: when it is first used (holders.pxd)

ctypedef mapped_vector[KeyRef] KeyRefs

# Mirrored in runtime/events.py.
cdef enum KeyState:
    STATE_ABSENT = 0
    STATE_REQUESTED = 1
    STATE_REPLICA = 2
    STATE_OWNED = 3

cdef enum:
    WORD_LOCKED = 1
    WORD_STATE_SHIFT = 1
    WORD_STATE_MASK = 3 << 1
    WORD_HERE = 2 << 1           # REPLICA or OWNED
    WORD_SHARED = 1 << 3
    WORD_VERSION_ONE = 1 << 4
    VERSION_MASK = 0xfffffff


cdef inline KeyState state_of(uint32_t word) noexcept nogil:
    return <KeyState>((word & WORD_STATE_MASK) >> WORD_STATE_SHIFT)


cdef inline uint32_t with_state(uint32_t word, KeyState state) noexcept nogil:
    """The same word in another state, not shared."""
    return (word & ~<uint32_t>(WORD_STATE_MASK | WORD_SHARED)) | (<uint32_t>state << WORD_STATE_SHIFT)


cdef inline bint is_later(uint32_t version, uint32_t other) noexcept nogil:
    """Of two versions: they wrap, and never lie half the range apart."""
    return ((version - other) & VERSION_MASK) - 1 < VERSION_MASK // 2


cdef inline uint32_t next_version(uint32_t version) noexcept nogil:
    return (version + 1) & VERSION_MASK


cdef inline uint32_t continue_version(uint32_t word, uint32_t version) noexcept nogil:
    """A word with the later one of two versions: its own and that of the row the key is given. Its own must not fall back:

    1. reader: sees (REPLICA, version 9), and begins to copy the row
    2. engine: the replica is dropped and its slot bound to another key; the key moves here with its owner's version 5, leaves,
       and comes back as a replica, which is written up to version 9
    3. reader: ends its copy, of the other key's row, and finds the word as it was.
    """
    return (version if is_later(version, word // WORD_VERSION_ONE) else word // WORD_VERSION_ONE) * WORD_VERSION_ONE


cdef inline uint32_t as_owned(uint32_t word, uint32_t version, bint shared) noexcept nogil:
    """The word of a key that this rank owns from now on, with a row of that version. shared: others hold replicas of it."""
    return with_state(continue_version(word, version), STATE_OWNED) | (WORD_SHARED if shared else 0)


cdef inline uint32_t read_unlocked(const uint32_t* word) noexcept nogil:
    """Waits until no writer is inside; returns the word. Writers hold it for one row, so the wait is bounded by theirs."""
    cdef uint32_t seen = load_acquire(word)
    cdef unsigned int turns = 0
    while seen & WORD_LOCKED:
        back_off(turns)
        seen = load_acquire(word)
    return seen


cdef inline bint try_lock(uint32_t* word, uint32_t seen) noexcept nogil:
    """Enters as the one writer when the word is still ``seen`` (unlocked)."""
    if not cas_acquire(word, seen, seen | WORD_LOCKED):
        return False
    # Acquiring does not keep later writes behind this one (on ARM, say): without the fence a reader could copy half of a new
    # row between two looks at a word that does not show LOCKED yet.
    fence_release()
    return True


cdef inline uint32_t lock_word(uint32_t* word) noexcept nogil:
    """Enters as the one writer; returns the word as it was (unlocked)."""
    cdef uint32_t seen
    while True:
        seen = read_unlocked(word)
        if try_lock(word, seen):
            return seen


cdef inline void unlock_changed(uint32_t* word, uint32_t seen) noexcept nogil:
    """Leaves after a change: ``seen`` (possibly with another state) at the next version."""
    store_release(word, seen + WORD_VERSION_ONE)


cdef inline void unlock_unchanged(uint32_t* word, uint32_t seen) noexcept nogil:
    store_release(word, seen)
