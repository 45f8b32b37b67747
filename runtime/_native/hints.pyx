"""Hints of an owner; ``hints.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from intentpm.runtime._native.directory cimport home_of, known_owner, learn_owner
from intentpm.runtime._native.holders cimport only_holder
from intentpm.runtime._native.intents cimport NEVER
from intentpm.runtime._native.journal cimport EVENT_OFFERED, note_decision
from intentpm.runtime._native.messages cimport MSG_MOVED, MSG_OFFER, RoundHeader, indices_bytes
from intentpm.runtime._native.mutations cimport MUTATION_HOME_NOT_TOLD, is_planted
from intentpm.runtime._native.policy cimport may_relocate
from intentpm.runtime._native.prefetching cimport prefetch_hints, prefetch_owners
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.round_order cimport group_by_table
from intentpm.runtime._native.state cimport KeyRef, KeyRefs
from intentpm.runtime._native.table_state cimport TableState
from intentpm.runtime._native.staging cimport send_staged, stage

cdef enum:
    HINT_GAP_NS = 10_000_000
    MESSAGE_HINTS = 16384


cdef class Hints:
    def __init__(self, RemoteAccess remote not None, management: int):
        self.remote = remote
        self.transport = remote.transport
        self.journal = remote.journal
        self.management = management
        self.due_ns = NEVER
        self.offers.resize(self.transport.size)
        self.moved.resize(self.transport.size)

    # -- noting ----------------------------------------------------------------------------------------------------------

    cdef void note_move(self, TableState* table, uint32_t key, uint32_t owner) noexcept nogil:
        """The key's home rank has to hear of it, unless it is one of the two; in a small job everybody does.

        A rank that has heard need not be forwarded: with 4 ranks forwarding was every second message.
        """
        cdef uint32_t home = home_of(table, key)
        cdef uint32_t peer
        cdef uint32_t first = home if table.size > WELL_KNOWN_RANKS else 0
        cdef uint32_t end = home + 1 if table.size > WELL_KNOWN_RANKS else table.size
        for peer in range(first, end):
            if peer != table.rank and peer != owner and not is_planted(MUTATION_HOME_NOT_TOLD):
                self._note(table, key, self.moved[peer])

    cdef void offer_to_last_holder(self, TableState* table, uint32_t key) noexcept nogil:
        cdef int64_t last = only_holder(table, key)
        if last >= 0 and may_relocate(self.management):
            self._note(table, key, self.offers[last])
            note_decision(self.journal, table, key, EVENT_OFFERED, <uint32_t>last, table.records[key].epoch)

    cdef void _note(self, TableState* table, uint32_t key, KeyRefs& hints) noexcept nogil:
        cdef KeyRef reference
        reference.table = table.table_id
        reference.key = key
        hints.push_back(reference)
        self.due_ns = min(self.due_ns, self.journal.now_ns + HINT_GAP_NS)

    # -- telling ---------------------------------------------------------------------------------------------------------

    cdef int64_t step(self, int64_t now_ns) noexcept nogil:
        cdef uint32_t peer
        if now_ns < self.due_ns:
            return self.due_ns
        self.due_ns = NEVER
        for peer in range(<uint32_t>self.moved.size()):
            if not self.moved[peer].empty():
                self._send(peer, MSG_MOVED, self.moved[peer])
            if not self.offers[peer].empty():
                self._send(peer, MSG_OFFER, self.offers[peer])
        return NEVER

    cdef void _send(self, uint32_t peer, uint8_t message_id, KeyRefs& hints) noexcept nogil:
        cdef size_t at = 0
        group_by_table(hints, 0, hints.size())
        while at < hints.size():
            at = self._send_of_table(peer, message_id, hints, at)
        hints.clear()

    cdef size_t _send_of_table(
            self, uint32_t peer, uint8_t message_id, const KeyRefs& hints, size_t at) noexcept nogil:
        """One message; returns the first hint not looked at."""
        cdef RoundHeader header
        cdef TableState* table = self.remote.tables[hints[at].table]
        cdef uint32_t key, section, i
        cdef uint32_t* numbers
        cdef size_t body_bytes
        self.keys.clear()
        while at < hints.size() and hints[at].table == table.table_id and self.keys.size() < MESSAGE_HINTS:
            prefetch_hints(table, hints.data(), at, hints.size(), message_id == MSG_OFFER)
            key = hints[at].key
            at += 1
            if self._is_true(table, message_id, key, peer):
                self.keys.push_back(key)
        if self.keys.empty():
            return at
        memset(&header, 0, sizeof(header))
        header.count = <uint32_t>self.keys.size()
        header.table = <uint16_t>table.table_id
        header.origin = <uint16_t>table.rank
        body_bytes = hint_bytes(message_id, header.count)
        numbers = <uint32_t*>stage(self.transport, body_bytes)
        section = <uint32_t>(indices_bytes(header.count) // sizeof(uint32_t))
        if numbers != NULL:
            memcpy(numbers, self.keys.data(), header.count * sizeof(uint32_t))
        if numbers != NULL and message_id == MSG_MOVED:
            for i in range(header.count):
                numbers[section + i] = table.records[self.keys[i]].epoch
                numbers[2 * section + i] = known_owner(table, self.keys[i])
        send_staged(self.transport, peer, message_id, &header, sizeof(header), <char*>numbers, body_bytes)
        return at

    cdef bint _is_true(self, TableState* table, uint8_t message_id, uint32_t key, uint32_t peer) noexcept nogil:
        if message_id == MSG_MOVED:
            return known_owner(table, key) != peer
        return (
            known_owner(table, key) == table.rank and table.records[key].intent_refs == 0
            and only_holder(table, key) == <int64_t>peer)

    cdef void restart(self) noexcept nogil:
        cdef uint32_t peer
        self.due_ns = NEVER
        for peer in range(<uint32_t>self.moved.size()):
            self.moved[peer].clear()
            self.offers[peer].clear()

    # -- hearing ---------------------------------------------------------------------------------------------------------

    cdef bint learn_moves(self, TableState* table, const RoundHeader* header, const uint32_t* numbers) noexcept nogil:
        cdef uint32_t i
        cdef uint32_t section = <uint32_t>(indices_bytes(header.count) // sizeof(uint32_t))
        for i in range(header.count):
            if numbers[2 * section + i] >= table.size:
                return False
            prefetch_owners(table, numbers, i, header.count)
            learn_owner(table, numbers[i], numbers[2 * section + i], numbers[section + i])
        return True
