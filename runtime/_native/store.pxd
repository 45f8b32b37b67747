"""The local store: one table's rows on one rank, and the flat arrays that say where every key is.

Guarantees
    * Pull, push and set of one row are atomic (``state.pxd``), from any number of threads, without the GIL.
    * A batch looks at every key once; keys that are not here are returned as misses and nothing was done to them.
Assumptions
    * Slots are bound and unbound, and ``owner`` and ``epoch`` are written, only under the engine's lock.
    * Keys have been checked against ``num_keys`` (``check_keys``).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.runtime._native.primitives cimport (
    load_relaxed_i32, prefetch_read, prefetch_write, row_add_fn, row_square_fn,
)
from intentpm.runtime._native.state cimport SlotState


# The two things every access looks at, on one cache line.
cdef struct SlotHead:
    uint32_t word                # atomic: see state.pxd
    int32_t key                  # atomic relaxed, written while the word is LOCKED; of a free slot: -1


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
    # Per key, num_keys each.
    int32_t* slot                # atomic: the engine stores release / any thread loads acquire. See state.pxd
    uint16_t* owner              # guarded by: engine lock. Location cache; authoritative at the home rank and the owner
    uint32_t* epoch              # guarded by: engine lock. The epoch at which ``owner`` was learned
    uint16_t* intent_refs        # guarded by: engine lock. Active intents of this rank's workers
    uint8_t* flags               # guarded by: engine lock. KeyFlags of the management protocol (rounds.pxd)
    # Per slot, ``capacity`` each; memory is committed by the system at first touch.
    int64_t capacity
    SlotHead* head
    char* rows                   # the slab; a row is touched only under its word's rules
    # atomic relaxed, written while the slot's word is LOCKED. 0: none; else 1 + (pending row << 1 | is a set)
    uint32_t* pending_of
    int32_t* dirty_next          # atomic: stack of slots written since collected; NOT_DIRTY: not in it
    int32_t dirty_head           # atomic: any writer pushes / the engine takes all
    uint32_t* seen_version       # guarded by: engine lock. Of a replica: version of the owner's row it was refreshed from
    # guarded by: engine lock. Of an owned row: set of ranks with replicas, holder_words each; empty unless the word is SHARED
    uint64_t* holders
    uint64_t* news               # guarded by: engine lock. Subset of holders that lack the newest row
    size_t holder_words
    # What a replica's own pushes and sets have done since the owner was last told: rows of stride pending_stride.
    char* pending
    size_t pending_stride
    uint32_t pending_lock        # atomic: guards the two below; held for a few instructions
    int32_t pending_free         # a free row holds the number of the next free one; -1: none
    int32_t pending_touched
    int32_t* free_slots          # guarded by: engine lock. A stack: slots that were used once and are free
    int64_t free_count           # guarded by: engine lock
    int64_t slots_bound_below    # guarded by: engine lock. No slot from here on was bound since trim_slots looked
    # atomic relaxed: stored under the engine's lock / read by statistics
    int64_t slots_touched        # slots from here on are free, and not among ``free_slots``
    int64_t slots_used


cdef enum:
    MAX_ROW_NDIM = 31


# What a batch did, for statistics. One per worker and table, written by that worker alone, read relaxed by stats().
cdef struct AccessCounts:
    uint64_t local               # keys served from an owned row
    uint64_t replica             # keys served from a replica
    uint64_t remote              # keys that were not here


# In dirty_next and dirty_head; 0 is "not dirty" so that fresh memory need not be written, and slots are stored plus 2.
cdef enum:
    NOT_DIRTY = 0
    END_OF_DIRTY = 1


cdef inline char* row_of(const TableState* table, int32_t slot) noexcept nogil:
    return table.rows + <size_t>slot * table.stride_bytes


cdef inline char* pending_row(const TableState* table, uint32_t pending) noexcept nogil:
    """The row that an entry of ``pending_of`` other than 0 names."""
    return table.pending + <size_t>((pending - 1) >> 1) * table.pending_stride


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


cdef inline void prefetch_slot(
        const TableState* table, int32_t slot, size_t row_bytes, bint for_writing) noexcept nogil:
    """Brings the slot's word and row near."""
    prefetch_write(&table.head[slot])
    prefetch_row(row_of(table, slot), row_bytes, for_writing)


