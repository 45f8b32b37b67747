"""Remote access, at the origin: pulls, pushes and sets of this rank's workers, of keys that are not here.

    origin   submit: one ACCESS per owner and chunk -> owner (``serving``) -> REPLY -> origin   finish: rows to their places

An owner forwards the keys that have left it; replies come straight from whoever owned them, so the origin counts answered keys,
and learns from forwarded ones where they are now. Keys that are on their way here are not asked for: the call waits for them.

Guarantees
    * Each key of an operation is applied once, at the rank that owns it then (transport: a message is delivered once).
    * At most ``Budget.window_requests`` requests of this rank are open at any other rank, which bounds the memory both ends
      spend on them.
Called by ``Calls`` (submit), when a message arrives (finish), and by management when keys have come. Engine lock held.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.foundation.primitives cimport copy_row
from intentpm.runtime._native.apart cimport set_apart
from intentpm.runtime._native.budget cimport Budget
from intentpm.runtime._native.cuts cimport Cuts
from intentpm.runtime._native.journal cimport Journal
from intentpm.runtime._native.messages cimport (
    ACCESS_PULL, ACCESS_PULL_STORED, ACCESS_PUSH, ACCESS_SET_STORED, ACCESS_STEP, AccessBody, AccessHeader, carried_bytes,
)
from intentpm.runtime._native.parking cimport ParkedMessage, Parking
from intentpm.runtime._native.requests cimport Operation, Request, RequestPool
from intentpm.runtime._native.row_place cimport ROW_WRITE, lock_row
from intentpm.runtime._native.rows cimport leave_written, pull_row_atomic, push_row_atomic, set_row_atomic
from intentpm.runtime._native.state cimport STATE_OWNED, KeyPlace, KeyState
from intentpm.runtime._native.steps cimport pull_stored_atomic, set_stored_atomic, step_row_atomic
from intentpm.runtime._native.table_state cimport TableState, key_state, row_of
from intentpm.transports.base cimport Transport

cdef enum:
    MAX_TABLES = 4096

cdef enum SubmitResult:
    SUBMITTED = 0
    WINDOW_FULL = 1              # call submit again when RequestPool.in_flight_to[blocked_on] has fallen
    SUBMIT_FAILED = 2            # operation.status says why; requests already open go on


# How far submit has come with an operation.
cdef struct Submission:
    const int64_t* keys          # the caller's batch
    char* rows                   # the caller's rows: read by push, set and step, written by pulls
    double lr                    # of a step
    uint32_t at                  # into operation.positions
    uint32_t count
    uint32_t blocked_on          # rank


# Keys of a pull of this rank's own that are on their way here, in the order of the caller's batch. It looks at the next one
# whenever management has done something: nothing is kept, looked up or freed per key.
cdef struct WaitingPull:
    TableState* table
    uint32_t request
    uint32_t generation
    uint32_t at                  # into ``keys``: those before are pulled, or asked for elsewhere
    uint32_t count
    uint32_t* keys               # owned


cdef inline size_t accessed_bytes(const TableState* table, int kind) noexcept nogil:
    return carried_bytes(kind, table.row_bytes, table.stored_bytes)


cdef inline KeyState access_row(TableState* table, int kind, int64_t key, char* row, double lr) noexcept nogil:
    if kind == ACCESS_PULL:
        return pull_row_atomic(table, key, row)
    if kind == ACCESS_PUSH:
        return push_row_atomic(table, key, row)
    if kind == ACCESS_STEP:
        return step_row_atomic(table, key, row, lr)
    if kind == ACCESS_PULL_STORED:
        return pull_stored_atomic(table, key, row)
    if kind == ACCESS_SET_STORED:
        return set_stored_atomic(table, key, row)
    return set_row_atomic(table, key, row)


cdef inline void _make_write(TableState* table, int kind, char* row, const char* written, double lr) noexcept nogil:
    if kind == ACCESS_PUSH:
        table.add(row, written, table.row_items)
    elif kind == ACCESS_STEP:
        table.optimiser.step(row, written, table.row_items, table.optimiser, lr)
    else:
        copy_row(row, written, accessed_bytes(table, kind))


cdef inline bint write_owned(
        TableState* table, int kind, int64_t key, const char* written, double lr, bint is_new) noexcept nogil:
    """Another rank's write, of a table that is being saved. False: the key is not owned here."""
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen
    cdef char* copy
    if key_state(table, key) != STATE_OWNED:
        return False
    seen = lock_row(table, key, ROW_WRITE)   # it stays so while the engine's lock is held
    copy = set_apart(table, table.snapshot, key, is_new)
    _make_write(table, kind, row_of(table, place.slot), written, lr)
    if copy != NULL:
        _make_write(table, kind, copy, written, lr)
    leave_written(table, key, seen)
    return True


@cython.final
cdef class RemoteAccess:
    cdef Transport transport
    cdef RequestPool requests
    cdef Budget budget
    # guarded by: engine lock
    # Workers look at their own table's entry without it: that was set before they knew the table.
    cdef TableState* tables[MAX_TABLES]
    cdef uint32_t table_count
    cdef vector[uint32_t] counted        # scratch: positions per owner
    cdef vector[uint32_t] servers        # scratch: who serves each position
    cdef readonly Parking parking
    cdef vector[WaitingPull] waiting
    cdef readonly Journal journal
    cdef readonly Cuts cuts
    cdef readonly uint64_t hops          # of answered forwarded keys, summed

    # Sorts ``positions`` (of keys not here) by owner into the operation.
    cdef bint group_by_owner(
        self, Operation* operation, const int64_t* keys, const uint32_t* positions, size_t count) noexcept nogil
    cdef SubmitResult submit(self, Operation* operation, Submission* submission) noexcept nogil
    # Message handler. False: the message is malformed.
    cdef bint finish(
        self, uint32_t source, const AccessHeader* header, const char* body, size_t body_bytes) noexcept nogil
    # Keys have arrived, or will not: lets waiting pulls go on.
    cdef void step_waiting(self) noexcept nogil
    # A parked access of this rank's own worker, whose key is here now (owned or replica).
    cdef void resume(self, TableState* table, uint32_t key, ParkedMessage* message) noexcept nogil
    # How many accesses wait for the key.
    cdef uint32_t count_waiting(self, const TableState* table, uint32_t key) noexcept nogil
    # private
    cdef uint32_t _owner_at(self, const Operation* operation, const Submission* submission, uint32_t at) noexcept nogil
    cdef bint _pull_here(self, Operation* operation, Submission* submission) noexcept nogil
    cdef bint _access_here(self, Operation* operation, const Submission* submission) noexcept nogil
    cdef bint _park_own(
        self, Operation* operation, uint32_t at, int64_t key, const char* row, double lr) noexcept nogil
    cdef bint _request(
        self, Operation* operation, const Submission* submission, uint32_t owner, uint32_t count) noexcept nogil
    cdef bint _scatter(
        self, const Request* request, const AccessHeader* header, const AccessBody* sections) noexcept nogil
    cdef void _learn(self, TableState* table, uint32_t owner, uint32_t count, const AccessBody* sections) noexcept nogil
    cdef bint _wait_for_keys(
        self, Operation* operation, const Submission* submission, uint32_t first, uint32_t count) noexcept nogil
    cdef bint _go_on(self, WaitingPull* pull) noexcept nogil
    cdef int _ask_elsewhere(self, WaitingPull* pull) noexcept nogil
