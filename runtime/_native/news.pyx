"""News for holders of replicas; ``news.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from libcpp.vector cimport vector

from intentpm.runtime._native.directory cimport known_owner
from intentpm.runtime._native.draft cimport Draft, records_per_message
from intentpm.runtime._native.holders cimport bit_number, bit_of, holders_of, news_of, take_news
from intentpm.runtime._native.intents cimport NEVER
from intentpm.runtime._native.journal cimport EVENT_REFRESH_SENT, note_traced
from intentpm.runtime._native.messages cimport MSG_REFRESH, RESULT_ROW, RoundHeader
from intentpm.runtime._native.prefetching cimport prefetch_news
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.rows cimport read_row
from intentpm.runtime._native.staging cimport unstage
from intentpm.runtime._native.state cimport KeyRef
from intentpm.runtime._native.table_state cimport RANKS_PER_WORD, RankWord, TableState

cdef enum:
    REFRESH_WINDOW = 8               # unacknowledged REFRESH messages per holder; the bits of refresh_slots


cdef class News:
    def __init__(self, RemoteAccess remote not None, sync_interval_ns: int):
        cdef uint32_t size = remote.transport.size
        self.remote = remote
        self.transport = remote.transport
        self.journal = remote.journal
        self.draft = Draft(remote.transport)
        self.rank = remote.transport.rank
        self.sync_interval_ns = sync_interval_ns
        self.unsent.resize(size)
        self.refreshes_open.resize(size, 0)
        self.refreshed_ns.resize(size, 0)
        self.flush_asked.resize(size, 0)
        self.flush_drained.resize(size, 0)
        self.news_since_ns.resize(size, 0)
        self.later_news_at.resize(size, 0)
        self.later_news_since_ns.resize(size, 0)
        self.refresh_since_ns.resize(size * REFRESH_WINDOW, 0)
        self.refresh_slots.resize(size, 0)

    # -- spreading -------------------------------------------------------------------------------------------------------

    cdef void spread(self, TableState* table, uint32_t key, uint32_t writer, int64_t written_ns) noexcept nogil:
        """News for every holder but the one that wrote."""
        cdef const RankWord* holders = holders_of(table, key)
        cdef RankWord* news = news_of(table, key)
        cdef uint32_t word, fresh, bit, holder
        cdef KeyRef reference
        reference.table = table.table_id
        reference.key = key
        for word in range(table.holder_words):
            fresh = holders[word] & ~news[word]
            if writer // RANKS_PER_WORD == word:
                fresh &= ~bit_of(writer)
            while fresh:
                bit = fresh & (~fresh + 1)
                fresh ^= bit
                holder = word * RANKS_PER_WORD + bit_number(bit)
                news[word] |= <RankWord>bit
                self._note_age(holder, written_ns)
                self.unsent[holder].push_back(reference)

    cdef void _note_age(self, uint32_t holder, int64_t written_ns) noexcept nogil:
        """Of the news about to be added for this holder."""
        if self.news_since_ns[holder] == 0:
            self.news_since_ns[holder] = written_ns
        elif written_ns < self.news_since_ns[holder]:
            self.news_since_ns[holder] = written_ns
        elif self.later_news_since_ns[holder] == 0:
            if written_ns > self.news_since_ns[holder]:
                self.later_news_at[holder] = self.unsent[holder].size()
                self.later_news_since_ns[holder] = written_ns
        elif written_ns < self.later_news_since_ns[holder]:
            self.later_news_since_ns[holder] = written_ns

    cdef void _forget_age(self, uint32_t holder, size_t sent) noexcept nogil:
        """The first ``sent`` news are gone; what is left is no older than the later half once the first is gone."""
        if self.unsent[holder].empty():
            self.news_since_ns[holder] = self.later_news_since_ns[holder] = 0
        elif self.later_news_since_ns[holder] == 0:
            return
        elif sent < self.later_news_at[holder]:
            self.later_news_at[holder] -= sent
        else:
            self.news_since_ns[holder] = self.later_news_since_ns[holder]
            self.later_news_since_ns[holder] = 0

    # -- refreshing ------------------------------------------------------------------------------------------------------

    cdef int64_t _refresh(self, uint32_t holder, int64_t now_ns) noexcept nogil:
        """Sends the holder its news, when the last is long enough ago; returns when that will be."""
        cdef bint at_once = self.flush_asked[holder] != 0
        cdef size_t at = 0, kept = 0, sent
        if self.flush_drained[holder]:
            return NEVER                         # first the acknowledgements of what was sent
        if not at_once and now_ns < self.refreshed_ns[holder] + self.sync_interval_ns:
            return self.refreshed_ns[holder] + self.sync_interval_ns
        # While one is not acknowledged, only messages that are full are sent: rows written often gather.
        while at < self.unsent[holder].size() and self.refreshes_open[holder] < REFRESH_WINDOW and (
                at_once or self.refreshes_open[holder] == 0 or self._fills_message(self.unsent[holder], at)) and (
                not self.transport.out_of_memory):
            at = self._send_refresh(holder, at)
        self.refreshed_ns[holder] = now_ns
        sent = at
        while at < self.unsent[holder].size():
            self.unsent[holder][kept] = self.unsent[holder][at]
            kept += 1
            at += 1
        self.unsent[holder].resize(kept)
        self._forget_age(holder, sent)
        return NEVER                             # the acknowledgements go on with it

    cdef bint _fills_message(self, const vector[KeyRef]& references, size_t at) noexcept nogil:
        return references.size() - at >= records_per_message(self.remote.tables[references[at].table])

    cdef size_t _send_refresh(self, uint32_t holder, size_t at) noexcept nogil:
        cdef vector[KeyRef]* references = &self.unsent[holder]
        cdef TableState* table = self.remote.tables[references[0][at].table]
        cdef uint32_t most = <uint32_t>min(<size_t>records_per_message(table), references[0].size() - at)
        cdef char* memory = self.draft.begin(table, most, 3)
        cdef RoundHeader header
        cdef uint32_t key
        if memory == NULL:
            return at
        memset(&header, 0, sizeof(header))
        while at < references[0].size() and references[0][at].table == table.table_id and header.rows < most:
            prefetch_news(table, references.data(), at, references.size())
            key = references[0][at].key
            at += 1
            if known_owner(table, key) != self.rank or not take_news(table, key, holder):
                continue                         # moved, dropped or answered meanwhile
            self.draft.versions.push_back(read_row(table, key, memory + header.rows * table.row_bytes))
            note_traced(self.journal, table, key, EVENT_REFRESH_SENT, holder, self.draft.versions.back())
            self.draft.keys.push_back(key)
            self.draft.epochs.push_back(table.records[key].epoch)
            self.draft.codes.push_back(RESULT_ROW)
            header.rows += 1
        if header.rows == 0:
            unstage(memory, 1)
            return at
        header.count = header.rows
        header.table = <uint16_t>table.table_id
        header.origin = <uint16_t>self.rank
        header.window_slot = self._open_window_slot(holder)
        self.refreshed_rows += header.rows
        self.draft.send(holder, MSG_REFRESH, table, &header, memory, True, True)
        return at

    cdef uint8_t _open_window_slot(self, uint32_t holder) noexcept nogil:
        """Notes how old the news are that are being sent. There is a free slot: at most REFRESH_WINDOW are open."""
        cdef uint8_t slot = 0
        while self.refresh_slots[holder] >> slot & 1:
            slot += 1
        self.refresh_slots[holder] |= <uint8_t>(1 << slot)
        self.refresh_since_ns[holder * REFRESH_WINDOW + slot] = self.news_since_ns[holder]
        self.refreshes_open[holder] += 1
        return slot

    cdef bint take_acknowledgement(self, uint32_t holder, const RoundHeader* header) noexcept nogil:
        cdef uint64_t age_ns
        if header.window_slot >= REFRESH_WINDOW or not self.refresh_slots[holder] >> header.window_slot & 1:
            return False
        self.refresh_slots[holder] &= <uint8_t>~(1 << header.window_slot)
        self.refreshes_open[holder] -= 1
        age_ns = self.journal.now_ns - self.refresh_since_ns[holder * REFRESH_WINDOW + header.window_slot]
        self.stale_rows += header.rows
        self.stale_row_ns += age_ns * header.rows
        self.stalest_ns = max(self.stalest_ns, age_ns)
        return True

    # -- flushing --------------------------------------------------------------------------------------------------------

    cdef void ask_flush(self, uint32_t holder, uint8_t who) noexcept nogil:
        self.flush_asked[holder] |= who
        self.flush_drained[holder] = False

    cdef uint8_t _end_flush(self, uint32_t holder) noexcept nogil:
        cdef uint8_t asked = self.flush_asked[holder]
        if self.unsent[holder].empty():
            self.flush_drained[holder] = True
        if not self.flush_drained[holder] or self.refreshes_open[holder] > 0:
            return 0
        self.flush_drained[holder] = False
        self.flush_asked[holder] = 0
        return asked
