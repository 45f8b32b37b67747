"""Calls that wait for other ranks; ``requests.pxd`` is the contract."""

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc

from intentpm.foundation.primitives cimport add_release, store_release
from intentpm.runtime._native.table_state cimport TableState

cdef enum:
    NO_ENTRY = 0xffffffff


cdef void begin_operation(
        Operation* operation, TableState* table, int kind, char* rows, uint32_t* open_operations) noexcept nogil:
    operation.table = table
    operation.kind = kind
    operation.rows = rows
    operation.positions = operation.inline_positions
    operation.open_requests = 1
    operation.open_operations = open_operations
    operation.status = OPERATION_OK
    operation.done = 0
    if open_operations != NULL:
        add_release(open_operations, 1)


cdef bint reserve_positions(Operation* operation, size_t count) noexcept nogil:
    if count > INLINE_POSITIONS:
        operation.positions = <uint32_t*>malloc(count * sizeof(uint32_t))
    return operation.positions != NULL


cdef void end_here(Operation* operation) noexcept nogil:
    operation.open_requests = 0
    if operation.open_operations != NULL:
        add_release(operation.open_operations, <uint32_t>-1)
    store_release(&operation.done, 1)


cdef void end_operation(Operation* operation) noexcept nogil:
    """Frees what the operation holds; it must be done."""
    if operation.positions != operation.inline_positions:
        free(operation.positions)
        operation.positions = operation.inline_positions


cdef class RequestPool:
    def __init__(self, size: int):
        """size: ranks in the job."""
        self.free_head = NO_ENTRY
        self.in_flight_to.resize(size, 0)

    cdef uint32_t open(
            self, Operation* operation, uint32_t destination, uint32_t first, uint32_t count, bint is_write) noexcept nogil:
        cdef uint32_t index = self.free_head
        cdef Request fresh
        if index == NO_ENTRY:
            fresh.generation = 0
            index = <uint32_t>self.entries.size()
            self.entries.push_back(fresh)
        else:
            self.free_head = self.entries[index].next_free
        cdef Request* request = &self.entries[index]
        request.operation = operation
        request.generation += 1
        request.destination = destination
        request.first = first
        request.count = request.unanswered = count
        request.phase = self.phase if is_write else <uint32_t>NO_PHASE
        self.writes_open[request.phase] += 1
        operation.open_requests += 1
        self.in_flight += 1
        self.in_flight_to[destination] += 1
        return index

    cdef Request* find(self, uint32_t request, uint32_t generation) noexcept nogil:
        if request >= self.entries.size() or self.entries[request].generation != generation:
            return NULL
        return &self.entries[request] if self.entries[request].operation != NULL else NULL

    cdef void answered(self, Request* request, uint32_t keys) noexcept nogil:
        request.unanswered -= keys
        if request.unanswered == 0:
            self._finish(request)

    cdef void _finish(self, Request* request) noexcept nogil:
        cdef Operation* operation = request.operation
        self.in_flight -= 1
        self.writes_open[request.phase] -= 1
        self.in_flight_to[request.destination] -= 1
        request.operation = NULL
        request.next_free = self.free_head
        self.free_head = <uint32_t>(request - &self.entries[0])
        self._release(operation)

    cdef void _release(self, Operation* operation) noexcept nogil:
        operation.open_requests -= 1
        if operation.open_requests == 0:
            self.finished += 1
            if operation.open_operations != NULL:
                add_release(operation.open_operations, <uint32_t>-1)
            store_release(&operation.done, 1)

    cdef void close_submission(self, Operation* operation) noexcept nogil:
        """All requests are open: the operation is done when they are."""
        self._release(operation)

    cdef void fail(self, Operation* operation, int status) noexcept nogil:
        cdef size_t i
        for i in range(self.entries.size()):
            if self.entries[i].operation != NULL and (operation == NULL or self.entries[i].operation == operation):
                self.entries[i].operation.status = status
                self._finish(&self.entries[i])
