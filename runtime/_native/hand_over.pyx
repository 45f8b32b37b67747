"""Hand-over of contended keys; ``hand_over.pxd`` is the contract."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from intentpm.foundation.primitives cimport load_relaxed_i32, store_relaxed
from intentpm.runtime._native.dirty_stack cimport NOT_DIRTY
from intentpm.runtime._native.draft cimport Draft
from intentpm.runtime._native.flags cimport KEY_MISSED, KEY_OFFERED
from intentpm.runtime._native.holders cimport (
    HOLDING_NEWS, HOLDING_ROUNDED, add_holding, begin_holdings, first_holding, next_holding, ns_since, remove_holdings,
    tick_of,
)
from intentpm.runtime._native.journal cimport EVENT_HOLDER_ADDED, REASON_LOAD, note_decision
from intentpm.runtime._native.mutations cimport (
    MUTATION_HOLDERS_NOT_PASSED_ON, MUTATION_LAST_NEWS_UNTOLD, MUTATION_WRITES_NOT_SPREAD, is_planted,
)
from intentpm.runtime._native.news cimport LastNews, News
from intentpm.runtime._native.policy cimport MANAGE_ADAPTIVE, RECORD_BYTES, evens_out, holding_load, surplus_load
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.slots cimport keep_as_replica, move_out
from intentpm.runtime._native.table_state cimport Holding, TableState, slot_of

cdef enum:
    LARGEST = 0x7fffffffffffffff
    LISTED_RANKS = 256           # of many keys that few hold; of a key that all hold, as many as there are
    MOST_SPENT = 64              # hand-overs may cost one in so many bytes that this rank sends


cdef class HandOver:
    def __init__(self, RemoteAccess remote not None, News news not None, management: int):
        self.remote = remote
        self.transport = remote.transport
        self.journal = remote.journal
        self.news = news
        self.rank = remote.transport.rank
        self.size = remote.transport.size
        self.management = management
        self.room = 2 * self.size + LISTED_RANKS

    cdef uint32_t load(self) noexcept nogil:
        cdef uint64_t total = 0
        cdef uint32_t t
        for t in range(self.remote.table_count):
            total += <uint64_t>self.remote.tables[t].holdings_used * holding_load(self.remote.tables[t].stored_bytes)
        return <uint32_t>min(total, <uint64_t>0xffffffff)

    # -- giving ----------------------------------------------------------------------------------------------------------

    cdef void begin(self, uint32_t their_load) noexcept nogil:
        self.any = False
        self.listed = 0
        self.own_load = self.load()
        self.their_load = their_load
        self.surplus = 0
        if self.management != MANAGE_ADAPTIVE:
            return
        if self.always:
            self.surplus = LARGEST
        elif self.spent_bytes < self.transport.sent_bytes // MOST_SPENT:
            self.surplus = surplus_load(self.own_load, their_load, self.size)

    cdef bint is_due(self, TableState* table, uint32_t key, uint32_t asker) noexcept nogil:
        cdef const Holding* holding
        cdef uint32_t count = 1
        if self.surplus <= 0:
            return False
        holding = first_holding(table, key)
        while holding != NULL:
            if holding.rank != asker and not self.news.may_note_last(holding.rank):
                return False
            count += 1
            holding = next_holding(table, holding)
        return self.listed + count <= self.room and (self.always or evens_out(
            self.own_load, self.their_load, count * holding_load(table.stored_bytes)))

    cdef uint32_t give(
            self, TableState* table, uint32_t key, uint32_t asker, char* row, Draft draft, uint8_t* apart) noexcept nogil:
        cdef bint stays = table.records[key].intent_refs > 0
        cdef uint32_t version, i, listed
        cdef bint unspread
        self._take_holdings(table, key, asker)
        if stays:
            version = keep_as_replica(table, key, row, apart)
            table.flags[key] &= <uint8_t>~(KEY_MISSED | KEY_OFFERED)
            store_relaxed(&table.replicas[slot_of(table, key)].seen_tick, tick_of(self.journal.now_ns))
            self.kept += 1
        else:
            version = move_out(table, key, row, apart)
        # Own writes that were not spread yet; from here on they would be a replica's.
        unspread = load_relaxed_i32(&table.dirty_next[key]) != NOT_DIRTY
        listed = <uint32_t>self.others.size() + stays
        if is_planted(MUTATION_HOLDERS_NOT_PASSED_ON):
            draft.holders.push_back(0)
        else:
            draft.holders.push_back(<uint16_t>listed)
            for i in range(<uint32_t>self.others.size()):
                draft.holders.push_back(self.others[i].rank)
            if stays:
                draft.holders.push_back(<uint16_t>self.rank)
        for i in range(<uint32_t>self.others.size()):
            if unspread or self.others[i].flags & (HOLDING_NEWS | HOLDING_ROUNDED):
                self._tell(table, key, &self.others[i], row, version)
        self.any = True
        self.listed += listed
        self._count(table, max(listed, <uint32_t>1))
        return version

    cdef void _count(self, const TableState* table, uint32_t holders) noexcept nogil:
        cdef uint32_t load = holders * holding_load(table.stored_bytes)
        self.handed_over += 1
        self.surplus -= load
        self.own_load -= min(load, self.own_load)
        self.their_load += load
        # Each may be told, and its next record goes astray.
        self.spent_bytes += 2 * holders * (table.stored_bytes + 2 * RECORD_BYTES)

    cdef void _take_holdings(self, TableState* table, uint32_t key, uint32_t asker) noexcept nogil:
        cdef const Holding* holding = first_holding(table, key)
        self.others.clear()
        while holding != NULL:
            if holding.rank != asker:
                self.others.push_back(holding[0])
            holding = next_holding(table, holding)
        remove_holdings(table, key)

    cdef void _tell(
            self, TableState* table, uint32_t key, const Holding* holding, const char* row, uint32_t version) noexcept nogil:
        cdef LastNews news
        if is_planted(MUTATION_LAST_NEWS_UNTOLD):
            return
        news.row = row
        news.age_ns = ns_since(holding.since, self.journal.now_ns) if holding.flags & HOLDING_NEWS else 0
        news.holder = holding.rank
        news.key = key
        news.version = version
        news.epoch = table.records[key].epoch
        self.news.note_last(&news)

    # -- taking ----------------------------------------------------------------------------------------------------------

    cdef void take(self, TableState* table, uint32_t key, const uint16_t* others, bint wrote) noexcept nogil:
        cdef uint32_t i
        begin_holdings(table, key)
        for i in range(1, 1 + <uint32_t>others[0]):
            if add_holding(table, key, others[i]) == NULL:
                self.transport.out_of_memory = True
                return
            note_decision(self.journal, table, key, EVENT_HOLDER_ADDED, others[i], table.records[key].epoch, REASON_LOAD)
        if wrote and not is_planted(MUTATION_WRITES_NOT_SPREAD):
            self.news.spread(table, key, self.rank, self.journal.now_ns)
