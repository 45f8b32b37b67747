"""What a replica's own writes leave for the owner: a pending row, a delta to add or a value to set, and a kept row, steps to
take (optimiser_rows.hpp).

Guarantees
    * A replica is the owner's row that it last saw plus what is pending (invariant I4); steps that it kept show in it as if it
      had taken them itself.
    * The owner applies the pending row first, then the kept one: an order in which they could have been made. A set makes the
      kept steps before it forget the weights, but not the state.
    * A replica whose state lags (STATE_LAGS; ``refresh_weights``) has the owner's weights plus what is pending, and in its
      state all of its own steps, whether the owner has taken them or not; of one that was fetched without it
      (RESULT_FETCHED), on top of the mean that the owner's had then.
    * A replica that is not written needs neither; the memory of one is used again.
Assumption: the key is here, and its word LOCKED where a pending or kept row is added to (``rows``, ``steps``, any thread).
Management calls what is declared at the end, one key at a time, under the engine's lock; it enters the word itself.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from intentpm.foundation.primitives cimport copy_row, store_relaxed
from intentpm.runtime._native.row_optimiser cimport begin_kept, forget_weights
from intentpm.runtime._native.row_pool cimport pool_row, take_pool_row
from intentpm.runtime._native.table_state cimport ReplicaRecord, TableState


cdef enum:
    PENDING_SET = 1              # in what names a pending row: it holds a value to set, not a delta to add
    STATE_LAGS = 0x80000000      # in ReplicaRecord.seen_version: the state is older, or the row differs otherwise


cdef inline char* pending_row(const TableState* table, uint32_t pending) noexcept nogil:
    """The pending row that ``ReplicaRecord.pending`` names; not 0."""
    return pool_row(&table.pending, pending >> 1)


cdef inline char* kept_row(const TableState* table, const ReplicaRecord* replica) noexcept nogil:
    """The kept row of a replica that has one."""
    return pool_row(&table.kept, replica.kept)


cdef inline bint is_written(const ReplicaRecord* replica) noexcept nogil:
    """The owner has to hear of something."""
    return (replica.pending | replica.kept) != 0


cdef inline void add_pending(TableState* table, ReplicaRecord* replica, const char* delta) noexcept nogil:
    cdef uint32_t name = replica.pending
    if name:
        table.add(pending_row(table, name), delta, table.row_items)
        return
    name = take_pool_row(&table.pending) << 1
    copy_row(pending_row(table, name), delta, table.row_bytes)
    store_relaxed(&replica.pending, name)


cdef inline void set_pending(TableState* table, ReplicaRecord* replica, const char* value) noexcept nogil:
    cdef uint32_t name = replica.pending
    if not name:
        name = take_pool_row(&table.pending) << 1
    copy_row(pending_row(table, name), value, table.row_bytes)
    store_relaxed(&replica.pending, name | PENDING_SET)
    if replica.kept:
        forget_weights(kept_row(table, replica), table.row_items, table.optimiser)


cdef inline void keep_step(
        TableState* table, ReplicaRecord* replica, char* row, const char* gradient, double lr) noexcept nogil:
    """Takes a step on the replica's row, and keeps it for the owner."""
    if not replica.kept:
        store_relaxed(&replica.kept, take_pool_row(&table.kept))
        begin_kept(kept_row(table, replica), table.optimiser)
    table.optimiser.keep(row, kept_row(table, replica), gradient, table.row_items, table.optimiser, lr)


# What this rank wrote to a replica since the owner was last told is moved into ``out``: what is pending, then what is kept.
# Returns what there is: RECORD_ADD or RECORD_SET, RECORD_STEP, with RECORD_GRADIENT where that says as much.
cdef int take_pending(TableState* table, int64_t key, char* out) noexcept nogil
cdef bint has_pending(TableState* table, int64_t key) noexcept nogil
# L2 norm of the pending delta; infinite for a pending set or kept steps, negative when nothing is pending.
cdef double pending_norm(TableState* table, int64_t key) noexcept nogil
# Makes the replica ``row`` plus what is pending. True: a kept step was made from another row; its owner makes it anew, from
# this one: they may differ by more than rounding.
cdef bint refresh_replica(TableState* table, int64_t key, const char* row) noexcept nogil
# The same of its weights alone; the state stays as it is.
cdef void refresh_weights(TableState* table, int64_t key, const char* weights) noexcept nogil
# The replica becomes the main copy, ``row`` plus what is pending, of which others hold replicas or not. apart: what its answer
# said besides; the copy may follow. True: something was pending.
cdef bint promote_replica(
    TableState* table, int64_t key, const char* row, uint32_t version, bint shared, uint8_t apart) noexcept nogil
# The same, where its row is the owner's already, but for rounding.
cdef void promote_in_place(TableState* table, int64_t key, uint32_t version) noexcept nogil
