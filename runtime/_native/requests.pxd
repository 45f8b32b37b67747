"""Calls that wait for other ranks: an operation is split into requests, one per message; answers count them down.

Guarantees
    * Every request is answered, failed or abandoned exactly once; an answer to a request that is over finds nobody.
    * ``Operation.done`` is stored last (release): who loads it true (acquire) may read everything else.
Assumptions
    * All of it is guarded by the engine's lock, except ``done``.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.runtime._native.table_state cimport TableState


cdef enum OperationStatus:
    OPERATION_OK = 0
    OPERATION_PEER_LOST = 1
    OPERATION_NO_MEMORY = 2
    OPERATION_ABANDONED = 3
    OPERATION_RANK_LOST = 4      # a rank was lost, and the job goes on (membership.pxd)

cdef enum:
    INLINE_POSITIONS = 4


# One pull, push or set of a worker, or one collective call. Lives in the caller's future until done.
cdef struct Operation:
    TableState* table
    int kind                     # AccessKind
    char* rows                   # pull: the caller's rows; answers are written to their positions
    uint32_t* positions          # which rows of the caller's batch, grouped by request; inline or malloc'ed
    uint32_t inline_positions[INLINE_POSITIONS]
    uint32_t open_requests       # +1 while still submitting
    uint32_t* open_operations    # a worker's count of unfinished writes, decremented when done (atomic); may be NULL
    int status                   # OperationStatus
    uint32_t done                # atomic: release / acquire


cdef struct Request:
    Operation* operation         # NULL: free, or abandoned
    uint32_t generation
    uint32_t destination         # where it was sent; the answers may come from elsewhere
    uint32_t first               # into operation.positions
    uint32_t count
    uint32_t unanswered          # keys
    uint32_t next_free
    uint32_t phase               # of a write on its way to another rank (see writes_open); else NO_PHASE

cdef enum:
    NO_PHASE = 2


@cython.final
cdef class RequestPool:
    cdef vector[Request] entries
    cdef uint32_t free_head
    cdef readonly uint32_t in_flight
    cdef vector[uint32_t] in_flight_to   # per rank
    cdef uint64_t finished                # operations finished so far; lets the engine see that somebody may be waiting

    # Writes on their way, in two phases: who must wait for all that are open now flips ``phase`` and waits for the other
    # count to reach zero, however many are opened meanwhile.
    cdef uint32_t writes_open[3]
    cdef uint32_t phase

    cdef uint32_t open(
        self, Operation* operation, uint32_t destination, uint32_t first, uint32_t count, bint is_write) noexcept nogil
    # The request an answer speaks of; NULL when it is over.
    cdef Request* find(self, uint32_t request, uint32_t generation) noexcept nogil
    cdef void answered(self, Request* request, uint32_t keys) noexcept nogil
    # Ends every request (of one operation, or all when NULL) with ``status``.
    cdef void fail(self, Operation* operation, int status) noexcept nogil
    cdef void close_submission(self, Operation* operation) noexcept nogil
    # private
    cdef void _finish(self, Request* request) noexcept nogil
    cdef void _release(self, Operation* operation) noexcept nogil


cdef void begin_operation(
    Operation* operation, TableState* table, int kind, char* rows, uint32_t* open_operations) noexcept nogil
cdef bint reserve_positions(Operation* operation, size_t count) noexcept nogil
# One that was begun and that no request was made for is done.
cdef void end_here(Operation* operation) noexcept nogil
cdef void end_operation(Operation* operation) noexcept nogil
