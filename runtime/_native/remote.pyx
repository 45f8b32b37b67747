"""Remote access; ``remote.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from intentpm.foundation.primitives cimport copy_row
from intentpm.runtime._native.budget cimport Budget
from intentpm.runtime._native.cuts cimport Cuts
from intentpm.runtime._native.directory cimport known_owner, learn_owner
from intentpm.runtime._native.journal cimport EVENT_PARKED, Journal, note_traced
from intentpm.runtime._native.messages cimport (
    ACCESS_PULL, ACCESS_SET_STORED, FLAG_INDEXED, MSG_ACCESS, AccessBody, AccessHeader, access_body, is_read, reply_body,
)
from intentpm.runtime._native.parking cimport ParkedMessage, Parking
from intentpm.runtime._native.requests cimport (
    OPERATION_NO_MEMORY, OPERATION_OK, OPERATION_PEER_LOST, Operation, Request, RequestPool, reserve_positions,
)
from intentpm.runtime._native.rows cimport pull_row_atomic
from intentpm.runtime._native.staging cimport send_staged, stage, try_stage
from intentpm.runtime._native.state cimport STATE_ABSENT, STATE_REQUESTED
from intentpm.runtime._native.table_state cimport PREFETCH_ROWS, TableState, is_here, key_state, prefetch_key
from intentpm.transports.base cimport Transport


cdef inline uint32_t _who_serves(const TableState* table, int kind, int64_t key) noexcept nogil:
    """The key's owner, or this rank when it is here (arrived since the caller looked) or on its way."""
    # What overwrites the state too is for the owner alone: a replica cannot keep it.
    if kind == ACCESS_SET_STORED or key_state(table, key) == STATE_ABSENT:
        return known_owner(table, key)
    return table.rank


