"""Rows set apart for a checkpoint: copied before the first write that does not belong to it.

    set_apart       before a write, the key's word LOCKED: a write after the cut has the row copied first; one from before
                    the cut that comes late has to be made on the copy too, if there is one, which is returned
    leave_apart     before an owned row moves away
    arrive_apart    before an owned row is published, or a replica promoted
    take_rows       hands the rows of the snapshot to who writes the checkpoint, each once
    skip_unchanged  before it: the checkpoint has only rows that have changed since another one

What has changed is known from versions: ``seen`` has, per key, 1 + the version of the row that was taken last, 0: none was.
It is kept by who takes them. A version counts more than writes (a row that moved, or was shared, has another), so a row may
be taken though its bytes are the same; one that has changed always is.

Guarantees
    * A row goes into the checkpoint once, from the rank that has its mark UNSEEN or APART when all have made their cut.
    * It has every write made before its rank's cut, and none that was made after.
Called by ``rows``, ``steps`` and ``serving`` (``*_apart``, any thread, the word LOCKED), by ``slots``, ``replicas`` and
``holder`` (engine lock held), and by ``RankSnapshot``. All of it off the path: a table that is not being saved has no snapshot.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from intentpm.foundation.primitives cimport load_acquire_pointer
from intentpm.runtime._native.snapshot cimport CopyRoom, Snapshot
from intentpm.runtime._native.table_state cimport TableState


# NULL: no memory for it.
cdef Snapshot* new_snapshot(const TableState* table, uint32_t number, CopyRoom* room) noexcept nogil
# Nobody begins to use it from now on; who still does may go on. Engine lock held. ``give_back_snapshots`` gives the memory of
# this and older ones back, without that lock; their address space is for ``free_snapshots`` when no worker writes.
cdef void retire_snapshot(TableState* table) noexcept nogil
cdef void give_back_snapshots(Snapshot* retired) noexcept nogil
cdef void free_snapshots(TableState* table) noexcept nogil

# The table's snapshot, for a write: what it holds may be written to after it was retired. NULL: none.
cdef inline Snapshot* snapshot_of(TableState* table) noexcept nogil:
    return <Snapshot*>load_acquire_pointer(<void**>&table.snapshot)


# is_new: the write was made after the cut. Returns the copy on which it has to be made, too; NULL: there is none.
cdef char* set_apart(TableState* table, Snapshot* snapshot, int64_t key, bint is_new) noexcept nogil
# A write of this rank's own worker to a row owned here, before it is made on the row.
cdef void push_apart(TableState* table, Snapshot* snapshot, int64_t key, const char* delta) noexcept nogil
cdef void set_value_apart(
    TableState* table, Snapshot* snapshot, int64_t key, const char* value, size_t size_bytes) noexcept nogil
cdef void step_apart(TableState* table, Snapshot* snapshot, int64_t key, const char* gradient, double lr) noexcept nogil

# Returns what the answer has to say besides: 0, RESULT_KEPT (the copy is moved to ``copy``) or RESULT_SAVED.
cdef uint8_t leave_apart(TableState* table, int64_t key, char* copy) noexcept nogil
cdef void arrive_apart(TableState* table, int64_t key, uint8_t apart, const char* copy) noexcept nogil

# Up to ``most`` rows that nobody has taken yet, of stored_bytes each. 0: all are taken. One thread at a time.
cdef int64_t take_rows(TableState* table, int64_t most, int32_t* keys, char* rows, uint32_t* seen) noexcept nogil
# Copies of rows that have moved away, of those not looked at yet: a piece of them. Engine lock held, and after ``take_rows``
# has returned 0: then none is added. 0: see ``all_left_taken``.
cdef int64_t take_left_rows(TableState* table, int64_t most, int32_t* keys, char* rows, uint32_t* seen) noexcept nogil
cdef bint all_left_taken(const TableState* table) noexcept nogil
# Rows that are as they were taken last are not taken: slots [first, end), then the copies [first, end) of rows that have moved
# away (engine lock held, and after all slots). Returns how many those are.
cdef int64_t skip_unchanged(TableState* table, int64_t first, int64_t end, const uint32_t* seen) noexcept nogil
cdef int64_t skip_unchanged_left(TableState* table, uint32_t first, uint32_t end, const uint32_t* seen) noexcept nogil
# Without a snapshot: up to ``most`` rows owned here that have changed, looking on from where ``at`` says; fewer: there are no
# more.
# Rows that are packed meanwhile (slots.pxd) may have moved to where it was looked already: then it is looked there once more.
cdef struct SlotCursor:
    int64_t slot
    int64_t times_packed         # when slot 0 was looked at

cdef void begin_slots(const TableState* table, SlotCursor* at) noexcept nogil
cdef int64_t take_changed(
    TableState* table, SlotCursor* at, int64_t most, int64_t* keys, char* rows, uint32_t* seen) noexcept nogil
