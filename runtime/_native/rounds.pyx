"""Management; ``rounds.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from intentpm.runtime._native.concerned_ranks cimport NOBODY, ConcernedRanks
from intentpm.runtime._native.hints cimport Hints, hint_fits
from intentpm.runtime._native.holder cimport Holder
from intentpm.runtime._native.holder_shed cimport shed_replicas
from intentpm.runtime._native.holders cimport tick_of
from intentpm.runtime._native.intents cimport NEVER
from intentpm.runtime._native.journal cimport Sample
from intentpm.runtime._native.message_rows cimport result_bytes, takes_record, takes_result, written_bytes
from intentpm.runtime._native.messages cimport (
    FLAG_BEGINS, FLAG_FORWARDED, MSG_ANSWER, MSG_MOVED, MSG_OFFER, MSG_REFRESH, MSG_REFRESHED, MSG_ROUND,
    RoundBody, RoundHeader, holders_fit, keys_fit, round_body, unpacked_clock,
)
from intentpm.runtime._native.news cimport FLUSH_FOR_SYNC, News
from intentpm.runtime._native.owner cimport Owner
from intentpm.runtime._native.policy cimport uses_intents
from intentpm.runtime._native.rank_intents cimport RankIntents
from intentpm.runtime._native.rank_writes cimport RankWrites
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.serving cimport Serving
from intentpm.runtime._native.slots cimport pack_slots, trim_slots
from intentpm.runtime._native.table_state cimport RowTier, TableState
from intentpm.runtime._native.sync cimport Sync


cdef enum:
    PACKED_AT_ONCE = 4096            # rows, holding the lock
    SHED_AGAIN_NS = 1_000_000


cdef class Rounds:
    def __init__(
            self, Serving serving not None, management: int, sync_interval_ns: int, sync_threshold: float):
        cdef RemoteAccess remote = serving.remote
        self.remote = remote
        self.transport = remote.transport
        self.journal = remote.journal
        self.size = remote.transport.size
        self.management = management
        self.concerned = ConcernedRanks(self.size)
        self.hints = Hints(remote, management)
        self.news = News(remote, self.concerned, sync_interval_ns)
        self.owner = Owner(remote, self.news, self.hints, management)
        self.holder = Holder(serving, self.owner, self.hints, self.concerned, sync_threshold)
        self.intents = RankIntents(remote, self.holder, self.hints, management)
        self.writes = RankWrites(remote, self.holder, self.news, management)
        self.sync = Sync(remote, self.intents, self.holder, self.news, self.writes)

    def uses_intents(self) -> bool:
        return uses_intents(self.management) and self.size > 1

    cdef int64_t step(self, int64_t now_ns) noexcept nogil:
        cdef int64_t again
        cdef uint32_t peer
        self.journal.now_ns = now_ns
        self.intents.step()
        self.holder.step_fence()
        self.sync.step()
        again = min(self.writes.collect(now_ns, False), self.holder.step_fetched(now_ns))
        if self.remote.budget.limit_bytes:
            again = min(again, self._keep_to_budget(now_ns))
        peer = self.concerned.next_from(0)
        while peer != NOBODY:
            self.holder.step(peer)
            again = min(again, self.news.step(peer, now_ns))
            if self.news.end_flush(peer) & FLUSH_FOR_SYNC:
                self.sync.answer(peer)
            if not self.holder.has_some_for(peer) and not self.news.has_some_for(peer):
                self.concerned.remove(peer)
            peer = self.concerned.next_from(peer + 1)
        again = min(again, self.hints.step(now_ns))
        self.remote.step_waiting()
        if self._fetch_rows(tick_of(now_ns)) or self.holder.passed_back or self.sync.can_go_on():
            self.holder.passed_back = False
            again = now_ns
        if self.journal.tracing:
            self.sample(now_ns, False)
        return again

    cdef int64_t _keep_to_budget(self, int64_t now_ns) noexcept nogil:
        """Returns when it should be called again at the latest. It looks at many slots: not at every step."""
        cdef uint32_t t
        if now_ns < self.shed_again_ns:
            return self.shed_again_ns
        self.shed_again_ns = 0
        self.remote.budget.set_ahead()
        if not shed_replicas(self.holder):
            return NEVER
        for t in range(self.remote.table_count):
            pack_slots(self.remote.tables[t], PACKED_AT_ONCE)
            trim_slots(self.remote.tables[t], 1)     # what is not of slots
        if not self.remote.budget.can_shrink():
            return NEVER
        self.shed_again_ns = now_ns + SHED_AGAIN_NS
        return self.shed_again_ns

    # -- messages --------------------------------------------------------------------------------------------------------

    cdef bint on_message(
            self, uint32_t source, uint8_t message_id, const RoundHeader* header,
            const char* body, size_t body_bytes) noexcept nogil:
        cdef TableState* table
        cdef RoundBody sections
        cdef bint answers = message_id == MSG_ANSWER or message_id == MSG_REFRESH
        self.messages += 1
        self.journal.now_ns = self.transport.now_ns()
        if message_id == MSG_REFRESHED:
            return self.news.take_acknowledgement(source, header)
        if header.table >= self.remote.table_count or header.origin >= self.size or header.round_rank >= 2 * self.size:
            return False
        table = self.remote.tables[header.table]
        if message_id == MSG_OFFER or message_id == MSG_MOVED:
            return self._take_hint(message_id, table, header, body, body_bytes)
        sections = round_body(<char*>body, header, answers or header.flags & FLAG_FORWARDED)
        if sections.size_bytes > body_bytes or not keys_fit(sections.keys, header.count, table.num_keys):
            return False
        if not holders_fit(&sections, header, body_bytes, self.size):
            return False
        if not _rows_fit(table, header, &sections, answers):
            return False
        if message_id == MSG_ROUND:
            if header.flags & FLAG_BEGINS:
                self.news.note_round_from(source, unpacked_clock(header.window_slot))
            self.owner.serve_round(table, header, &sections)
        elif message_id == MSG_ANSWER:
            self._take_answer(source, table, header, &sections)
        elif message_id == MSG_REFRESH:
            self.holder.take_refresh(source, table, header, &sections)
        else:
            return False
        return True

    cdef bint _take_hint(
            self, uint8_t message_id, TableState* table, const RoundHeader* header, const char* body,
            size_t body_bytes) noexcept nogil:
        cdef const uint32_t* numbers = <const uint32_t*>body
        if not hint_fits(table, message_id, header, numbers, body_bytes):
            return False
        if message_id == MSG_MOVED:
            return self.hints.learn_moves(table, header, numbers)
        self.holder.take_offers(table, header, numbers)
        return True

    cdef void _take_answer(
            self, uint32_t owner, TableState* table, const RoundHeader* header, const RoundBody* body) noexcept nogil:
        self.intents.answer_came()
        if self.holder.close_records(header):
            self.intents.round_ended()
        self.holder.take_answer(owner, table, header, body)

    cdef bint _fetch_rows(self, uint32_t now) noexcept nogil:
        """Of tables whose rows are on a device as far as there is room. True: more is to be done."""
        cdef bint more = False
        cdef RowTier* tier
        cdef uint32_t t
        for t in range(self.remote.table_count):
            tier = self.remote.tables[t].tier
            if tier != NULL and tier.fetch != NULL and tier.fetch(self.remote.tables[t], now):
                more = True
        return more

    # -- of all parts ----------------------------------------------------------------------------------------------------

    cdef void trim(self, size_t least_bytes) noexcept nogil:
        cdef uint32_t t
        for t in range(self.remote.table_count):
            trim_slots(self.remote.tables[t], least_bytes)

    cdef void sample(self, int64_t now_ns, bint at_once) noexcept nogil:
        cdef Sample sample
        sample.time_ns = now_ns
        sample.relocations_in = self.holder.relocations_in
        sample.relocations_out = self.owner.relocations_out
        sample.replicas_held = self.holder.replicas_held()
        sample.sent_bytes = self.transport.sent_bytes
        sample.received_bytes = self.transport.received_bytes
        self.journal.take_sample(&sample, at_once)


cdef inline bint _rows_fit(
        const TableState* table, const RoundHeader* header, const RoundBody* body, bint answers) noexcept nogil:
    """Rows are as long as the records, or results, say; and the table takes each of them."""
    cdef size_t rows_bytes = 0
    cdef uint32_t i
    for i in range(header.count):
        if not (takes_result(table, body.codes[i]) if answers else takes_record(table, body.codes[i])):
            return False
        rows_bytes += result_bytes(table, body.codes[i]) if answers else written_bytes(table, body.codes[i])
    return rows_bytes == header.rows_bytes
