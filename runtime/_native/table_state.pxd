"""What one rank keeps of one table: its rows, and the flat arrays that say where every key is.

The arrays are ``slabs``'s; slots are bound to keys by ``slots``; rows are read and written by ``rows``, one after the other by
``batches``; what writes leave for others is in ``replicas`` and ``dirty_stack``; ``directory`` says who owns a key, ``holders``
who has a replica. All of them, the engine and management look into this struct: each field says who guards it.

Assumption: keys have been checked against ``num_keys`` (``check_keys``).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.foundation.primitives cimport (
    load_relaxed, load_relaxed_i32, prefetch_read, prefetch_write, row_add_fn, row_square_fn,
)
from intentpm.runtime._native.row_optimiser cimport RowOptimiser
from intentpm.runtime._native.row_pool cimport RowPool
from intentpm.runtime._native.snapshot cimport Snapshot
from intentpm.runtime._native.state cimport WORD_HERE, KeyPlace, KeyState, state_of


cdef enum:
    DIRTY_STACKS = 8             # see dirty_stack.pxd

# What only management looks at. All zero: never managed. Guarded by: engine lock.
cdef struct KeyRecord:
    uint32_t epoch               # at which ``owner`` was learned; 0: the owner is the home rank, whatever ``owner`` says
    uint16_t owner               # location cache; authoritative at the home rank and the owner. See directory.pxd
    uint16_t intent_refs         # active intents of this rank's workers. Atomic relaxed: coverage.pxd looks without the lock

# That a rank holds a replica of a row owned here (holders.pxd). Guarded by: engine lock.
cdef struct Holding:
    uint32_t next                # of the same row, or of those that are free; 0: none
    uint32_t since               # tick since when it lacks news
    uint16_t rank
    uint8_t flags                # HoldingFlags
    uint8_t rests_until          # when it is first used (holders.pxd); 0: it is in use

# What there is of a slot that holds a replica.
cdef struct ReplicaRecord:
    # atomic relaxed, written while the key's word is LOCKED. See replicas.pxd; 0: none
    uint32_t pending             # names a pending row
    uint32_t kept                # names a kept row
    uint32_t seen_version        # guarded by: engine lock. Of the owner's row it was refreshed from; STATE_LAGS (replicas.pxd)
    uint32_t seen_tick           # atomic relaxed, written under the engine's lock: when that was (holders.pxd)


cdef struct TableState

# Of a slot whose table has a tier; 0: its row is in ``rows`` alone. See row_place.pxd
cdef enum RowPlace:
    ROW_AWAY = 1                 # that in ``rows`` is out of date
    ROW_ON_DEVICE = 2
    ROW_COMING = 4               # a copy of it is on its way to the device: tiered_rows.pxd

# What a batch does with each of its rows.
cdef enum RowAccess:
    ACCESS_ROW_PULL
    ACCESS_ROW_PUSH
    ACCESS_ROW_SET
    ACCESS_ROW_STEP
    ACCESS_ROW_PULL_STORED
    ACCESS_ROW_SET_STORED

# What becomes of an intent's window.
cdef enum WindowEvent:
    WINDOW_SIGNALLED
    WINDOW_DUE                   # it begins to count
    WINDOW_OVER
    WINDOW_WITHDRAWN             # it will never be due

# A device that has rows of a table (device_tier.pyx).
cdef struct RowTier:
    uint8_t* where               # per slot, RowPlace. Guarded by: the word of the slot's key, LOCKED
    void* context
    bint failed                  # atomic, never taken back: the device does not do what it is asked
    bint* job_fails              # atomic, set with it: Turns.device_failed. NULL: the engine does not know the table
    # Has the row of a key brought, unless the key has left or it is there. No word is held by the caller.
    void (*bring_home)(TableState* table, int64_t key) noexcept nogil
    # Serves a batch as ``batches.pxd`` says; adds to ``served`` the keys served from owned rows and from replicas.
    void (*access)(
        TableState* table, RowAccess kind, const int64_t* keys, int64_t count, char* rows, double lr,
        vector[int32_t]& misses, uint64_t* served) noexcept nogil
    # Of a tier that has room for some of the rows (tiered_rows.pyx); else NULL.
    # The row of a key has come to this rank, or what the device has of it is void. Any thread; the key's word may be LOCKED.
    void (*lacks)(TableState* table, int64_t key) noexcept nogil
    # Engine lock held. first_use: the tick (holders.pxd) at which a window that was signalled starts.
    void (*note_window)(
        TableState* table, WindowEvent event, const uint32_t* keys, uint32_t count, uint32_t first_use) noexcept nogil
    # Engine lock held. Has rows that are wanted sent to the device, as many as one copy takes. True: there are more.
    bint (*fetch)(TableState* table, uint32_t now) noexcept nogil
    uint32_t lacking             # atomic: rows that are wanted were noted since ``fetch`` looked; it needs a step of the engine

cdef struct TableState:
    # Set before anybody else sees the table.
    uint32_t table_id
    uint32_t rank                # of this process
    uint32_t size                # ranks in the job
    int64_t num_keys
    # Per rank: who has its duties as a home, where ranks were lost (membership.pxd). NULL: each has its own. Set and changed
    # under the engine's lock; whoever looks without it may be told the one before.
    uint16_t* stand_ins
    size_t row_items
    size_t row_bytes             # of the weights: what a pull, push, set or gradient has per key
    size_t stored_bytes          # of the row as it lies here and moves between ranks: weights, then the optimiser's state
    size_t weights_bytes         # of weights that move without their state: row_bytes, padded so that what follows is aligned
    size_t record_bytes          # of a row that a holder's record has, at most: a delta, a value or kept steps
    size_t stride_bytes          # from one row to the next: stored_bytes padded so that no small row straddles a cache line
    int64_t fixed_bytes          # that the arrays below take without a row: those per key, and pages partly used
    size_t message_bytes         # of rows per message, at most; guarded by: engine lock (budget.pxd)
    row_add_fn add
    bint adds_exactly            # integers: the order of additions does not matter
    row_square_fn square         # sum of the squares of a row's items
    const RowOptimiser* optimiser    # NULL: none, and a row is its weights
    RowTier* tier                # NULL: none, and all rows are in ``rows``
    # Per key, num_keys each; memory is committed by the system at first touch.
    KeyPlace* places             # see state.pxd
    KeyRecord* records
    uint8_t* flags               # guarded by: engine lock. KeyFlags of management (flags.pxd)
    int32_t* dirty_next          # atomic: stacks of keys written since collected; NOT_DIRTY: in none
    int32_t dirty_heads[DIRTY_STACKS]    # atomic: any writer pushes / the engine takes all
    # Of a checkpoint being made (apart.pxd); NULL: none. Atomic: stored under the engine's lock, and seen by whoever enters the
    # word of a row that was set apart since. A save may end at any time: without that lock it is loaded once (``snapshot_of``).
    Snapshot* snapshot
    Snapshot* retired            # guarded by: engine lock
    int64_t rows_owned           # guarded by: engine lock
    # Per slot; there is one for every key.
    char* rows                   # the slab; a row is touched only under the rules of its key's word
    int32_t* key_of              # atomic relaxed, written under the engine's lock. Of a free slot: -1
    ReplicaRecord* replicas
    # guarded by: engine lock. holders.pxd
    uint32_t* holdings_at        # per slot, of an owned row whose key's word is SHARED: the first of its holdings
    Holding* holdings            # numbered from 1 on
    size_t holdings_room
    uint32_t holdings_free       # the first of a chain; 0: none
    uint32_t holdings_touched    # those beyond are free, and not in the chain
    uint32_t holdings_used
    # What a replica's own writes have done since the owner was last told. See replicas.pxd
    RowPool pending              # of pushes and sets
    RowPool kept                 # of steps; no rows without an optimiser
    int32_t* free_slots          # guarded by: engine lock. A stack: slots that were used once and are free
    int64_t free_count           # guarded by: engine lock
    int64_t slots_bound_below    # guarded by: engine lock. No slot from here on was bound since trim_slots looked
    int64_t slots_touched        # atomic, stored under the engine's lock. From here on slots are free, not among ``free_slots``
    int64_t slots_used           # atomic relaxed, the same
    int64_t times_packed         # atomic, stored under the engine's lock before rows move down (pack_slots)
    int64_t slots_promised       # guarded by: engine lock. Keys that are asked for, each of which will need a slot


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
        prefetch_row(row_of(table, slot_of(table, key)), table.stored_bytes, for_writing)
