"""A snapshot of a table on one rank, while a checkpoint is being made: which rows are in it as they lie, and which apart.

    UNSEEN -a write after the cut-> APART     the row as it was is copied first
    UNSEEN, APART -written to the checkpoint, or left to another rank-> DONE

Per slot of an owned row; what a slot's mark says is of no meaning while it holds no owned row. ``cuts.pxd`` says what a cut is.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t


cdef enum:
    MARK_UNSEEN = 0              # the row is as it has to be in the checkpoint, but for writes before the cut that are to come
    MARK_DONE = 0xffffffff       # this rank has nothing more to do with it
    # else: 1 + number of the copy that goes into the checkpoint
    UNKNOWN_VERSION = 0xffffffff

# For the copies of all snapshots of a rank (budget.pxd).
cdef struct CopyRoom:
    int64_t most_bytes           # atomic relaxed
    int64_t held_bytes           # atomic relaxed

cdef struct Snapshot:
    # Set before anybody else sees it.
    uint32_t number              # of the cut
    int64_t num_keys
    size_t stride_bytes
    uint32_t* marks              # per slot. Guarded by: the word of the key in the slot, LOCKED
    char* copies                 # num_keys rows; memory is committed at first touch
    int32_t* copied_key          # of a copy: its key, or -1. Atomic relaxed; stored by who has the copy
    uint32_t* copied_version     # of a copy: the row's version when it was made, or UNKNOWN_VERSION
    uint32_t broken              # atomic: there was no room for a copy, so it is no snapshot any more
    # guarded by: copies_lock, held for a few instructions
    CopyRoom* room               # NULL: nobody counts; retired
    uint32_t copies_lock
    uint32_t copies_free         # the first of a chain through the copies' first bytes, plus 1; 0: none
    uint32_t copies_touched      # atomic: stored under the lock
    int64_t copies_held
    uint32_t cut_here            # atomic: this rank has made this cut. Stored while none of its workers writes
    # guarded by: engine lock
    bint sealed                  # every rank has made its cut: a row that moves away is left to the checkpoint here
    bint is_final                # all ranks are sealed: a row that comes is another rank's to write, or is written already
    int64_t rows                 # that this rank has to write
    # Of the thread that writes the checkpoint.
    int64_t next_slot
    uint32_t next_copy
    uint32_t next_left           # guarded by: engine lock
    Snapshot* older              # retired before this one; see ``retire_snapshot``
