"""Remote access; ``remote.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from intentpm.runtime._native.directory cimport known_owner, learn_owner
from intentpm.runtime._native.journal cimport EVENT_FORWARDED, EVENT_PARKED, Journal, note_traced
from intentpm.runtime._native.messages cimport (
    ACCESS_PULL, ACCESS_PUSH, ACCESS_SET, FLAG_FORWARDED, FLAG_INDEXED, MSG_ACCESS, MSG_REPLY, AccessBody, AccessHeader,
    access_body, reply_body,
)
from intentpm.runtime._native.parking cimport ParkedMessage, Parking
from intentpm.foundation.primitives cimport copy_row
from intentpm.runtime._native.requests cimport (
    OPERATION_NO_MEMORY, OPERATION_OK, OPERATION_PEER_LOST, Operation, Request, RequestPool, reserve_positions,
)
from intentpm.runtime._native.state cimport STATE_ABSENT, STATE_OWNED, STATE_REQUESTED, KeyState
from intentpm.runtime._native.rows cimport pull_row_atomic, push_row_atomic, set_row_atomic
from intentpm.runtime._native.table_state cimport PREFETCH_ROWS, TableState, is_here, key_state, prefetch_key
from intentpm.transports.base cimport HOST_MEMORY, SEND_NO_MEMORY, SEND_OK, Piece, SendStatus, Transport


# -- staged bodies -------------------------------------------------------------------------------------------------------

cdef enum:
    STAGED_HEADER_BYTES = 64     # keeps the body on a cache line

cdef struct Staged:
    void* transport
    size_t size_bytes            # header included


cdef char* try_stage(Transport transport, size_t size_bytes) noexcept nogil:
    """Memory for a message body of ``size_bytes``; NULL: out of memory. Pass it to send_staged."""
    cdef char* memory = transport.allocate(size_bytes + STAGED_HEADER_BYTES)
    if memory == NULL:
        return NULL
    (<Staged*>memory).transport = <void*>transport
    (<Staged*>memory).size_bytes = size_bytes + STAGED_HEADER_BYTES
    return memory + STAGED_HEADER_BYTES


cdef char* stage(Transport transport, size_t size_bytes) noexcept nogil:
    """As try_stage; NULL ends the job."""
    cdef char* memory = try_stage(transport, size_bytes)
    if memory == NULL:
        transport.out_of_memory = True
    return memory


cdef void unstage(void* body, int status) noexcept nogil:
    """Gives a staged body back (also the transport's way to say it was sent)."""
    cdef char* memory = <char*>body - STAGED_HEADER_BYTES
    (<Transport>(<Staged*>memory).transport).release(memory, (<Staged*>memory).size_bytes)


cdef bint send_staged(
        Transport transport, uint32_t destination, uint8_t message_id, const void* header, size_t header_bytes,
        char* body, size_t body_bytes) noexcept nogil:
    """Sends and gives the body away, whatever the result. NULL: there was no memory for it.

    False: the peer is lost, or memory has run out; either ends the job.
    """
    cdef Piece piece
    cdef SendStatus status
    if body == NULL:
        return False
    transport.sent_bytes_of[message_id & 31] += header_bytes + body_bytes
    piece.data = body
    piece.size_bytes = body_bytes
    piece.memory = HOST_MEMORY
    status = transport.send(destination, message_id, <const char*>header, header_bytes, &piece, 1, unstage, body)
    if status == SEND_OK:
        return True
    unstage(body, 1)
    if status == SEND_NO_MEMORY:
        transport.out_of_memory = True
    return False


# -- one key, here -------------------------------------------------------------------------------------------------------

cdef inline KeyState _access_row(TableState* table, int kind, int64_t key, char* row) noexcept nogil:
    if kind == ACCESS_PULL:
        return pull_row_atomic(table, key, row)
    if kind == ACCESS_PUSH:
        return push_row_atomic(table, key, row)
    return set_row_atomic(table, key, row)


cdef inline uint32_t _who_serves(const TableState* table, int64_t key) noexcept nogil:
    """The key's owner, or this rank when it is here (arrived since the caller looked) or on its way."""
    return table.rank if key_state(table, key) != STATE_ABSENT else known_owner(table, key)


cdef class RemoteAccess:
    def __init__(self, Transport transport not None, RequestPool requests not None):
        self.transport = transport
        self.requests = requests
        self.parking = Parking()
        self.journal = Journal(transport)
        self.counted.resize(transport.size + 1)

    def __dealloc__(self):
        for pull in self.waiting:
            free(pull.keys)

    # -- origin ----------------------------------------------------------------------------------------------------------

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
            owner = _who_serves(table, keys[positions[i]])
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
        cdef uint32_t chunk_keys = <uint32_t>max(<size_t>1, CHUNK_BYTES // max(table.row_bytes, <size_t>4))
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
            if self.requests.in_flight_to[owner] >= WINDOW_REQUESTS:
                submission.blocked_on = owner
                return WINDOW_FULL
            end = submission.at + 1
            while (end < submission.count and end - submission.at < chunk_keys
                   and self._owner_at(operation, submission, end) == owner):
                end += 1
            if not self._request(operation, submission, owner, end - submission.at):
                return SUBMIT_FAILED
            submission.at = end
        return SUBMITTED

    cdef inline uint32_t _owner_at(
            self, const Operation* operation, const Submission* submission, uint32_t at) noexcept nogil:
        return _who_serves(operation.table, submission.keys[operation.positions[at]])

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
        cdef char* row = submission.rows + position * table.row_bytes
        if is_here(table, key):
            _access_row(table, operation.kind, key, row)
            return True
        # On its way here: the access waits for it. Sent to the owner instead, a write could be overtaken by the copy that is
        # on its way, and this worker would read its key without its own write.
        return self._park_own(operation, submission.at, key, row)

    cdef bint _park_own(self, Operation* operation, uint32_t at, int64_t key, const char* row) noexcept nogil:
        cdef TableState* table = operation.table
        cdef AccessHeader header
        memset(&header, 0, sizeof(header))
        header.count = 1
        header.table = <uint16_t>table.table_id
        header.origin = <uint16_t>table.rank
        header.kind = <uint8_t>operation.kind
        header.request = self.requests.open(operation, table.rank, at, 1, False)
        header.generation = self.requests.entries[header.request].generation
        if self.parking.park_access(table, <uint32_t>key, &header, 0, 0, row):
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
        cdef char* memory
        cdef uint32_t i
        header.count = count
        header.table = <uint16_t>table.table_id
        header.origin = <uint16_t>table.rank
        header.kind = <uint8_t>operation.kind
        header.flags = 0
        header.hops = 0
        memory = try_stage(self.transport, access_body(NULL, &header, table.row_bytes).size_bytes)
        if memory == NULL:
            operation.status = OPERATION_NO_MEMORY
            return False
        body = access_body(memory, &header, table.row_bytes)
        for i in range(count):
            body.keys[i] = <uint32_t>submission.keys[positions[i]]
        if body.rows != NULL:
            for i in range(count):
                copy_row(
                    body.rows + i * table.row_bytes, submission.rows + positions[i] * table.row_bytes,
                    table.row_bytes)
        header.request = self.requests.open(operation, owner, submission.at, count, operation.kind != ACCESS_PULL)
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
        sections = reply_body(<char*>body, header, table.row_bytes)
        if sections.size_bytes != body_bytes or header.count == 0 or header.count > request.unanswered:
            return False
        if not self._scatter(request, header, &sections):
            return False
        if sections.keys != NULL:
            self.hops += <uint64_t>header.hops * header.count
            self._learn(table, source, header.count, &sections)
        self.requests.answered(request, header.count)
        return True

    cdef bint _scatter(self, const Request* request, const AccessHeader* header, const AccessBody* sections) noexcept nogil:
        """Puts pulled rows to their places in the caller's batch."""
        cdef const Operation* operation = request.operation
        cdef size_t row_bytes = operation.table.row_bytes
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

    # -- owner -----------------------------------------------------------------------------------------------------------

    cdef bint serve(
            self, uint32_t source, const AccessHeader* header, const char* body, size_t body_bytes) noexcept nogil:
        cdef TableState* table
        cdef AccessBody sections
        cdef uint32_t i
        if header.table >= self.table_count or header.kind > ACCESS_SET or header.origin >= self.transport.size:
            return False
        table = self.tables[header.table]
        sections = access_body(<char*>body, header, table.row_bytes)
        if sections.size_bytes != body_bytes or header.count == 0:
            return False
        for i in range(header.count):
            if sections.keys[i] >= table.num_keys:
                return False
        return self._answer(table, header, &sections)

    cdef bint _answer(self, TableState* table, const AccessHeader* asked, const AccessBody* sections) noexcept nogil:
        """Applies what is owned here, replies for it, and forwards the rest."""
        cdef AccessHeader header = asked[0]
        cdef AccessBody reply
        cdef char* memory
        cdef char* row
        cdef uint32_t i, here = 0
        self.grouped.clear()
        self.parked.clear()
        header.flags = FLAG_INDEXED | FLAG_FORWARDED     # room for all sections
        memory = stage(self.transport, reply_body(NULL, &header, table.row_bytes).size_bytes)
        if memory == NULL:
            return True
        for i in range(asked.count):
            if i + PREFETCH_ROWS < asked.count:
                prefetch_key(table, sections.keys[i + PREFETCH_ROWS], asked.kind != ACCESS_PULL)
            row = memory + here * table.row_bytes
            if asked.kind != ACCESS_PULL:
                row = sections.rows + i * table.row_bytes
            if self._access_owned(table, asked.kind, sections.keys[i], row):
                here += 1
            elif not self._park_if_coming(table, asked, sections, i):
                self.grouped.push_back(i)
            else:
                self.parked.push_back(i)
        self.served_keys += here
        header.count = here
        header.flags = 0
        if asked.hops > 0:
            header.flags |= FLAG_FORWARDED
        if asked.flags & FLAG_INDEXED or here < asked.count:
            header.flags |= FLAG_INDEXED
        reply = reply_body(memory, &header, table.row_bytes)
        self._fill_index(table, asked, sections, &reply)
        if here == 0:
            unstage(memory, 1)
        elif asked.origin == table.rank:     # its own request came back by way of an earlier owner
            self.finish(table.rank, &header, memory, reply.size_bytes)
            unstage(memory, 1)
        else:
            send_staged(
                self.transport, asked.origin, MSG_REPLY, &header, sizeof(AccessHeader), memory, reply.size_bytes)
        return self.grouped.empty() or self._forward(table, asked, sections)

    cdef inline bint _access_owned(self, TableState* table, int kind, int64_t key, char* row) noexcept nogil:
        # Only the owner may answer: a replica may lag behind, and a write to it would come back to it as news.
        if known_owner(table, key) != table.rank:
            return False
        return _access_row(table, kind, key, row) == STATE_OWNED

    cdef bint _park_if_coming(
            self, TableState* table, const AccessHeader* asked, const AccessBody* sections, uint32_t i) noexcept nogil:
        """The rank that forwarded the key knows a newer epoch, in which this rank is the owner: the row is on its way."""
        cdef const char* row = NULL
        if sections.epochs == NULL or sections.epochs[i] <= table.records[sections.keys[i]].epoch:
            return False
        if sections.rows != NULL:
            row = sections.rows + i * table.row_bytes
        note_traced(self.journal, table, sections.keys[i], EVENT_PARKED, asked.origin)
        if not self.parking.park_access(
                table, sections.keys[i], asked, sections.index[i] if sections.index != NULL else i, sections.epochs[i], row):
            self.transport.out_of_memory = True
        return True

    cdef void _fill_index(
            self, TableState* table, const AccessHeader* asked, const AccessBody* sections, AccessBody* reply) noexcept nogil:
        """Says which keys of the origin's request the reply is for: all asked ones but those forwarded or parked."""
        cdef uint32_t i, to = 0
        cdef size_t skipped = 0, waiting = 0
        if reply.index == NULL and reply.keys == NULL:
            return
        for i in range(asked.count):
            if skipped < self.grouped.size() and self.grouped[skipped] == i:
                skipped += 1
                continue
            if waiting < self.parked.size() and self.parked[waiting] == i:
                waiting += 1
                continue
            if reply.index != NULL:
                reply.index[to] = sections.index[i] if sections.index != NULL else i
            if reply.keys != NULL:
                reply.keys[to] = sections.keys[i]
                reply.epochs[to] = table.records[sections.keys[i]].epoch
            to += 1

    cdef bint _forward(self, TableState* table, const AccessHeader* asked, const AccessBody* sections) noexcept nogil:
        """Sends the keys in ``grouped`` on to their owners as far as this rank knows, one message per owner."""
        cdef uint32_t owner
        cdef size_t i, kept
        self.forwarded_keys += self.grouped.size()
        while not self.grouped.empty():
            owner = known_owner(table, sections.keys[self.grouped[0]])
            if owner == table.rank:
                return False
            self._forward_to(table, owner, asked, sections)
            kept = 0
            for i in range(self.grouped.size()):
                if known_owner(table, sections.keys[self.grouped[i]]) != owner:
                    self.grouped[kept] = self.grouped[i]
                    kept += 1
            self.grouped.resize(kept)
        return True

    cdef void _forward_to(
            self, TableState* table, uint32_t owner, const AccessHeader* asked, const AccessBody* sections) noexcept nogil:
        cdef AccessHeader header = asked[0]
        cdef AccessBody body
        cdef char* memory
        cdef uint32_t i, to = 0
        cdef size_t g
        header.hops += 1
        header.flags = FLAG_INDEXED | FLAG_FORWARDED
        header.count = 0
        for g in range(self.grouped.size()):
            header.count += known_owner(table, sections.keys[self.grouped[g]]) == owner
        memory = stage(self.transport, access_body(NULL, &header, table.row_bytes).size_bytes)
        if memory == NULL:
            return
        body = access_body(memory, &header, table.row_bytes)
        for g in range(self.grouped.size()):
            i = self.grouped[g]
            if known_owner(table, sections.keys[i]) != owner:
                continue
            body.keys[to] = sections.keys[i]
            body.index[to] = sections.index[i] if sections.index != NULL else i
            body.epochs[to] = table.records[sections.keys[i]].epoch
            note_traced(self.journal, table, sections.keys[i], EVENT_FORWARDED, owner)
            if body.rows != NULL:
                memcpy(body.rows + to * table.row_bytes, sections.rows + i * table.row_bytes, table.row_bytes)
            to += 1
        send_staged(self.transport, owner, MSG_ACCESS, &header, sizeof(AccessHeader), memory, body.size_bytes)

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
        cdef int status
        if request == NULL:
            return False                 # abandoned, or failed
        positions = request.operation.positions + request.first
        while pull.at < pull.count and key_state(table, pull.keys[pull.at]) != STATE_REQUESTED:
            if key_state(table, pull.keys[pull.at]) == STATE_ABSENT:
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
        cdef uint32_t most = <uint32_t>max(<size_t>1, CHUNK_BYTES // max(table.row_bytes, <size_t>4))
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

    # -- parked accesses -------------------------------------------------------------------------------------------------

    cdef void serve_parked(self, TableState* table, uint32_t key, ParkedMessage* message) noexcept nogil:
        cdef AccessHeader header = message.access
        cdef AccessBody sections
        if header.origin == table.rank and header.hops == 0:
            self._resume_own(table, key, message)
            return
        header.count = 1
        header.flags = FLAG_INDEXED | FLAG_FORWARDED
        sections.keys = &key
        sections.index = &message.index
        sections.epochs = &message.epoch
        sections.rows = message.row if message.has_row and header.kind != ACCESS_PULL else <char*>NULL
        self._answer(table, &header, &sections)

    cdef void _resume_own(self, TableState* table, uint32_t key, ParkedMessage* message) noexcept nogil:
        """An access of this rank's own worker, whose key is here now (owned or replica)."""
        cdef Request* request = self.requests.find(message.access.request, message.access.generation)
        cdef char* row = message.row
        if request == NULL:
            return
        if message.access.kind == ACCESS_PULL:
            row = request.operation.rows + request.operation.positions[request.first] * table.row_bytes
        _access_row(table, message.access.kind, key, row)
        self.requests.answered(request, 1)
