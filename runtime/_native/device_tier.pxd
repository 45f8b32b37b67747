"""Rows of a table on a device: batches of workers are served there, rows come back when something else needs them.

Guarantees
    * A batch is served in one go: which rows it means is looked up, and what is done to them is enqueued, with the lock of
      the device's rows held. So the device does to a row what is decided about it, in that order. States: ``row_place.pxd``.
    * Where a batch has a key more than once: all its deltas are added, each of its gradients is a step of its own, in order,
      and the last value set stays.
    * Rows that a checkpoint is being made of are written in ``rows``, one by one: there they are set apart first.
Assumption: ``row_place.pxd``'s. Any thread.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.gpu.caller_stream cimport CallerStream
from intentpm.gpu.device cimport Device
from intentpm.gpu.device_rows cimport DeviceRows
from intentpm.gpu.exchanges cimport Exchange
from intentpm.runtime._native.state cimport STATE_REPLICA, state_of
from intentpm.runtime._native.store cimport Table
from intentpm.runtime._native.table_state cimport (
    ACCESS_ROW_PULL, ACCESS_ROW_PULL_STORED, ACCESS_ROW_PUSH, ACCESS_ROW_SET, RowAccess, RowTier, TableState,
)


# A run of a batch that is served together, and what it needs.
cdef struct Run:
    RowAccess kind
    const int64_t* keys
    char* device_rows            # NULL: ``rows`` are the host's. Else rows are read and written there, and ``rows`` is NULL
    bint sums                    # steps: one with the sum of a key's gradients; else each is a step
    int64_t first                # of the batch
    int64_t count
    char* rows                   # of the first
    size_t row_bytes
    double lr
    Exchange* exchange           # its slots and rows
    Exchange* sent               # rows that the device lacked; NULL: none
    int64_t sent_count
    int64_t taken_up             # keys that are here


# What becomes of a key that a batch has entered; its word is left.
cdef enum TakeUp:
    TAKEN
    TAKE_HOME                    # it is to be served in ``rows``
    TAKE_LATER                   # by another run
    TAKE_AGAIN                   # look again
    TAKE_FAILED


cdef class DeviceTier:
    cdef RowTier tier            # TableState.tier
    cdef TableState* table
    cdef readonly DeviceRows rows
    # guarded by: rows.lock
    cdef uint32_t* batch_of      # per slot: the last run of steps that had it
    cdef uint32_t batches
    cdef uint64_t sent_rows      # to the device
    cdef uint64_t brought_rows   # back

    cdef _attach(self, Table table, Device device)
    # ``RowTier.access`` for rows that are in the memory of the device of ``rows``; ``caller``, who goes on with them, comes
    # after it. Positions (ascending) that have to be served through the host are ``left``. False: the device has failed, or
    # the caller's stream is none: then ``tier.failed`` is not set.
    # rows_wait: the stream of ``rows`` waits for what the caller has enqueued for them, and so does then whoever waits for
    # that stream: other ranks too. Without, that is done.
    cdef bint serve_on_device(
        self, RowAccess kind, const int64_t* keys, int64_t count, char* device_rows, double lr, bint sums,
        CallerStream caller, bint rows_wait, vector[int32_t]& left, uint64_t* served) noexcept nogil
    # private; rows.lock held
    cdef int64_t _serve_run(self, Run* run, vector[int32_t]& left, uint64_t* served) noexcept nogil
    cdef int64_t _look_up(
        self, Run* run, vector[int32_t]& misses, vector[int32_t]& for_home, uint64_t* served) noexcept nogil
    cdef bint _open(self, Run* run, size_t row_bytes) noexcept nogil
    cdef bint _take_room(self, Run* run, size_t row_bytes) noexcept nogil
    cdef void _begin_run(self) noexcept nogil
    cdef TakeUp _take_up(self, Run* run, int64_t i, uint32_t seen) noexcept nogil
    cdef void _leave_taken(self, Run* run, int64_t i, uint32_t seen) noexcept nogil
    cdef int32_t _seat(self, int32_t slot) noexcept nogil
    cdef bint _make_room(self) noexcept nogil
    cdef bint _send(self, Run* run, int32_t slot) noexcept nogil
    cdef bint _send_off(self, Run* run) noexcept nogil
    cdef bint _enqueue(self, Run* run) noexcept nogil
    cdef bint _enqueue_on_device(self, Run* run) noexcept nogil
    cdef void _leave_whole(
        self, Run* run, int64_t done, size_t first_left, vector[int32_t]& left, const vector[int32_t]& for_home,
        uint64_t* served) noexcept nogil
    cdef bint _may_be_taken(self, const Run* run, int64_t key) noexcept nogil
    cdef void _close(self, Run* run) noexcept nogil
    cdef void _fail(self) noexcept nogil
    cdef void _bring(self, int64_t key, int32_t slot) noexcept nogil


cdef inline bint reads_rows(RowAccess kind) noexcept nogil:
    return kind == ACCESS_ROW_PULL or kind == ACCESS_ROW_PULL_STORED


cdef inline bint is_for_home(const TableState* table, const Run* run, uint32_t seen) noexcept nogil:
    """Writes that leave more behind than a pending delta or value: for a checkpoint, or for a row's owner. What is left to the
    owner is made of rows that the host has."""
    if reads_rows(run.kind):
        return False
    if state_of(seen) == STATE_REPLICA:
        return run.device_rows != NULL or (run.kind != ACCESS_ROW_PUSH and run.kind != ACCESS_ROW_SET)
    return table.snapshot != NULL
