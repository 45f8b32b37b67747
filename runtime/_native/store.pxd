"""The local store: one table's rows on one rank, and the flat arrays that say where every key is.

Guarantees
    * Pull, push and set of one row are atomic (``state.pxd``), from any number of threads, without the GIL.
    * A batch looks at every key once; keys that are not here are returned as misses and nothing was done to them.
Assumptions
    * Slots are bound and unbound only under the engine's lock.
    * Keys have been checked against ``num_keys`` (``check_keys``).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.foundation.primitives cimport (
    load_relaxed, load_relaxed_i32, prefetch_read, prefetch_write, row_add_fn, row_square_fn,
)
from intentpm.runtime._native.state cimport WORD_HERE, KeyPlace, KeyState, state_of


# Of a set of ranks; short, for in small jobs most slots have two sets.
ctypedef uint16_t RankWord

cdef enum:
    RANKS_PER_WORD = 16

# What only management looks at. All zero: never managed. Guarded by: engine lock.
cdef struct KeyRecord:
    uint32_t epoch               # at which ``owner`` was learned; 0: the owner is the home rank, whatever ``owner`` says
    uint16_t owner               # location cache; authoritative at the home rank and the owner. See directory.pxd
    uint16_t intent_refs         # active intents of this rank's workers

# What there is of a slot that holds a replica.
cdef struct ReplicaRecord:
    uint32_t pending             # atomic relaxed, written while the key's word is LOCKED. Names a pending row; 0: none
    uint32_t seen_version        # guarded by: engine lock. Of the owner's row it was refreshed from


cdef struct TableState:
    uint32_t table_id
    uint32_t rank                # of this process
    uint32_t size                # ranks in the job
    int64_t num_keys
    size_t row_items
    size_t row_bytes             # of the payload
    size_t stride_bytes          # from one row to the next: row_bytes padded so that no small row straddles a cache line
    row_add_fn add
    row_square_fn square         # sum of the squares of a row's items
    # Per key, num_keys each; memory is committed by the system at first touch.
    KeyPlace* places             # see state.pxd
    KeyRecord* records
    uint8_t* flags               # guarded by: engine lock. KeyFlags of management (flags.pxd)
    int32_t* dirty_next          # atomic: stack of keys written since collected; NOT_DIRTY: not in it
    int32_t dirty_head           # atomic: any writer pushes / the engine takes all
    # Per slot; there is one for every key.
    char* rows                   # the slab; a row is touched only under the rules of its key's word
    int32_t* key_of              # atomic relaxed, written under the engine's lock. Of a free slot: -1
    ReplicaRecord* replicas
    # guarded by: engine lock. Of an owned row two sets of ranks, holder_words each, empty unless its key's word is SHARED:
    # which ranks hold replicas, and which of them lack the newest row (holders.pxd).
    RankWord* holders
    uint32_t holder_words        # RANKS_PER_WORD ranks each
    # What a replica's own pushes and sets have done since the owner was last told: rows of stride pending_stride.
    char* pending
    size_t pending_stride
    uint32_t pending_lock        # atomic: guards the two below; held for a few instructions
    uint32_t pending_free        # names a free row, which holds the name of the next; 0: none
    uint32_t pending_touched
    int32_t* free_slots          # guarded by: engine lock. A stack: slots that were used once and are free
    int64_t free_count           # guarded by: engine lock
    int64_t slots_bound_below    # guarded by: engine lock. No slot from here on was bound since trim_slots looked
    int64_t slots_touched        # atomic, stored under the engine's lock. From here on slots are free, not among ``free_slots``
    int64_t slots_used           # atomic relaxed, the same


cdef enum:
    MAX_ROW_NDIM = 31


# What a batch did, for statistics. One per worker and table, written by that worker alone, read relaxed by stats().
cdef struct AccessCounts:
    uint64_t local               # keys served from an owned row
    uint64_t replica             # keys served from a replica
    uint64_t remote              # keys that were not here


# In dirty_next and dirty_head; 0 is "not dirty" so that fresh memory need not be written, and keys are stored plus 2.
cdef enum:
    NOT_DIRTY = 0
    END_OF_DIRTY = 1


cdef inline uint32_t word_of(const TableState* table, int64_t key) noexcept nogil:
    return load_relaxed(&table.places[key].word)


cdef inline KeyState key_state(const TableState* table, int64_t key) noexcept nogil:
    return state_of(word_of(table, key))


cdef inline bint is_here(const TableState* table, int64_t key) noexcept nogil:
    """Whether this rank owns the key or has a replica."""
    return (word_of(table, key) & WORD_HERE) != 0


cdef inline int32_t slot_of(const TableState* table, int64_t key) noexcept nogil:
    """Of a key that is here. It stays so while the engine's lock is held."""
    return load_relaxed_i32(&table.places[key].slot)


cdef inline char* row_of(const TableState* table, int32_t slot) noexcept nogil:
    return table.rows + <size_t>slot * table.stride_bytes


cdef enum:
    PENDING_SET = 1              # in the name of a pending row: it holds a value to set, not a delta to add


cdef inline char* pending_row(const TableState* table, uint32_t name) noexcept nogil:
    """The pending row of that name, which is not 0."""
    return table.pending + <size_t>((name >> 1) - 1) * table.pending_stride


cdef enum:
    CACHE_LINE_BYTES = 64
    PREFETCH_ROWS = 8            # keys ahead where single rows are accessed one after the other