cdef inline uint32_t _keys_per_message(const TableState* table) noexcept nogil:
    return <uint32_t>max(<size_t>1, table.message_bytes // max(table.stored_bytes, <size_t>4))


cdef class RemoteAccess:
    def __init__(self, Transport transport not None, RequestPool requests not None, Budget budget not None):
        self.transport = transport
        self.requests = requests
        self.budget = budget
        self.parking = Parking()
        self.journal = Journal(transport)
        self.cuts = Cuts(transport, budget)
        self.counted.resize(transport.size + 1)

    def __dealloc__(self):
        for pull in self.waiting:
            free(pull.keys)

    # -- asking ----------------------------------------------------------------------------------------------------------

    cdef bint group_by_owner(
            self, Operation* operation, const int64_t* keys, const uint32_t* positions, size_t count) noexcept nogil:
        cdef TableState* table = operation.table
        cdef size_t i
        cdef uint32_t owner, at = 0, here
        if not reserve_positions(operation, count):
            return False
        if count == 1:
            operation.positions[0] = positions[0]
            return True
        for i in range(self.counted.size()):
            self.counted[i] = 0
        self.servers.resize(count)
        for i in range(count):
            owner = _who_serves(table, operation.kind, keys[positions[i]])
            self.servers[i] = owner
            self.counted[owner] += 1
        for i in range(self.counted.size()):
            here = self.counted[i]
            self.counted[i] = at
            at += here
        for i in range(count):
            owner = self.servers[i]
            operation.positions[self.counted[owner]] = positions[i]
            self.counted[owner] += 1
        return True

    cdef SubmitResult submit(self, Operation* operation, Submission* submission) noexcept nogil:
        cdef TableState* table = operation.table
        cdef uint32_t most = _keys_per_message(table)
        cdef uint32_t owner, end
        while submission.at < submission.count:
            owner = self._owner_at(operation, submission, submission.at)
            if owner == table.rank and operation.kind == ACCESS_PULL:
                if not self._pull_here(operation, submission):
                    return SUBMIT_FAILED
                continue
            if owner == table.rank:
                if not self._access_here(operation, submission):
                    return SUBMIT_FAILED
                submission.at += 1
                continue
            if self.requests.in_flight_to[owner] >= self.budget.window_requests:
                submission.blocked_on = owner
                return WINDOW_FULL
            end = submission.at + 1
            while (end < submission.count and end - submission.at < most
                   and self._owner_at(operation, submission, end) == owner):
                end += 1
            if not self._request(operation, submission, owner, end - submission.at):
                return SUBMIT_FAILED
            submission.at = end
        return SUBMITTED

    cdef inline uint32_t _owner_at(
            self, const Operation* operation, const Submission* submission, uint32_t at) noexcept nogil:
        return _who_serves(operation.table, operation.kind, submission.keys[operation.positions[at]])

    cdef bint _pull_here(self, Operation* operation, Submission* submission) noexcept nogil:
        """Pulls the next keys of the batch that are here, up to one for which this and all that follow have to wait."""
        cdef TableState* table = operation.table
        cdef uint32_t position, first
        cdef int64_t key
        while submission.at < submission.count:
            position = operation.positions[submission.at]
            key = submission.keys[position]
            if not is_here(table, key):
                break
            pull_row_atomic(table, key, submission.rows + position * table.row_bytes)
            submission.at += 1
        first = submission.at
        while submission.at < submission.count and self._owner_at(operation, submission, submission.at) == table.rank:
            submission.at += 1
        return submission.at == first or self._wait_for_keys(operation, submission, first, submission.at - first)

    cdef bint _access_here(self, Operation* operation, const Submission* submission) noexcept nogil:
        cdef TableState* table = operation.table
        cdef uint32_t position = operation.positions[submission.at]
        cdef int64_t key = submission.keys[position]
        cdef char* row = submission.rows + position * accessed_bytes(table, operation.kind)
        if is_here(table, key):
            access_row(table, operation.kind, key, row, submission.lr)
            return True
        # On its way here: the access waits for it. Sent to the owner instead, a write could be overtaken by the copy that is
        # on its way, and this worker would read its key without its own write.
        return self._park_own(operation, submission.at, key, row, submission.lr)

    cdef bint _park_own(
            self, Operation* operation, uint32_t at, int64_t key, const char* row, double lr) noexcept nogil:
        cdef TableState* table = operation.table
        cdef AccessHeader header
        memset(&header, 0, sizeof(header))
        header.count = 1
        header.table = <uint16_t>table.table_id
        header.origin = <uint16_t>table.rank
        header.kind = <uint8_t>operation.kind
        header.request = self.requests.open(operation, table.rank, at, 1, False)
        header.generation = self.requests.entries[header.request].generation
        if is_read(operation.kind):
            row = NULL
        if self.parking.park_access(table, <uint32_t>key, &header, 0, 0, lr, row):
            note_traced(self.journal, table, <uint32_t>key, EVENT_PARKED, table.rank)
            return True
        operation.status = OPERATION_NO_MEMORY
        self.requests.answered(&self.requests.entries[header.request], 1)
        return False

    cdef bint _request(
            self, Operation* operation, const Submission* submission, uint32_t owner, uint32_t count) noexcept nogil:
        """Sends positions [at, at + count) to ``owner``. False: operation.status says why not."""
        cdef TableState* table = operation.table
        cdef const uint32_t* positions = operation.positions + submission.at
        cdef AccessHeader header
        cdef AccessBody body
        cdef size_t row_bytes = accessed_bytes(table, operation.kind)
        cdef char* memory
        cdef uint32_t i
        header.count = count
        header.table = <uint16_t>table.table_id
        header.origin = <uint16_t>table.rank
        header.kind = <uint8_t>operation.kind
        header.flags = self.cuts.flags()
        header.hops = 0
        memory = try_stage(self.transport, access_body(NULL, &header, row_bytes).size_bytes)
        if memory == NULL:
            operation.status = OPERATION_NO_MEMORY
            return False
        body = access_body(memory, &header, row_bytes)
        for i in range(count):
            body.keys[i] = <uint32_t>submission.keys[positions[i]]
        if body.lr != NULL:
            body.lr[0] = submission.lr
        if body.rows != NULL:
            for i in range(count):
                copy_row(body.rows + i * row_bytes, submission.rows + positions[i] * row_bytes, row_bytes)
        header.request = self.requests.open(operation, owner, submission.at, count, not is_read(operation.kind))
        header.generation = self.requests.entries[header.request].generation
        if not send_staged(
                self.transport, owner, MSG_ACCESS, &header, sizeof(AccessHeader), memory, body.size_bytes):
            operation.status = OPERATION_PEER_LOST
            self.requests.answered(&self.requests.entries[header.request], count)
            return False
        return True

    cdef bint finish(
            self, uint32_t source, const AccessHeader* header, const char* body, size_t body_bytes) noexcept nogil:
        cdef Request* request = self.requests.find(header.request, header.generation)
        cdef TableState* table
        cdef AccessBody sections
        if request == NULL:
            return True                  # abandoned meanwhile
        table = request.operation.table
        sections = reply_body(<char*>body, header, accessed_bytes(table, header.kind))
        if sections.size_bytes != body_bytes or header.count == 0 or header.count > request.unanswered:
            return False
        if not self._scatter(request, header, &sections):
            return False
        if sections.keys != NULL:
            self.hops += <uint64_t>header.hops * header.count
            self._learn(table, source, header.count, &sections)
        self.requests.answered(request, header.count)
        if not self.waiting.empty():
            self.step_waiting()
        return True

    cdef bint _scatter(self, const Request* request, const AccessHeader* header, const AccessBody* sections) noexcept nogil:
        """Puts pulled rows to their places in the caller's batch."""
        cdef const Operation* operation = request.operation
        cdef size_t row_bytes = accessed_bytes(operation.table, operation.kind)
        cdef const uint32_t* positions = operation.positions + request.first
        cdef uint32_t i, at
        if sections.rows == NULL:
            return True
        for i in range(header.count):
            at = sections.index[i] if sections.index != NULL else i
            if at >= request.count:
                return False
            copy_row(operation.rows + positions[at] * row_bytes, sections.rows + i * row_bytes, row_bytes)
        return True

    cdef void _learn(self, TableState* table, uint32_t owner, uint32_t count, const AccessBody* sections) noexcept nogil:
        cdef uint32_t i
        for i in range(count):
            if sections.keys[i] < table.num_keys:
                learn_owner(table, sections.keys[i], owner, sections.epochs[i])

    # -- pulls of this rank's own that wait for keys ---------------------------------------------------------------------
    # They wait here, not at the owner: the copy that is on its way has the worker's earlier writes in any case. A key may leave
    # again, or its intent may end, before the pull has come to it; then the pull asks for it like for any other.

    cdef bint _wait_for_keys(
            self, Operation* operation, const Submission* submission, uint32_t first, uint32_t count) noexcept nogil:
        cdef WaitingPull pull
        cdef uint32_t i
        pull.table = operation.table
        pull.at = 0
        pull.count = count
        pull.keys = <uint32_t*>malloc(count * sizeof(uint32_t))
        if pull.keys == NULL:
            operation.status = OPERATION_NO_MEMORY
            return False
        for i in range(count):
            pull.keys[i] = <uint32_t>submission.keys[operation.positions[first + i]]
        if self.journal.tracing:
            for i in range(count):
                note_traced(self.journal, pull.table, pull.keys[i], EVENT_PARKED, pull.table.rank)
        pull.request = self.requests.open(operation, pull.table.rank, first, count, False)
        pull.generation = self.requests.entries[pull.request].generation
        self.waiting.push_back(pull)
        self.parking.parked_ever += count
        self.parking.parked_now += count
        return True

    cdef void step_waiting(self) noexcept nogil:
        cdef size_t i = 0
        cdef uint32_t before
        while i < self.waiting.size():
            before = self.waiting[i].at
            if self._go_on(&self.waiting[i]):
                self.parking.parked_now -= self.waiting[i].at - before
                i += 1
                continue
            self.parking.parked_now -= self.waiting[i].count - before
            free(self.waiting[i].keys)
            self.waiting[i] = self.waiting.back()
            self.waiting.pop_back()

    cdef bint _go_on(self, WaitingPull* pull) noexcept nogil:
        """Pulls what is here, up to a key that is still on its way. False: nothing is left to wait for."""
        cdef Request* request = self.requests.find(pull.request, pull.generation)
        cdef TableState* table = pull.table
        cdef const uint32_t* positions
        cdef uint32_t from_here = 0
        cdef uint64_t most_asked = <uint64_t>self.budget.window_requests * _keys_per_message(table)
        cdef int status
        if request == NULL:
            return False                 # abandoned, or failed
        positions = request.operation.positions + request.first
        while pull.at < pull.count and key_state(table, pull.keys[pull.at]) != STATE_REQUESTED:
            if key_state(table, pull.keys[pull.at]) == STATE_ABSENT:
                if request.unanswered - (pull.count - pull.at) - from_here >= most_asked:
                    break                # ``finish`` goes on with it
                status = self._ask_elsewhere(pull)
                if status != OPERATION_OK:
                    self.requests.fail(request.operation, status)
                    return False
                continue
            if pull.at + PREFETCH_ROWS < pull.count:
                prefetch_key(table, pull.keys[pull.at + PREFETCH_ROWS], False)
            pull_row_atomic(
                table, pull.keys[pull.at], request.operation.rows + positions[pull.at] * table.row_bytes)
            pull.at += 1
            from_here += 1
        if from_here > 0:
            self.requests.answered(request, from_here)
        return pull.at < pull.count

    cdef int _ask_elsewhere(self, WaitingPull* pull) noexcept nogil:
        """Asks for the next key, which is absent, and for those that follow as far as they are too, and at the same owner.

        Returns an OperationStatus.
        """
        cdef TableState* table = pull.table
        cdef uint32_t owner = known_owner(table, pull.keys[pull.at])
        cdef uint32_t end = pull.at
        cdef uint32_t most = _keys_per_message(table)
        cdef AccessHeader header
        cdef AccessBody body
        cdef char* memory
        cdef uint32_t i
        while (end < pull.count and end - pull.at < most and key_state(table, pull.keys[end]) == STATE_ABSENT
               and known_owner(table, pull.keys[end]) == owner):
            end += 1
        memset(&header, 0, sizeof(header))
        header.request = pull.request
        header.generation = pull.generation
        header.count = end - pull.at
        header.table = <uint16_t>table.table_id
        header.origin = <uint16_t>table.rank
        header.kind = ACCESS_PULL
        header.flags = FLAG_INDEXED
        memory = stage(self.transport, access_body(NULL, &header, table.row_bytes).size_bytes)
        if memory == NULL:
            return OPERATION_NO_MEMORY
        body = access_body(memory, &header, table.row_bytes)
        for i in range(header.count):
            body.keys[i] = pull.keys[pull.at + i]
            body.index[i] = pull.at + i
        pull.at = end
        if send_staged(self.transport, owner, MSG_ACCESS, &header, sizeof(AccessHeader), memory, body.size_bytes):
            return OPERATION_OK
        return OPERATION_PEER_LOST

    cdef uint32_t count_waiting(self, const TableState* table, uint32_t key) noexcept nogil:
        cdef uint32_t found = self.parking.count(table, key)
        cdef WaitingPull pull
        cdef uint32_t i
        for pull in self.waiting:
            for i in range(pull.at, pull.count if pull.table == table else 0):
                found += pull.keys[i] == key
        return found

    cdef void resume(self, TableState* table, uint32_t key, ParkedMessage* message) noexcept nogil:
        cdef Request* request = self.requests.find(message.access.request, message.access.generation)
        cdef char* row = message.row
        if request == NULL:
            return
        if is_read(message.access.kind):
            row = request.operation.rows + (
                request.operation.positions[request.first] * accessed_bytes(table, message.access.kind))
        access_row(table, message.access.kind, key, row, message.lr)
        self.requests.answered(request, 1)