cdef inline void prefetch_key(const TableState* table, int64_t key, bint for_writing) noexcept nogil:
    """Brings the key's word and row near. Reads ``slot`` unsynchronised: a stale one costs a useless prefetch."""
    cdef int32_t slot = load_relaxed_i32(&table.slot[key])
    if slot >= 0:
        prefetch_slot(table, slot, table.row_bytes, for_writing)


# First key that is not in [0, num_keys), as its position; -1 when all are good.
cdef int64_t check_keys(const TableState* table, const int64_t* keys, int64_t count) noexcept nogil

# One row, any thread. They return the state the row had, or SLOT_FREE when the key is not here.
cdef SlotState pull_row_atomic(TableState* table, int64_t key, char* out) noexcept nogil
cdef SlotState push_row_atomic(TableState* table, int64_t key, const char* delta) noexcept nogil
cdef SlotState set_row_atomic(TableState* table, int64_t key, const char* value) noexcept nogil
# As pull_row_atomic, of a slot that is bound (engine lock held); returns the version of the row it copied.
cdef uint32_t read_slot(TableState* table, int32_t slot, char* out) noexcept nogil

# Replicas (engine lock held). ``take_pending`` moves what this rank wrote since last told into ``out``; 0: nothing,
# 1: a delta to add, 2: a value to set. ``refresh_replica`` makes the row ``row`` plus what is pending.
cdef int take_pending(TableState* table, int32_t slot, char* out) noexcept nogil
cdef void refresh_replica(TableState* table, int32_t slot, const char* row) noexcept nogil
# The replica becomes the main copy, ``row`` plus what is pending.
cdef void promote_replica(TableState* table, int32_t slot, const char* row, uint32_t version) noexcept nogil
cdef bint has_pending(TableState* table, int32_t slot) noexcept nogil
# L2 norm of the pending delta; infinite for a pending set, negative when nothing is pending.
cdef double pending_norm(TableState* table, int32_t slot) noexcept nogil
# A holder's delta or value, at the owner: as push or set, but marks nothing dirty (the caller knows who has to hear of it).
cdef void apply_write(TableState* table, int32_t slot, const char* row, bint is_set) noexcept nogil
# Unbinds the replica unless something is pending (then False, and nothing is changed).
cdef bint drop_replica(TableState* table, int32_t slot) noexcept nogil
# Unbinds an owned row, moved into ``out``; returns its last version.
cdef uint32_t move_out(TableState* table, int32_t slot, char* out) noexcept nogil
# Sets or clears SHARED of an owned row.
cdef void mark_shared(TableState* table, int32_t slot, bint shared) noexcept nogil
# Takes the stack of dirty slots into ``slots``, their words asked for. Each is to be forgotten before its row is looked at.
cdef bint is_dirty(const TableState* table) noexcept nogil
cdef void take_dirty(TableState* table, vector[int32_t]& slots) noexcept nogil
cdef void forget_dirty(TableState* table, int32_t slot) noexcept nogil

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

# Binding, under the engine's lock. A slot comes LOCKED and unpublished; publish makes it visible in ``state``. Unbinding:
# drop_replica, move_out.
# allocate_slot returns -1 when the slab is full (cannot happen while every key has at most one slot).
cdef int32_t allocate_slot(TableState* table, int64_t key) noexcept nogil
cdef void publish_slot(TableState* table, int32_t slot, SlotState state) noexcept nogil
# Gives the memory of free slots behind all others back to the system, when it is ``least_bytes`` of rows or more and none of
# them was bound since this was last called. Returns the number of slots.
cdef int64_t trim_slots(TableState* table, size_t least_bytes) noexcept nogil
# A relocated row continues the versions of its former owner, so that holders can tell which of two rows is newer, whoever
# sent it; and those of the slot, so that readers can tell that it was bound anew (``continue_version``).
cdef void publish_owned(TableState* table, int32_t slot, uint32_t version) noexcept nogil


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
    cdef _point_to_homes(self)
    cdef _keys_in(self, SlotState wanted)
    cdef _prepare_management(self)
