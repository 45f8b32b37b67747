"""News for holders of replicas; ``news.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from intentpm.foundation.primitives cimport copy_row
from intentpm.runtime._native.concerned_ranks cimport ConcernedRanks
from intentpm.runtime._native.directory cimport known_owner
from intentpm.runtime._native.draft cimport Draft, records_per_message
from intentpm.runtime._native.holders cimport (
    HOLDING_LISTED, HOLDING_NEWS, HOLDING_ONCE, HOLDING_ROUNDED, HOLDING_ROUNDED_LISTED, first_holding, holding_of, is_resting,
    next_holding, ns_since, tick_of,
)
from intentpm.runtime._native.intents cimport NEVER
from intentpm.runtime._native.journal cimport EVENT_REFRESH_SENT, note_traced
from intentpm.runtime._native.message_rows cimport result_bytes, takes_weights
from intentpm.runtime._native.messages cimport MSG_REFRESH, RESULT_ROW, RESULT_WEIGHTS, RoundHeader
from intentpm.runtime._native.mutations cimport (
    MUTATION_NEWS_NEVER_RIPE, MUTATION_RESTS_FOR_GOOD, MUTATION_ROUNDING_FORGOTTEN, MUTATION_STATE_FORGOTTEN, is_planted,
)
from intentpm.runtime._native.prefetching cimport prefetch_news
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.rows cimport read_row
from intentpm.runtime._native.state cimport KeyRef, KeyRefs
from intentpm.runtime._native.table_state cimport Holding, TableState

cdef enum:
    PATIENCE_ROUNDS = 2              # of a holder: so long news wait for an answer that brings them
    QUIET_ROUNDS = 3                 # or clocks: a holder that has sent none for so long writes no more
    LONGEST_GAP_NS = 1_000_000_000   # between two rounds that counts
    LONGEST_CLOCK_NS = 100_000_000   # of a holder that news wait for
    FEWEST_ROUNDED = 1024            # in a list, before it is sifted
    SLOW_NS = 8_000_000              # an acknowledgement that takes longer: there is a queue on the way


cdef inline KeyRef _reference(const TableState* table, uint32_t key) noexcept nogil:
    cdef KeyRef reference
    reference.table = table.table_id
    reference.key = key
    return reference


cdef class News:
    def __init__(self, RemoteAccess remote not None, ConcernedRanks concerned not None, sync_interval_ns: int):
        cdef uint32_t size = remote.transport.size
        self.remote = remote
        self.transport = remote.transport
        self.journal = remote.journal
        self.draft = Draft(remote.transport)
        self.concerned = concerned
        self.rank = remote.transport.rank
        self.sync_interval_ns = sync_interval_ns
        self.unsent.resize(size)
        self.rounded.resize(size)
        self.rounded_room.resize(size, FEWEST_ROUNDED)
        self.due_ns.resize(size, 0)
        self.heard_ns.resize(size, 0)
        self.gap_ns.resize(size, 0)
        self.clock_ns.resize(size, 0)
        self.window.resize(size, REFRESH_WINDOW)
        self.refreshes_open.resize(size, 0)
        self.flush_asked.resize(size, 0)
        self.flush_drained.resize(size, 0)
        self.refresh_slots.resize(size, 0)
        self.news_since_ns.resize(size * REFRESH_WINDOW, 0)
        self.sent_ns.resize(size * REFRESH_WINDOW, 0)

    # -- spreading -------------------------------------------------------------------------------------------------------

    cdef void spread(self, TableState* table, uint32_t key, uint32_t writer, int64_t written_ns) noexcept nogil:
        """News for every holder but the one that wrote."""
        cdef Holding* holding = first_holding(table, key)
        while holding != NULL:
            if holding.rank != writer:
                if holding.flags & HOLDING_ONCE:
                    self._note_for_flush(table, key, holding)
                else:
                    self._list(table, key, holding, written_ns)
            holding = next_holding(table, holding)

    cdef void _list(self, TableState* table, uint32_t key, Holding* holding, int64_t written_ns) noexcept nogil:
        if holding.flags & HOLDING_NEWS:
            return
        holding.since = tick_of(written_ns)
        if not holding.flags & HOLDING_LISTED:
            self.unsent[holding.rank].push_back(_reference(table, key))
            self.concerned.add(holding.rank)
        holding.flags |= HOLDING_NEWS | HOLDING_LISTED

    cdef void note_lagging(self, TableState* table, uint32_t key, uint32_t holder) noexcept nogil:
        if not is_planted(MUTATION_STATE_FORGOTTEN):
            self.note_rounded(table, key, holder)

    cdef void note_rounded(self, TableState* table, uint32_t key, uint32_t holder) noexcept nogil:
        cdef Holding* holding = holding_of(table, key, holder)
        if holding != NULL:
            self._note_for_flush(table, key, holding)

    cdef void _note_for_flush(self, TableState* table, uint32_t key, Holding* holding) noexcept nogil:
        if not holding.flags & HOLDING_ROUNDED_LISTED:
            if self.rounded[holding.rank].size() >= self.rounded_room[holding.rank]:
                self._sift_rounded(holding.rank)
            self.rounded[holding.rank].push_back(_reference(table, key))
        holding.flags |= HOLDING_ROUNDED | HOLDING_ROUNDED_LISTED

    cdef void _sift_rounded(self, uint32_t holder) noexcept nogil:
        """Forgets keys that have moved or were dropped since they were listed: a holder that comes and goes is listed anew."""
        cdef KeyRefs* listed = &self.rounded[holder]
        cdef Holding* holding
        cdef size_t i, kept = 0
        for i in range(listed.size()):
            holding = self._rounded_holding(&listed[0][i], holder)
            if holding != NULL:
                holding.flags &= <uint8_t>~HOLDING_ROUNDED_LISTED        # a key is kept once
                listed[0][kept] = listed[0][i]
                kept += 1
        listed.resize(kept)
        for i in range(kept):
            holding = holding_of(self.remote.tables[listed[0][i].table], listed[0][i].key, holder)
            holding.flags |= HOLDING_ROUNDED_LISTED
        self.rounded_room[holder] = max(<size_t>FEWEST_ROUNDED, 2 * kept)

    cdef inline Holding* _rounded_holding(self, const KeyRef* listed, uint32_t holder) noexcept nogil:
        """Of a key in the list; NULL: moved or dropped meanwhile, or seen in the list already."""
        cdef TableState* table = self.remote.tables[listed.table]
        cdef Holding* holding = holding_of(table, listed.key, holder) if known_owner(table, listed.key) == self.rank else NULL
        return holding if holding != NULL and holding.flags & HOLDING_ROUNDED_LISTED else NULL

    cdef void _list_rounded(self, uint32_t holder) noexcept nogil:
        """From now on what is rounded counts as news."""
        cdef Holding* holding
        cdef TableState* table
        cdef uint32_t key
        cdef size_t i
        for i in range(self.rounded[holder].size()):
            table = self.remote.tables[self.rounded[holder][i].table]
            key = self.rounded[holder][i].key
            holding = self._rounded_holding(&self.rounded[holder][i], holder)
            if holding == NULL:
                continue
            holding.flags &= <uint8_t>~HOLDING_ROUNDED_LISTED
            if holding.flags & HOLDING_ROUNDED:
                self._list(table, key, holding, self.journal.now_ns)
        self.rounded[holder].clear()

    # -- when ------------------------------------------------------------------------------------------------------------

    cdef void note_round_from(self, uint32_t holder, int64_t clock_ns) noexcept nogil:
        cdef int64_t gap_ns = self.journal.now_ns - self.heard_ns[holder]
        if self.heard_ns[holder]:
            self.gap_ns[holder] += (min(gap_ns, <int64_t>LONGEST_GAP_NS) - self.gap_ns[holder]) // 4
        self.heard_ns[holder] = self.journal.now_ns
        self.clock_ns[holder] = min(clock_ns, <int64_t>LONGEST_CLOCK_NS)

    cdef int64_t shortest_clock_ns(self, int64_t now_ns) noexcept nogil:
        cdef int64_t shortest_ns = NEVER
        cdef uint32_t holder
        for holder in range(<uint32_t>self.heard_ns.size()):
            if self.heard_ns[holder] and now_ns - self.heard_ns[holder] < LONGEST_GAP_NS:
                shortest_ns = min(shortest_ns, self.clock_ns[holder])
        return shortest_ns

    cdef int64_t _patience_ns(self, uint32_t holder, int64_t now_ns) noexcept nogil:
        """How long news wait for a record of the holder, whose answer brings them: one comes with each step that writes."""
        if now_ns - self.heard_ns[holder] > QUIET_ROUNDS * max(self.gap_ns[holder], self.clock_ns[holder]):
            return self.sync_interval_ns
        return max(self.sync_interval_ns, PATIENCE_ROUNDS * self.gap_ns[holder], self.clock_ns[holder])

    # -- refreshing ------------------------------------------------------------------------------------------------------

    cdef int64_t _refresh(self, uint32_t holder, int64_t now_ns) noexcept nogil:
        """Sends the holder its news that are ripe, when it is time to look; returns when that will be."""
        cdef bint at_once = self.flush_asked[holder] != 0
        cdef int64_t patience_ns
        cdef size_t sent
        if self.flush_drained[holder]:
            return NEVER                         # first the acknowledgements of what was sent
        if not at_once and now_ns < self.due_ns[holder]:
            return self.due_ns[holder]
        if not at_once and is_planted(MUTATION_NEWS_NEVER_RIPE):
            return NEVER
        if not at_once and self.refreshes_open[holder] >= self.window[holder]:
            return NEVER                         # the acknowledgements go on with it
        patience_ns = self._patience_ns(holder, now_ns)
        self._gather_ripe(holder, <int64_t>-1 if at_once else patience_ns, now_ns)
        sent = self._send_ripe(holder, at_once)
        self.unsent[holder].insert(self.unsent[holder].begin(), self.ripe.begin() + sent, self.ripe.end())
        self.due_ns[holder] = now_ns + max(self.sync_interval_ns, patience_ns // 2)
        if self.unsent[holder].empty() or sent < self.ripe.size() and self.refreshes_open[holder] > 0:
            return NEVER
        return self.due_ns[holder]

    cdef void _gather_ripe(self, uint32_t holder, int64_t patience_ns, int64_t now_ns) noexcept nogil:
        """Moves what has waited for ``patience_ns`` from the holder's list to ``ripe``; forgets what it has got since."""
        cdef KeyRefs* references = &self.unsent[holder]
        cdef TableState* table
        cdef Holding* holding
        cdef uint32_t key
        cdef size_t at, kept = 0
        self.ripe.clear()
        for at in range(references[0].size()):
            table = self.remote.tables[references[0][at].table]
            prefetch_news(table, references[0].data(), at, references[0].size())
            key = references[0][at].key
            holding = holding_of(table, key, holder) if known_owner(table, key) == self.rank else NULL
            if holding == NULL or not holding.flags & HOLDING_LISTED:
                continue                         # moved or dropped meanwhile
            if not holding.flags & HOLDING_NEWS:
                holding.flags &= <uint8_t>~HOLDING_LISTED
            elif patience_ns < 0 or ns_since(holding.since, now_ns) >= patience_ns and not self._rests(
                    holding, now_ns + patience_ns):
                self.ripe.push_back(references[0][at])
            else:
                references[0][kept] = references[0][at]
                kept += 1
        references[0].resize(kept)

    cdef inline bint _rests(self, Holding* holding, int64_t until_ns) noexcept nogil:
        """Nobody reads the replica until then: what is sent now would be out of date by the time it is read."""
        if is_resting(holding, until_ns) or is_planted(MUTATION_RESTS_FOR_GOOD):
            return True
        holding.rests_until = 0
        return False

    cdef size_t _send_ripe(self, uint32_t holder, bint at_once) noexcept nogil:
        """As much as the window allows; returns the first reference not sent."""
        cdef uint32_t window = REFRESH_WINDOW if at_once else self.window[holder]
        cdef size_t at = 0
        # While one is not acknowledged, only messages that are full are sent: rows written often gather.
        while at < self.ripe.size() and self.refreshes_open[holder] < window and not self.transport.out_of_memory and (
                at_once or self.refreshes_open[holder] == 0 or self._fills_message(at)):
            at = self._send_refresh(holder, at)
        return at

    cdef bint _fills_message(self, size_t at) noexcept nogil:
        return self.ripe.size() - at >= records_per_message(self.remote.tables[self.ripe[at].table])

    cdef size_t _send_refresh(self, uint32_t holder, size_t at) noexcept nogil:
        """One message of what is ripe, from ``at`` on; returns the first reference that is not in it."""
        cdef TableState* table = self.remote.tables[self.ripe[at].table]
        cdef uint32_t most = <uint32_t>min(<size_t>records_per_message(table), self.ripe.size() - at)
        cdef char* memory = self.draft.begin(most, most * table.stored_bytes, 3)
        cdef RoundHeader header
        cdef Holding* holding
        cdef uint32_t key
        cdef uint8_t result = RESULT_WEIGHTS if takes_weights(table) and not self.is_flushing(holder) else RESULT_ROW
        cdef int64_t oldest_ns = 0
        if memory == NULL:
            return at
        memset(&header, 0, sizeof(header))
        while at < self.ripe.size() and self.ripe[at].table == table.table_id and self.draft.keys.size() < most:
            key = self.ripe[at].key
            at += 1
            holding = holding_of(table, key, holder)
            holding.flags &= <uint8_t>~(HOLDING_NEWS | HOLDING_LISTED | HOLDING_ROUNDED)
            oldest_ns = max(oldest_ns, ns_since(holding.since, self.journal.now_ns))
            if result == RESULT_WEIGHTS:
                self.note_lagging(table, key, holder)
            self.draft.versions.push_back(read_row(
                table, key, memory + header.rows_bytes, result_bytes(table, result)))
            note_traced(self.journal, table, key, EVENT_REFRESH_SENT, holder, self.draft.versions.back())
            self.draft.keys.push_back(key)
            self.draft.epochs.push_back(table.records[key].epoch)
            self.draft.codes.push_back(result)
            header.rows_bytes += <uint32_t>result_bytes(table, result)
        self._send_draft(table, holder, &header, memory, oldest_ns)
        return at

    # -- of keys that leave ----------------------------------------------------------------------------------------------

    cdef bint may_note_last(self, uint32_t holder) noexcept nogil:
        return self.refreshes_open[holder] < REFRESH_WINDOW

    cdef void note_last(self, const LastNews* news) noexcept nogil:
        self.last.push_back(news[0])

    cdef void send_last(self, TableState* table) noexcept nogil:
        while not self.last.empty():
            self._send_last_to(table, self.last.back().holder)

    cdef void _send_last_to(self, TableState* table, uint32_t holder) noexcept nogil:
        cdef char* memory
        cdef RoundHeader header
        cdef size_t i, most = 0, kept = 0
        cdef int64_t oldest_ns = 0
        for i in range(self.last.size()):
            most += self.last[i].holder == holder
        memory = self.draft.begin(most, most * table.stored_bytes, 3)
        if memory == NULL:
            self.last.clear()                    # the rank fails
            return
        memset(&header, 0, sizeof(header))
        for i in range(self.last.size()):
            if self.last[i].holder != holder:
                self.last[kept] = self.last[i]
                kept += 1
                continue
            copy_row(memory + header.rows_bytes, self.last[i].row, table.stored_bytes)
            note_traced(self.journal, table, self.last[i].key, EVENT_REFRESH_SENT, holder, self.last[i].version)
            self.draft.keys.push_back(self.last[i].key)
            self.draft.epochs.push_back(self.last[i].epoch)
            self.draft.versions.push_back(self.last[i].version)
            self.draft.codes.push_back(RESULT_ROW)
            oldest_ns = max(oldest_ns, self.last[i].age_ns)
            header.rows_bytes += <uint32_t>table.stored_bytes
        self.last.resize(kept)
        self._send_draft(table, holder, &header, memory, oldest_ns)

    cdef void _send_draft(
            self, TableState* table, uint32_t holder, RoundHeader* header, char* memory, int64_t oldest_ns) noexcept nogil:
        """The REFRESH that was drafted; oldest_ns: how old its oldest news are."""
        header.count = <uint32_t>self.draft.keys.size()
        header.table = <uint16_t>table.table_id
        header.origin = <uint16_t>self.rank
        header.window_slot = self._open_window_slot(holder, self.journal.now_ns - oldest_ns)
        self.refreshed_rows += header.count
        self.draft.send(holder, MSG_REFRESH, table, header, memory, True)

    cdef uint8_t _open_window_slot(self, uint32_t holder, int64_t since_ns) noexcept nogil:
        """Notes how old the news are that are being sent. There is a free slot: at most REFRESH_WINDOW are open."""
        cdef uint8_t slot = 0
        while self.refresh_slots[holder] >> slot & 1:
            slot += 1
        self.refresh_slots[holder] |= <uint8_t>(1 << slot)
        self.news_since_ns[holder * REFRESH_WINDOW + slot] = since_ns
        self.sent_ns[holder * REFRESH_WINDOW + slot] = self.journal.now_ns
        self.refreshes_open[holder] += 1
        return slot

    cdef bint take_acknowledgement(self, uint32_t holder, const RoundHeader* header) noexcept nogil:
        cdef uint32_t slot = holder * REFRESH_WINDOW + header.window_slot
        cdef uint64_t age_ns
        if header.window_slot >= REFRESH_WINDOW or not self.refresh_slots[holder] >> header.window_slot & 1:
            return False
        self.refresh_slots[holder] &= <uint8_t>~(1 << header.window_slot)
        self.refreshes_open[holder] -= 1
        self._adapt_window(holder, self.journal.now_ns - self.sent_ns[slot])
        age_ns = self.journal.now_ns - self.news_since_ns[slot]
        self.stale_rows += header.count
        self.stale_row_ns += age_ns * header.count
        self.stalest_ns = max(self.stalest_ns, age_ns)
        return True

    cdef void _adapt_window(self, uint32_t holder, int64_t took_ns) noexcept nogil:
        """Additive increase, multiplicative decrease."""
        self.acknowledged_ns += (took_ns - self.acknowledged_ns) // 8
        if took_ns > SLOW_NS:
            self.window[holder] = max(<uint32_t>1, self.window[holder] // 2)
        else:
            self.window[holder] = min(<uint32_t>REFRESH_WINDOW, self.window[holder] + 1)

    # -- flushing --------------------------------------------------------------------------------------------------------

    cdef void ask_flush(self, uint32_t holder, uint8_t who) noexcept nogil:
        self.flush_asked[holder] |= who
        self.concerned.add(holder)
        self.flush_drained[holder] = False
        if not is_planted(MUTATION_ROUNDING_FORGOTTEN):
            self._list_rounded(holder)

    cdef uint8_t _end_flush(self, uint32_t holder) noexcept nogil:
        cdef uint8_t asked = self.flush_asked[holder]
        if self.unsent[holder].empty():
            self.flush_drained[holder] = True
        if not self.flush_drained[holder] or self.refreshes_open[holder] > 0:
            return 0
        self.flush_drained[holder] = False
        self.flush_asked[holder] = 0
        return asked

    cdef void end_flushes(self) noexcept nogil:
        cdef uint32_t holder
        for holder in range(<uint32_t>self.flush_asked.size()):
            self.flush_asked[holder] = 0
            self.flush_drained[holder] = False

    cdef void forget(self, uint32_t holder) noexcept nogil:
        self.unsent[holder].clear()
        self.rounded[holder].clear()
        self.refreshes_open[holder] = 0
        self.refresh_slots[holder] = 0