cdef inline void prefetch_row(const char* row, size_t row_bytes, bint for_writing) noexcept nogil:
    """Brings a row near, of a long one the beginning."""
    cdef size_t offset = 0
    while offset < row_bytes and offset < 512:
        if for_writing:
            prefetch_write(row + offset)
        else:
            prefetch_read(row + offset)
        offset += CACHE_LINE_BYTES


cdef inline void prefetch_key(const TableState* table, int64_t key, bint for_writing) noexcept nogil:
    """Brings the row near. Looks at the key's place unsynchronised: when it is out of date, the prefetch was useless."""
    if is_here(table, key):
        prefetch_row(row_of(table, slot_of(table, key)), table.row_bytes, for_writing)


# First key that is not in [0, num_keys), as its position; -1 when all are good.
cdef int64_t check_keys(const TableState* table, const int64_t* keys, int64_t count) noexcept nogil

# One row, any thread. They return the state the key had, or STATE_ABSENT when it is not here.
cdef KeyState pull_row_atomic(TableState* table, int64_t key, char* out) noexcept nogil
cdef KeyState push_row_atomic(TableState* table, int64_t key, const char* delta) noexcept nogil
cdef KeyState set_row_atomic(TableState* table, int64_t key, const char* value) noexcept nogil
# As pull_row_atomic, of a key that is here (engine lock held); returns the version of the row it copied.
cdef uint32_t read_row(TableState* table, int64_t key, char* out) noexcept nogil

# Keys that are here (engine lock held).
# What this rank wrote to a replica since the owner was last told is moved into ``out``; 0: nothing, 1: a delta to add, 2: a
# value to set.
cdef int take_pending(TableState* table, int64_t key, char* out) noexcept nogil
# Makes the replica ``row`` plus what is pending.
cdef void refresh_replica(TableState* table, int64_t key, const char* row) noexcept nogil
# The replica becomes the main copy, ``row`` plus what is pending.
cdef void promote_replica(TableState* table, int64_t key, const char* row, uint32_t version) noexcept nogil
cdef bint has_pending(TableState* table, int64_t key) noexcept nogil
# L2 norm of the pending delta; infinite for a pending set, negative when nothing is pending.
cdef double pending_norm(TableState* table, int64_t key) noexcept nogil
# A holder's delta or value, at the owner: as push or set, but marks nothing dirty (the caller knows who has to hear of it).
cdef void apply_write(TableState* table, int64_t key, const char* row, bint is_set) noexcept nogil
# Makes a replica absent unless something is pending (then False, and nothing is changed).
cdef bint drop_replica(TableState* table, int64_t key) noexcept nogil
# Makes an owned key absent, its row moved into ``out``; returns its last version.
cdef uint32_t move_out(TableState* table, int64_t key, char* out) noexcept nogil
# Sets or clears SHARED of an owned key.
cdef void mark_shared(TableState* table, int64_t key, bint shared) noexcept nogil

# Takes the stack of dirty keys into ``keys``, their places asked for. Each is to be forgotten before its row is looked at.
cdef bint is_dirty(const TableState* table) noexcept nogil
cdef void take_dirty(TableState* table, vector[uint32_t]& keys) noexcept nogil
cdef void forget_dirty(TableState* table, int64_t key) noexcept nogil

# Batches over contiguous rows of row_bytes; positions of keys that are not here are appended to ``misses``.
cdef void pull_rows(
    TableState* table, const int64_t* keys, int64_t count, char* out,
    vector[int32_t]& misses, AccessCounts* counts) noexcept nogil
cdef void push_rows(
    TableState* table, const int64_t* keys, int64_t count, const char* deltas,
    vector[int32_t]& misses, AccessCounts* counts) noexcept nogil
cdef void set_rows(
    TableState* table, const int64_t* keys, int64_t count, const char* values,
    vector[int32_t]& misses, AccessCounts* counts) noexcept nogil

# Binding, under the engine's lock, of a key that is not here: the caller fills the row of the slot, which nobody else can find,
# then publishes. Unbinding: drop_replica, move_out. The slab has a slot for every key.
cdef int32_t bind_slot(TableState* table, int64_t key) noexcept nogil
cdef void publish(TableState* table, int64_t key, KeyState state) noexcept nogil
# A relocated row continues the versions of its former owner, so that holders can tell which of two rows is newer, whoever
# sent it; and those of the key here, so that readers can tell that it was bound anew (``continue_version``).
cdef void publish_owned(TableState* table, int64_t key, uint32_t version) noexcept nogil
# Of a key that is not here: ABSENT <-> REQUESTED.
cdef void change_state(TableState* table, int64_t key, KeyState state) noexcept nogil
# Gives the memory of free slots behind all others back to the system, when it is ``least_bytes`` of rows or more and none of
# them was bound since this was last called. Returns the number of slots.
cdef int64_t trim_slots(TableState* table, size_t least_bytes) noexcept nogil


cdef class Table:
    cdef TableState* state       # owned by this object; NULL after release
    cdef readonly str name
    cdef readonly object dtype   # numpy.dtype
    cdef readonly tuple row_shape
    cdef int row_ndim            # row_shape for checks without Python objects
    cdef int64_t row_dims[MAX_ROW_NDIM]
    cdef readonly int64_t num_keys
    cdef readonly uint32_t table_id
    # private
    cdef _keys_in(self, KeyState wanted)
    cdef _prepare_management(self)
