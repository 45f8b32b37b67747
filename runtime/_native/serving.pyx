"""Serving other ranks; ``serving.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy

from intentpm.runtime._native.directory cimport known_owner
from intentpm.runtime._native.journal cimport EVENT_FORWARDED, EVENT_PARKED, note_traced
from intentpm.runtime._native.messages cimport (
    ACCESS_KINDS, ACCESS_STEP, CUT_MASK, FLAG_FORWARDED, FLAG_INDEXED, MSG_ACCESS, MSG_REPLY, AccessBody, AccessHeader,
    access_body, is_read, reply_body,
)
from intentpm.runtime._native.parking cimport ParkedMessage
from intentpm.runtime._native.remote cimport RemoteAccess, access_row, accessed_bytes, write_owned
from intentpm.runtime._native.staging cimport send_staged, stage, unstage
from intentpm.runtime._native.state cimport STATE_OWNED
from intentpm.runtime._native.table_state cimport PREFETCH_ROWS, TableState, prefetch_key


cdef class Serving:
    def __init__(self, RemoteAccess remote not None):
        self.remote = remote
        self.transport = remote.transport
        self.parking = remote.parking
        self.journal = remote.journal

    cdef bint serve(
            self, uint32_t source, const AccessHeader* header, const char* body, size_t body_bytes) noexcept nogil:
        cdef TableState* table
        cdef AccessBody sections
        cdef uint32_t i
        if header.table >= self.remote.table_count or header.kind >= ACCESS_KINDS or header.origin >= self.transport.size:
            return False
        table = self.remote.tables[header.table]
        if header.kind >= ACCESS_STEP and table.optimiser == NULL:
            return False
        sections = access_body(<char*>body, header, accessed_bytes(table, header.kind))
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
        cdef size_t row_bytes = accessed_bytes(table, asked.kind)
        cdef bint reads = is_read(asked.kind)
        cdef double lr = sections.lr[0] if sections.lr != NULL else 0.0
        cdef char* memory
        cdef char* row
        cdef uint32_t i, here = 0
        cdef bint is_new = not reads and self.remote.cuts.is_new(table, asked.flags)
        self.grouped.clear()
        self.parked.clear()
        header.flags = FLAG_INDEXED | FLAG_FORWARDED     # room for all sections
        memory = stage(self.transport, reply_body(NULL, &header, row_bytes).size_bytes)
        if memory == NULL:
            return True
        for i in range(asked.count):
            if i + PREFETCH_ROWS < asked.count:
                prefetch_key(table, sections.keys[i + PREFETCH_ROWS], not reads)
            row = memory + here * row_bytes
            if not reads:
                row = sections.rows + i * row_bytes
            if self._access_owned(table, asked.kind, sections.keys[i], row, lr, is_new):
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
        reply = reply_body(memory, &header, row_bytes)
        self._fill_index(table, asked, sections, &reply)
        if here == 0:
            unstage(memory, 1)
        elif asked.origin == table.rank:     # its own request came back by way of an earlier owner
            self.remote.finish(table.rank, &header, memory, reply.size_bytes)
            unstage(memory, 1)
        else:
            send_staged(
                self.transport, asked.origin, MSG_REPLY, &header, sizeof(AccessHeader), memory, reply.size_bytes)
        return self.grouped.empty() or self._forward(table, asked, sections)

    cdef inline bint _access_owned(
            self, TableState* table, int kind, int64_t key, char* row, double lr, bint is_new) noexcept nogil:
        # Only the owner may answer: a replica may lag behind, and a write to it would come back to it as news.
        if known_owner(table, key) != table.rank:
            return False
        if table.snapshot != NULL and not is_read(kind):
            return write_owned(table, kind, key, row, lr, is_new)
        return access_row(table, kind, key, row, lr) == STATE_OWNED

    cdef bint _park_if_coming(
            self, TableState* table, const AccessHeader* asked, const AccessBody* sections, uint32_t i) noexcept nogil:
        """The rank that forwarded the key knows a newer epoch, in which this rank is the owner: the row is on its way."""
        cdef const char* row = NULL
        if sections.epochs == NULL or sections.epochs[i] <= table.records[sections.keys[i]].epoch:
            return False
        if sections.rows != NULL:
            row = sections.rows + i * accessed_bytes(table, asked.kind)
        note_traced(self.journal, table, sections.keys[i], EVENT_PARKED, asked.origin)
        if not self.parking.park_access(
                table, sections.keys[i], asked, sections.index[i] if sections.index != NULL else i, sections.epochs[i],
                sections.lr[0] if sections.lr != NULL else 0.0, row):
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
        cdef size_t row_bytes = accessed_bytes(table, asked.kind)
        cdef char* memory
        cdef uint32_t i, to = 0
        cdef size_t g
        header.hops += 1
        header.flags = FLAG_INDEXED | FLAG_FORWARDED | (asked.flags & CUT_MASK)
        header.count = 0
        for g in range(self.grouped.size()):
            header.count += known_owner(table, sections.keys[self.grouped[g]]) == owner
        memory = stage(self.transport, access_body(NULL, &header, row_bytes).size_bytes)
        if memory == NULL:
            return
        body = access_body(memory, &header, row_bytes)
        if body.lr != NULL:
            body.lr[0] = sections.lr[0]
        for g in range(self.grouped.size()):
            i = self.grouped[g]
            if known_owner(table, sections.keys[i]) != owner:
                continue
            body.keys[to] = sections.keys[i]
            body.index[to] = sections.index[i] if sections.index != NULL else i
            body.epochs[to] = table.records[sections.keys[i]].epoch
            note_traced(self.journal, table, sections.keys[i], EVENT_FORWARDED, owner)
            if body.rows != NULL:
                memcpy(body.rows + to * row_bytes, sections.rows + i * row_bytes, row_bytes)
            to += 1
        send_staged(self.transport, owner, MSG_ACCESS, &header, sizeof(AccessHeader), memory, body.size_bytes)

    cdef void serve_parked(self, TableState* table, uint32_t key, ParkedMessage* message) noexcept nogil:
        cdef AccessHeader header = message.access
        cdef AccessBody sections
        if header.origin == table.rank and header.hops == 0:
            self.remote.resume(table, key, message)
            return
        header.count = 1
        header.flags = FLAG_INDEXED | FLAG_FORWARDED | (header.flags & CUT_MASK)
        sections.keys = &key
        sections.index = &message.index
        sections.epochs = &message.epoch
        sections.lr = &message.lr if header.kind == ACCESS_STEP else NULL
        sections.rows = message.row if message.has_row and not is_read(header.kind) else <char*>NULL
        self._answer(table, &header, &sections)
