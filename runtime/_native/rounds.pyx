"""Management; ``rounds.pxd`` is the contract."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp.vector cimport vector

from intentpm.runtime._native.directory cimport known_owner, learn_owner
from intentpm.runtime._native.holders cimport bit_number, bit_of, holders_of, is_shared, news_of, others_hold, take_news
from intentpm.runtime._native.hints cimport Hints, hint_fits
from intentpm.runtime._native.intents cimport NEVER, Intent, IntentQueue
from intentpm.runtime._native.journal cimport (
    EVENT_DELTA_SENT, EVENT_DELTA_TAKEN, EVENT_DROPPED, EVENT_FORWARDED, EVENT_GRANTED, EVENT_HOLDER_ADDED,
    EVENT_HOLDER_REMOVED, EVENT_INTENT_OFF, EVENT_INTENT_ON, EVENT_MOVED_IN, EVENT_MOVED_OUT, EVENT_PARKED,
    EVENT_REFRESH_SENT, EVENT_REFRESHED, EVENT_REQUESTED, EVENT_WITHDRAWN, REASON_MODE, REASON_ONLY_INTENT,
    REASON_OTHERS_HOLD, REASON_OWNER_INTENDS, Reason, Sample, note_decision, note_traced,
)
from intentpm.runtime._native.messages cimport (
    FLAG_FORWARDED, MSG_ANSWER, MSG_MOVED, MSG_OFFER, MSG_REFRESH, MSG_REFRESHED, MSG_ROUND, MSG_SYNC, MSG_SYNCED,
    RECORD_ADD, RECORD_LEAVE, RECORD_SET, RESULT_DROPPED, RESULT_MOVED, RESULT_ROW, ControlHeader, RoundBody,
    RoundHeader, indices_bytes, keys_fit, padded, round_body,
)
from intentpm.runtime._native.mutations cimport (
    MUTATION_DELTAS_TWICE, MUTATION_FENCE_OPEN, MUTATION_RECORDS_FIRST, MUTATION_SYNC_WITHOUT_NEWS, is_planted,
)
from intentpm.runtime._native.parking cimport ParkedMessage, unpark
from intentpm.runtime._native.policy cimport (
    DECIDE_RELOCATE, MANAGE_ADAPTIVE, MANAGE_FULL_REPLICATION, decide, may_relocate, uses_intents,
)
from intentpm.runtime._native.prefetching cimport (
    prefetch_dirty, prefetch_intended, prefetch_news, prefetch_offers, prefetch_records, prefetch_released, prefetch_rows,
)
from intentpm.foundation.primitives cimport copy_row, fence_seq_cst, load_relaxed, load_relaxed_i32, store_release
from intentpm.runtime._native.remote cimport RemoteAccess, send_staged, stage, unstage
from intentpm.runtime._native.requests cimport OPERATION_ABANDONED, Operation
from intentpm.runtime._native.state cimport (
    STATE_ABSENT, STATE_OWNED, STATE_REPLICA, STATE_REQUESTED, WORD_SHARED, KeyState, is_later, state_of,
)
from intentpm.runtime._native.store cimport (
    RANKS_PER_WORD, KeyRecord, RankWord, Table, TableState, apply_write, bind_slot, change_state, drop_replica, forget_dirty,
    has_pending, is_dirty, is_here, key_state, mark_shared, move_out, pending_norm, prefetch_row, promote_replica, publish,
    publish_owned, read_row, refresh_replica, row_of, slot_of, take_dirty, take_pending, trim_slots, word_of,
)

cdef enum:
    MESSAGE_ROWS_BYTES = 256 << 10   # rows per message
    MESSAGE_RECORDS = 16384
    ROUND_BYTES = 8 << 20            # rows per round; what is left waits for the next
    REFRESH_WINDOW = 8               # unacknowledged REFRESH messages per holder; the bits of refresh_slots
    ALL_INTENTS = 0xffff             # intent_refs is saturated
    EARLY_RECORDS = 256              # new keys of one owner that are asked for while more are being counted
    FLUSH_FOR_SYNC = 1               # the holder's wait_sync asked
    FLUSH_FOR_BARRIER = 2            # this rank's barrier asked


cdef class Rounds:
    def __init__(
            self, RemoteAccess remote not None, management: int, sync_interval_ns: int, sync_threshold: float,
            budget_bytes: int):
        self.remote = remote
        self.transport = remote.transport
        self.requests = remote.requests
        self.journal = remote.journal
        self.rank = remote.transport.rank
        self.size = remote.transport.size
        self.hints = Hints(remote, management)
        self.management = management
        self.sync_interval_ns = sync_interval_ns
        self.sync_threshold = sync_threshold
        self.budget_bytes = budget_bytes
        self.early_records = EARLY_RECORDS
        self.queues = []
        self.todo.resize(self.size)
        self.open_records.resize(self.size, 0)
        self.growing.resize(self.size, 0)
        self.began_ns.resize(self.size, 0)
        self.news.resize(self.size)
        self.refreshes_open.resize(self.size, 0)
        self.refreshed_ns.resize(self.size, 0)
        self.flush_asked.resize(self.size, 0)
        self.flush_drained.resize(self.size, 0)
        self.news_since_ns.resize(self.size, 0)
        self.later_news_at.resize(self.size, 0)
        self.later_news_since_ns.resize(self.size, 0)
        self.refresh_since_ns.resize(self.size * REFRESH_WINDOW, 0)
        self.refresh_slots.resize(self.size, 0)

    # == one step ========================================================================================================

    cdef int64_t step(self, int64_t now_ns) noexcept nogil:
        cdef int64_t again
        cdef uint32_t peer
        self.journal.now_ns = now_ns
        self._step_intents()
        self._step_fence()
        self._step_sync()
        again = self._collect_dirt(now_ns, False)
        for peer in range(self.size):
            if not self.todo[peer].empty() and (self.open_records[peer] == 0 or self.growing[peer]):
                self._begin_round(peer)
            self.growing[peer] = False
            if not self.news[peer].empty():
                again = min(again, self._refresh(peer, now_ns))
            if self.flush_asked[peer]:
                self._step_flush(peer)
        again = min(again, self.hints.step(now_ns))
        self.remote.step_waiting()
        if self.journal.tracing:
            self.sample(now_ns, False)
        return again

    cdef void look(self) noexcept nogil:
        self.look_at_intents = True

    cdef bint is_busy(self) noexcept nogil:
        return self.busy[0] + self.busy[1] > 0

    cdef inline TableState* _table(self, uint32_t table) noexcept nogil:
        return self.remote.tables[table]

    # == intents =========================================================================================================

    cdef void _step_intents(self) noexcept nogil:
        cdef size_t i
        if not self.look_at_intents:
            return
        self.look_at_intents = False
        for i in range(self.workers.size()):
            self._look_at(<IntentQueue>self.workers[i])

    cdef void _look_at(self, IntentQueue queue) noexcept nogil:
        cdef Intent* intent
        queue.look_began()
        while True:
            queue.collect()
            intent = queue.next_due()
            while intent != NULL:
                self._activate(queue, intent)
                intent = queue.next_due()
            self._count_started(queue, queue.seen_clock)
            intent = queue.next_over()
            while intent != NULL:
                self._deactivate(intent)
                queue.forget(intent)
                intent = queue.next_over()
            if queue.publish():
                break
        queue.look_ended(self.is_busy())

    cdef void _activate(self, IntentQueue queue, Intent* intent) noexcept nogil:
        cdef TableState* table = self._table(intent.table_id)
        cdef uint32_t i
        cdef bint all_here = True
        self.intents_acted += intent.count
        for i in range(intent.count):
            prefetch_intended(table, intent.keys, i, intent.count)
            all_here &= self._intend(table, intent.keys[i])
            if self.fenced.size() >= self.early_records and intent.end > queue.seen_clock and self._no_writes_open():
                self._ask_early()
        if all_here:
            self.intents_in_time += intent.count
        else:
            queue.watch_start(intent)

    # Keys arrive with answers only. So a key is late if it is not here when the engine first looks, or takes an answer,
    # after the window has started: it is counted just before. Intents whose keys were here from the start cost nothing.

    cdef void _count_started(self, IntentQueue queue, int64_t clock) noexcept nogil:
        cdef Intent* intent = queue.next_started(clock)
        cdef TableState* table
        cdef uint32_t i, missing
        while intent != NULL:
            table = self._table(intent.table_id)
            missing = 0
            for i in range(intent.count):
                missing += not is_here(table, intent.keys[i])
            self.intents_late += missing
            self.intents_in_time += intent.count - missing
            intent = queue.next_started(clock)

    cdef inline bint _intend(self, TableState* table, uint32_t key) noexcept nogil:
        """Counts one more active intent. True: the key is here."""
        cdef KeyRecord* record = &table.records[key]
        if record.intent_refs < ALL_INTENTS:
            record.intent_refs += 1
        if record.intent_refs == ALL_INTENTS:
            table.flags[key] |= KEY_PINNED
        if self.journal.tracing and record.intent_refs == 1:
            note_traced(self.journal, table, key, EVENT_INTENT_ON, self.rank)
        if key_state(table, key) == STATE_ABSENT:
            self._want(table, key)
        return is_here(table, key)

    cdef void _deactivate(self, const Intent* intent) noexcept nogil:
        cdef TableState* table = self._table(intent.table_id)
        cdef uint32_t i, key, word
        cdef KeyRecord* record
        for i in range(intent.count):
            prefetch_released(table, intent.keys, i, intent.count)
            key = intent.keys[i]
            record = &table.records[key]
            if record.intent_refs == ALL_INTENTS:                # KEY_PINNED
                continue
            record.intent_refs -= 1
            if record.intent_refs > 0:
                continue
            if self.journal.tracing:
                note_traced(self.journal, table, key, EVENT_INTENT_OFF, self.rank)
            word = word_of(table, key)                           # no worker here intends the key any more
            if state_of(word) == STATE_REPLICA:
                self._queue(table, key)
            elif word & WORD_SHARED:
                self.hints.offer_to_last_holder(table, key)

    # == holder: asking ==================================================================================================

    cdef void _want(self, TableState* table, uint32_t key) noexcept nogil:
        cdef KeyRef reference
        if self.budget_bytes and self.held_bytes + <int64_t>table.stride_bytes > self.budget_bytes:
            self.intents_refused += 1            # accesses to the key stay remote: slower, and right
            return
        self.held_bytes += table.stride_bytes
        change_state(table, key, STATE_REQUESTED)
        note_decision(self.journal, table, key, EVENT_REQUESTED, known_owner(table, key), table.records[key].epoch)
        self._become_busy(table, key)
        table.flags[key] |= KEY_QUEUED
        reference.table = table.table_id
        reference.key = key
        self.fenced.push_back(reference)

    cdef inline bint _no_writes_open(self) noexcept nogil:
        return self.requests.writes_open[0] + self.requests.writes_open[1] == 0

    cdef void _step_fence(self) noexcept nogil:
        if not self.draining.empty() and self.requests.writes_open[self.requests.phase ^ 1] == 0:
            self._release_fenced(self.draining)
        if not self.fenced.empty() and (self._no_writes_open() or is_planted(MUTATION_FENCE_OPEN)):
            self._release_fenced(self.fenced)
        if not self.fenced.empty() and self.draining.empty():
            self.draining.swap(self.fenced)
            self.requests.phase ^= 1

    cdef void _release_fenced(self, vector[KeyRef]& references) noexcept nogil:
        cdef size_t i
        for i in range(references.size()):
            self._put_in_queue(self._table(references[i].table), references[i].key)
        references.clear()

    cdef void _ask_early(self) noexcept nogil:
        """No write is open: asks owners of whom enough is wanted, so that they work while further keys are counted.

        What one step sends to a peer is one round, in however many messages (I2): no answer is taken in between.
        """
        cdef uint32_t owner
        cdef size_t i
        for i in range(self.fenced.size()):
            owner = known_owner(self._table(self.fenced[i].table), self.fenced[i].key)
            self._put_in_queue(self._table(self.fenced[i].table), self.fenced[i].key)
            if self.todo[owner].size() >= self.early_records and (self.open_records[owner] == 0 or self.growing[owner]):
                self._begin_round(owner)
                self.growing[owner] = True
        self.fenced.clear()

    cdef void _queue(self, TableState* table, uint32_t key) noexcept nogil:
        """Has the key looked at when the next round to its owner begins; once its record is answered, if one is open."""
        if table.flags[key] & (KEY_QUEUED | KEY_IN_FLIGHT) or known_owner(table, key) == self.rank:
            return
        self._become_busy(table, key)
        self._put_in_queue(table, key)

    cdef void _put_in_queue(self, TableState* table, uint32_t key) noexcept nogil:
        cdef KeyRef reference
        reference.table = table.table_id
        reference.key = key
        table.flags[key] |= KEY_QUEUED
        self.todo[known_owner(table, key)].push_back(reference)

    # A key is busy while it is queued or in flight. wait_sync must wait for the keys that are busy when it starts, but not for
    # those that become busy later, or it would wait for ever beside a busy worker. So busy keys have one of two colours,
    # counted each; a sync flips the colour and waits until none of the old one is left. A key of the old colour whose record
    # was sent before the flip may have newer writes pending: it keeps the old colour for one more record (KEY_FRESH tells).

    cdef inline void _become_busy(self, TableState* table, uint32_t key) noexcept nogil:
        table.flags[key] = (table.flags[key] & ~<uint8_t>(KEY_COLOUR | KEY_FRESH)) | (KEY_COLOUR if self.colour else 0)
        self.busy[self.colour] += 1

    cdef inline void _become_idle(self, TableState* table, uint32_t key) noexcept nogil:
        self.busy[_colour(table, key)] -= 1

    cdef inline void _stay_busy(self, TableState* table, uint32_t key) noexcept nogil:
        """Its record was answered and another is needed."""
        if _colour(table, key) == self.colour or table.flags[key] & KEY_FRESH:
            self._become_idle(table, key)
            self._become_busy(table, key)
        self._put_in_queue(table, key)

    cdef void _begin_round(self, uint32_t peer) noexcept nogil:
        """Sends what ``todo`` holds for ``peer``, a message per table and MESSAGE_ROWS_BYTES."""
        cdef vector[KeyRef] references
        cdef size_t at = 0, sent_bytes = 0
        cdef size_t i
        cdef uint64_t before = self.records_in_flight
        references.swap(self.todo[peer])
        while at < references.size() and sent_bytes < ROUND_BYTES and not self.transport.out_of_memory:
            at = self._send_records(peer, references, at, &sent_bytes)
        for i in range(at, references.size()):
            self.todo[peer].push_back(references[i])
        if not self.growing[peer]:
            self.rounds += self.records_in_flight > before
            self.began_ns[peer] = self.journal.now_ns

    cdef size_t _send_records(
            self, uint32_t peer, const vector[KeyRef]& references, size_t at, size_t* sent_bytes) noexcept nogil:
        """One ROUND message with records of one table; returns the first reference not looked at."""
        cdef TableState* table = self._table(references[at].table)
        cdef uint32_t most = _records_per_message(table)
        cdef char* memory
        cdef RoundHeader header
        cdef uint32_t key
        cdef int record
        memset(&header, 0, sizeof(header))
        most = <uint32_t>min(<size_t>most, references.size() - at)
        memory = stage(self.transport, padded(most * table.row_bytes) + indices_bytes(most) + padded(most))
        if memory == NULL:
            return at
        self.keys.clear()
        self.codes.clear()
        while at < references.size() and references[at].table == table.table_id and self.keys.size() < most:
            prefetch_records(table, references.data(), at, references.size())
            key = references[at].key
            at += 1
            table.flags[key] &= ~<uint8_t>KEY_QUEUED
            if known_owner(table, key) != peer:
                self._put_in_queue(table, key)       # its owner has changed since it was queued
                continue
            record = self._next_record(table, key, memory + header.rows * table.row_bytes)
            if record < 0:
                self._become_idle(table, key)
                continue
            if record & (RECORD_ADD | RECORD_SET):
                header.rows += 1
                note_traced(self.journal, table, key, EVENT_DELTA_SENT, peer)
            table.flags[key] = (table.flags[key] | KEY_IN_FLIGHT) & ~<uint8_t>(KEY_MISSED | KEY_OFFERED)
            if _colour(table, key) != self.colour:
                table.flags[key] |= KEY_FRESH
            self.keys.push_back(key)
            self.codes.push_back(<uint8_t>record)
        if self.keys.empty():
            unstage(memory, 1)
            return at
        header.count = <uint32_t>self.keys.size()
        header.table = <uint16_t>table.table_id
        header.origin = <uint16_t>self.rank
        header.round_rank = <uint16_t>peer
        self.open_records[peer] += header.count
        self.records_in_flight += header.count
        self.records += header.count
        sent_bytes[0] += header.rows * table.row_bytes
        self._send_body(peer, MSG_ROUND, table, &header, memory, False, False)
        return at

    cdef int _next_record(self, TableState* table, uint32_t key, char* row) noexcept nogil:
        """What to tell the owner of this key now (its delta goes to ``row``); negative: nothing."""
        cdef int pending
        if key_state(table, key) == STATE_REQUESTED:
            if table.records[key].intent_refs == 0 and not self.remote.parking.any(table, key):
                change_state(table, key, STATE_ABSENT)      # over before it was asked for
                self.intents_withdrawn += 1
                note_decision(self.journal, table, key, EVENT_WITHDRAWN, known_owner(table, key))
                self.held_bytes -= table.stride_bytes
                return -1
            return 0
        if key_state(table, key) != STATE_REPLICA:
            return -1
        pending = take_pending(table, key, row)
        if table.records[key].intent_refs == 0:
            return RECORD_LEAVE | (pending * RECORD_ADD)
        if pending == 0 and not table.flags[key] & (KEY_MISSED | KEY_OFFERED):
            return -1
        return pending * RECORD_ADD

    cdef void _send_body(
            self, uint32_t to, uint8_t message_id, TableState* table, const RoundHeader* header, char* memory,
            bint epochs, bint versions) noexcept nogil:
        """Adds the sections collected in scratch behind the rows in ``memory`` and sends it."""
        cdef RoundBody body = round_body(memory, header, table.row_bytes, epochs, versions)
        memcpy(body.keys, self.keys.data(), header.count * sizeof(uint32_t))
        if epochs:
            memcpy(body.epochs, self.epochs.data(), header.count * sizeof(uint32_t))
        if versions:
            memcpy(body.versions, self.versions.data(), header.count * sizeof(uint32_t))
        memcpy(body.codes, self.codes.data(), header.count)
        send_staged(self.transport, to, message_id, header, sizeof(RoundHeader), memory, body.size_bytes)

    # == holder: answers and refreshes ===================================================================================

    cdef void _take_answer(
            self, uint32_t owner, TableState* table, const RoundHeader* header, const RoundBody* body) noexcept nogil:
        cdef uint32_t i, row = 0
        cdef const char* rows = body.rows
        for i in range(self.workers.size()):
            self._count_started(<IntentQueue>self.workers[i], (<IntentQueue>self.workers[i]).now())
        self.open_records[header.round_rank] -= header.count
        self.records_in_flight -= header.count
        if self.open_records[header.round_rank] == 0:
            self.round_ns += (self.transport.now_ns() - self.began_ns[header.round_rank] - self.round_ns) // 8
            for i in range(self.workers.size()):
                (<IntentQueue>self.workers[i]).round_ended()
            self.look_at_intents = True
        for i in range(header.count):
            prefetch_rows(table, body.keys, i, header.count)
            table.flags[body.keys[i]] &= ~<uint8_t>KEY_IN_FLIGHT
            if body.codes[i] == RESULT_DROPPED:
                learn_owner(table, body.keys[i], owner, body.epochs[i])
                self._take_drop(table, body.keys[i])
                continue
            self._take_row(
                owner, table, body.keys[i], rows + row * table.row_bytes, body.codes[i] == RESULT_MOVED,
                body.epochs[i], body.versions[i])
            row += 1
        for i in range(header.count):
            self._look_again(table, body.keys[i])
        self.remote.step_waiting()

    cdef void _take_drop(self, TableState* table, uint32_t key) noexcept nogil:
        # Not dropped when a write came in since the record was sent: the key goes round once more, as any with a delta.
        if key_state(table, key) == STATE_REPLICA and drop_replica(table, key):
            self.replicas_dropped += 1
            self.replicas_held -= 1
            self.held_bytes -= table.stride_bytes
            note_decision(self.journal, table, key, EVENT_DROPPED, known_owner(table, key))

    cdef void _take_row(
            self, uint32_t owner, TableState* table, uint32_t key, const char* row, bint moved,
            uint32_t epoch, uint32_t version) noexcept nogil:
        """The row of a key that was asked for, or newer news of a replica."""
        if key_state(table, key) == STATE_REQUESTED:
            copy_row(row_of(table, bind_slot(table, key)), row, table.row_bytes)
            if moved:
                publish_owned(table, key, version)
            else:
                publish(table, key, STATE_REPLICA)
                note_decision(self.journal, table, key, EVENT_GRANTED, owner, epoch)
            self.replicas_set_up += not moved
            self.replicas_held += not moved
            if not moved:
                table.replicas[slot_of(table, key)].seen_version = version
        elif moved:
            promote_replica(table, key, row, version)
            self.replicas_promoted += 1
            self.replicas_held -= 1
        elif is_later(version, table.replicas[slot_of(table, key)].seen_version):
            refresh_replica(table, key, row)
            note_traced(self.journal, table, key, EVENT_REFRESHED, owner, version)
            table.replicas[slot_of(table, key)].seen_version = version
        if moved:
            self.relocations_in += 1
            note_decision(self.journal, table, key, EVENT_MOVED_IN, owner, epoch)
        learn_owner(table, key, self.rank if moved else owner, epoch)

    cdef void _look_again(self, TableState* table, uint32_t key) noexcept nogil:
        """After an answer: serves what waited for the key, and goes on with what happened while its record was in flight."""
        cdef vector[ParkedMessage*] waiting
        cdef size_t i
        if is_here(table, key) and self.remote.parking.any(table, key):
            self.remote.parking.take(table, key, waiting)
            # Accesses first: a record may give the key away again, and an access of this rank's own needs it here.
            for i in range(waiting.size()):
                if waiting[i].is_access != is_planted(MUTATION_RECORDS_FIRST):
                    self._serve_parked(table, key, waiting[i])
            for i in range(waiting.size()):
                if waiting[i].is_access == is_planted(MUTATION_RECORDS_FIRST):
                    self._serve_parked(table, key, waiting[i])
                unpark(waiting[i])
        if self._needs_record(table, key):
            self._stay_busy(table, key)
            return
        self._become_idle(table, key)
        if key_state(table, key) == STATE_ABSENT and table.records[key].intent_refs > 0:
            self._want(table, key)
        elif key_state(table, key) == STATE_OWNED and table.records[key].intent_refs == 0:
            self.hints.offer_to_last_holder(table, key)

    cdef bint _needs_record(self, TableState* table, uint32_t key) noexcept nogil:
        if key_state(table, key) != STATE_REPLICA:
            return False
        return (table.records[key].intent_refs == 0 or table.flags[key] & (KEY_MISSED | KEY_OFFERED)
                or self._is_worth_sending(table, key))

    cdef bint _is_worth_sending(self, TableState* table, uint32_t key) noexcept nogil:
        """Of what is pending: anything, or with a sync_threshold enough of it."""
        if self.sync_threshold == 0 or self.sync_running:
            return has_pending(table, key)
        return pending_norm(table, key) >= self.sync_threshold

    cdef void _serve_parked(self, TableState* table, uint32_t key, ParkedMessage* message) noexcept nogil:
        cdef RoundBody body
        cdef RoundHeader header
        if message.is_access:
            self.remote.serve_parked(table, key, message)
            return
        header = message.round
        header.count = 1
        header.rows = message.has_row
        header.flags = FLAG_FORWARDED
        body.rows = message.row
        body.keys = &key
        body.epochs = &message.epoch
        body.versions = NULL
        body.codes = &message.record
        self._serve_round(table, &header, &body)

    cdef void _take_refresh(
            self, uint32_t owner, TableState* table, const RoundHeader* header, const RoundBody* body) noexcept nogil:
        cdef uint32_t i, key
        for i in range(header.count):
            prefetch_rows(table, body.keys, i, header.count)
            key = body.keys[i]
            if key_state(table, key) == STATE_REQUESTED or table.flags[key] & KEY_IN_FLIGHT:
                table.flags[key] |= KEY_MISSED
            elif key_state(table, key) == STATE_REPLICA:
                self._take_row(
                    owner, table, key, body.rows + i * table.row_bytes, False, body.epochs[i], body.versions[i])

    cdef void _take_offers(self, TableState* table, const RoundHeader* header, const uint32_t* keys) noexcept nogil:
        """The owner would give these away."""
        cdef uint32_t i
        for i in range(header.count):
            prefetch_offers(table, keys, i, header.count)
            if key_state(table, keys[i]) == STATE_REPLICA:
                table.flags[keys[i]] |= KEY_OFFERED
                self._queue(table, keys[i])

    # == owner ===========================================================================================================

    cdef void _serve_round(self, TableState* table, const RoundHeader* asked, const RoundBody* body) noexcept nogil:
        """Answers the records whose keys are owned here; forwards or parks the rest."""
        cdef RoundHeader header = asked[0]
        cdef char* memory = stage(
            self.transport, padded(asked.count * table.row_bytes) + 3 * indices_bytes(asked.count) + padded(asked.count))
        cdef uint32_t i, row = 0
        cdef const char* delta
        if memory == NULL:
            return
        header.flags = 0
        header.rows = 0
        self.keys.clear()
        self.epochs.clear()
        self.versions.clear()
        self.codes.clear()
        self.left_over.clear()
        self.row_numbers.clear()
        for i in range(asked.count):
            prefetch_rows(table, body.keys, i, asked.count)
            delta = body.rows + row * table.row_bytes
            if known_owner(table, body.keys[i]) != self.rank:
                self.left_over.push_back(i)
                self.row_numbers.push_back(row)
            else:
                self._decide(table, asked.origin, body.keys[i], body.codes[i], delta, memory, &header)
            row += (body.codes[i] & (RECORD_ADD | RECORD_SET)) != 0
        header.count = <uint32_t>self.keys.size()
        if header.count > 0:
            self._send_body(asked.origin, MSG_ANSWER, table, &header, memory, True, True)
        else:
            unstage(memory, 1)
        if not self.left_over.empty():
            self._pass_on(table, asked, body)

    cdef void _decide(
            self, TableState* table, uint32_t holder, uint32_t key, uint8_t record, const char* delta,
            char* memory, RoundHeader* header) noexcept nogil:
        """One record for a key owned here: applies its delta and adds the result to the answer being built."""
        cdef char* row = memory + header.rows * table.row_bytes
        cdef uint8_t result = RESULT_ROW
        # Where the next rows will be copied: else the next exchange of a word waits for the copy before it.
        prefetch_row(row + 4 * table.row_bytes, table.row_bytes, True)
        cdef uint32_t version = 0
        if record & (RECORD_ADD | RECORD_SET):
            apply_write(table, key, delta, record & RECORD_SET)
            if is_planted(MUTATION_DELTAS_TWICE):
                apply_write(table, key, delta, record & RECORD_SET)
            note_traced(self.journal, table, key, EVENT_DELTA_TAKEN, holder)
            self.written_ns = self.journal.now_ns
            self._spread(table, key, holder)
        if record & RECORD_LEAVE:
            result = RESULT_DROPPED
            self._remove_holder(table, key, holder)
            if table.records[key].intent_refs == 0:
                self.hints.offer_to_last_holder(table, key)
        elif may_relocate(self.management) and decide(
                self.management, table.records[key].intent_refs > 0, others_hold(table, key, holder)) == DECIDE_RELOCATE:
            result = RESULT_MOVED
            version = self._move_to(table, key, holder, row)
        else:
            self._add_holder(table, key, holder)
            version = read_row(table, key, row)
        if result != RESULT_DROPPED:
            header.rows += 1
        self.keys.push_back(key)
        self.epochs.push_back(table.records[key].epoch)
        self.versions.push_back(version)
        self.codes.push_back(result)

    cdef Reason _reason_to_replicate(self, TableState* table, uint32_t key) noexcept nogil:
        """Why ``decide`` did not relocate."""
        if self.management != MANAGE_ADAPTIVE:
            return REASON_MODE
        return REASON_OWNER_INTENDS if table.records[key].intent_refs > 0 else REASON_OTHERS_HOLD

    cdef uint32_t _move_to(
            self, TableState* table, uint32_t key, uint32_t holder, char* row) noexcept nogil:
        """Gives the key away: the row goes into the answer, a forward pointer stays, the home rank is told."""
        cdef uint32_t version
        self._remove_holder(table, key, holder)
        version = move_out(table, key, row)
        self.held_bytes -= table.stride_bytes
        learn_owner(table, key, holder, table.records[key].epoch + 1)
        self.relocations_out += 1
        note_decision(
            self.journal, table, key, EVENT_MOVED_OUT, holder, table.records[key].epoch,
            REASON_ONLY_INTENT if self.management == MANAGE_ADAPTIVE else REASON_MODE)
        self.hints.note_move(table, key, holder)
        return version

    cdef void _add_holder(self, TableState* table, uint32_t key, uint32_t holder) noexcept nogil:
        cdef RankWord* holders = holders_of(table, key) + holder // RANKS_PER_WORD
        if not holders[0] & bit_of(holder):
            holders[0] |= bit_of(holder)
            mark_shared(table, key, True)       # before the row is read: later writes are marked dirty
            note_decision(
                self.journal, table, key, EVENT_HOLDER_ADDED, holder, table.records[key].epoch,
                self._reason_to_replicate(table, key))
        take_news(table, key, holder)

    cdef void _remove_holder(self, TableState* table, uint32_t key, uint32_t holder) noexcept nogil:
        cdef RankWord* holders = holders_of(table, key) + holder // RANKS_PER_WORD
        if not is_shared(table, key) or not holders[0] & bit_of(holder):
            return
        holders[0] &= <RankWord>~bit_of(holder)
        take_news(table, key, holder)
        note_decision(self.journal, table, key, EVENT_HOLDER_REMOVED, holder, table.records[key].epoch)
        if not others_hold(table, key, holder):
            mark_shared(table, key, False)

    # -- records of keys that are not here -------------------------------------------------------------------------------

    cdef void _pass_on(self, TableState* table, const RoundHeader* asked, const RoundBody* body) noexcept nogil:
        """Parks the records in ``left_over`` whose keys are on their way here; forwards the others, a message per owner."""
        cdef vector[uint32_t] numbers
        cdef vector[uint32_t] rows
        cdef uint32_t i, owner
        cdef size_t n, kept
        for n in range(self.left_over.size()):
            i = self.left_over[n]
            if body.epochs != NULL and body.epochs[i] > table.records[body.keys[i]].epoch:
                self._park(table, asked, body, i, self.row_numbers[n])
            else:
                numbers.push_back(i)
                rows.push_back(self.row_numbers[n])
        self.forwarded_records += numbers.size()
        while not numbers.empty():
            owner = known_owner(table, body.keys[numbers[0]])
            self._forward(table, owner, asked, body, numbers, rows)
            kept = 0
            for n in range(numbers.size()):
                if known_owner(table, body.keys[numbers[n]]) != owner:
                    numbers[kept] = numbers[n]
                    rows[kept] = rows[n]
                    kept += 1
            numbers.resize(kept)
            rows.resize(kept)

    cdef void _park(
            self, TableState* table, const RoundHeader* asked, const RoundBody* body, uint32_t i, uint32_t row) noexcept nogil:
        cdef const char* delta = NULL
        if body.codes[i] & (RECORD_ADD | RECORD_SET):
            delta = body.rows + row * table.row_bytes
        note_traced(self.journal, table, body.keys[i], EVENT_PARKED, asked.origin)
        if not self.remote.parking.park_record(table, body.keys[i], asked, body.codes[i], body.epochs[i], delta):
            self.transport.out_of_memory = True

    cdef void _forward(
            self, TableState* table, uint32_t owner, const RoundHeader* asked, const RoundBody* body,
            const vector[uint32_t]& numbers, const vector[uint32_t]& rows) noexcept nogil:
        cdef RoundHeader header = asked[0]
        cdef size_t n
        cdef uint32_t i
        cdef char* memory = stage(
            self.transport,
            padded(numbers.size() * table.row_bytes) + 2 * indices_bytes(<uint32_t>numbers.size()) + padded(numbers.size()))
        if memory == NULL:
            return
        header.hops += 1
        header.flags = FLAG_FORWARDED
        header.rows = 0
        self.keys.clear()
        self.epochs.clear()
        self.codes.clear()
        for n in range(numbers.size()):
            i = numbers[n]
            if known_owner(table, body.keys[i]) != owner:
                continue
            if body.codes[i] & (RECORD_ADD | RECORD_SET):
                copy_row(memory + header.rows * table.row_bytes, body.rows + rows[n] * table.row_bytes, table.row_bytes)
                header.rows += 1
            note_traced(self.journal, table, body.keys[i], EVENT_FORWARDED, owner)
            self.keys.push_back(body.keys[i])
            self.epochs.push_back(table.records[body.keys[i]].epoch)
            self.codes.push_back(body.codes[i])
        header.count = <uint32_t>self.keys.size()
        self._send_body(owner, MSG_ROUND, table, &header, memory, True, False)

    # -- news ------------------------------------------------------------------------------------------------------------

    cdef int64_t _collect_dirt(self, int64_t now_ns, bint at_once) noexcept nogil:
        """Turns keys written since last time into records (replicas) and news (owned). Returns when to do so next."""
        cdef uint32_t t
        cdef bint dirty = (at_once and self.sync_threshold > 0) or self._any_dirty()
        if not dirty and load_relaxed(&self.dirt_noted):
            # Collected before it was noted (by a sync). Were the note left, the next writer would take it for its own.
            self._expect_dirt()
            dirty = self._any_dirty()
        if not dirty:
            return NEVER
        if self.dirty_since_ns == 0:
            self.dirty_since_ns = now_ns
        if not at_once and now_ns < self.collected_ns + self.sync_interval_ns:
            return self.collected_ns + self.sync_interval_ns
        self.collected_ns = now_ns
        self.written_ns = self.dirty_since_ns
        self.dirty_since_ns = 0
        self._expect_dirt()
        for t in range(self.remote.table_count):
            self._sort_dirty(self._table(t), at_once)
            if at_once and self.sync_threshold > 0:
                self._queue_withheld(self._table(t))
        return NEVER

    cdef inline bint _any_dirty(self) noexcept nogil:
        cdef uint32_t t
        for t in range(self.remote.table_count):
            if is_dirty(self._table(t)):
                return True
        return False

    cdef void _expect_dirt(self) noexcept nogil:
        """From now on the next writer tells the engine. To be called before the stacks are looked at or taken.

        A writer marks its key, then looks at ``dirt_noted``; the engine clears it, then looks for keys. With a fence between
        the two steps of each, either the engine sees the key or the writer sees that it has to tell.
        """
        store_release(&self.dirt_noted, 0)
        fence_seq_cst()

    cdef void _queue_withheld(self, TableState* table) noexcept nogil:
        """Deltas below ``sync_threshold`` are not collected but by a wait_sync: it looks at every slot."""
        cdef int64_t slot
        cdef int32_t key
        for slot in range(table.slots_touched):
            key = load_relaxed_i32(&table.key_of[slot])
            if key >= 0 and key_state(table, key) == STATE_REPLICA and has_pending(table, key):
                self._queue(table, <uint32_t>key)

    cdef void _sort_dirty(self, TableState* table, bint at_once) noexcept nogil:
        cdef uint32_t key
        cdef KeyState state
        cdef size_t i
        take_dirty(table, self.dirty)
        for i in range(self.dirty.size()):
            prefetch_dirty(table, self.dirty.data(), i, self.dirty.size())
            key = self.dirty[i]
            forget_dirty(table, key)
            state = key_state(table, key)
            if state == STATE_REPLICA:
                if at_once or self.sync_threshold == 0 or pending_norm(table, key) >= self.sync_threshold:
                    self._queue(table, key)
            elif state == STATE_OWNED:
                self._spread(table, key, self.rank)

    cdef void _spread(self, TableState* table, uint32_t key, uint32_t writer) noexcept nogil:
        """The row has changed: news for every holder but the one that wrote."""
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
                self._note_age(holder)
                self.news[holder].push_back(reference)

    cdef void _note_age(self, uint32_t holder) noexcept nogil:
        """Of the news about to be added for this holder, written at ``written_ns``."""
        if self.news_since_ns[holder] == 0:
            self.news_since_ns[holder] = self.written_ns
        elif self.written_ns < self.news_since_ns[holder]:
            self.news_since_ns[holder] = self.written_ns
        elif self.later_news_since_ns[holder] == 0:
            if self.written_ns > self.news_since_ns[holder]:
                self.later_news_at[holder] = self.news[holder].size()
                self.later_news_since_ns[holder] = self.written_ns
        elif self.written_ns < self.later_news_since_ns[holder]:
            self.later_news_since_ns[holder] = self.written_ns

    cdef void _forget_age(self, uint32_t holder, size_t sent) noexcept nogil:
        """The first ``sent`` news are gone; what is left is no older than the later half once the first is gone."""
        if self.news[holder].empty():
            self.news_since_ns[holder] = self.later_news_since_ns[holder] = 0
        elif self.later_news_since_ns[holder] == 0:
            return
        elif sent < self.later_news_at[holder]:
            self.later_news_at[holder] -= sent
        else:
            self.news_since_ns[holder] = self.later_news_since_ns[holder]
            self.later_news_since_ns[holder] = 0

    cdef int64_t _refresh(self, uint32_t holder, int64_t now_ns) noexcept nogil:
        """Sends the holder its news, when the last is long enough ago; returns when that will be."""
        cdef bint at_once = self.flush_asked[holder] != 0
        cdef size_t at = 0, kept = 0, sent
        if self.flush_drained[holder]:
            return NEVER                         # first the acknowledgements of what was sent
        if not at_once and now_ns < self.refreshed_ns[holder] + self.sync_interval_ns:
            return self.refreshed_ns[holder] + self.sync_interval_ns
        # While one is not acknowledged, only messages that are full are sent: rows written often gather.
        while at < self.news[holder].size() and self.refreshes_open[holder] < REFRESH_WINDOW and (
                at_once or self.refreshes_open[holder] == 0 or self._fills_message(self.news[holder], at)) and (
                not self.transport.out_of_memory):
            at = self._send_refresh(holder, at)
        self.refreshed_ns[holder] = now_ns
        sent = at
        while at < self.news[holder].size():
            self.news[holder][kept] = self.news[holder][at]
            kept += 1
            at += 1
        self.news[holder].resize(kept)
        self._forget_age(holder, sent)
        return NEVER                             # the acknowledgements go on with it

    cdef bint _fills_message(self, const vector[KeyRef]& references, size_t at) noexcept nogil:
        return references.size() - at >= _records_per_message(self._table(references[at].table))

    cdef size_t _send_refresh(self, uint32_t holder, size_t at) noexcept nogil:
        cdef vector[KeyRef]* references = &self.news[holder]
        cdef TableState* table = self._table(references[0][at].table)
        cdef uint32_t most = <uint32_t>min(<size_t>_records_per_message(table), references[0].size() - at)
        cdef char* memory = stage(
            self.transport, padded(most * table.row_bytes) + 3 * indices_bytes(most) + padded(most))
        cdef RoundHeader header
        cdef uint32_t key
        if memory == NULL:
            return at
        memset(&header, 0, sizeof(header))
        self.keys.clear()
        self.epochs.clear()
        self.versions.clear()
        self.codes.clear()
        while at < references[0].size() and references[0][at].table == table.table_id and header.rows < most:
            prefetch_news(table, references.data(), at, references.size())
            key = references[0][at].key
            at += 1
            if known_owner(table, key) != self.rank or not take_news(table, key, holder):
                continue                         # moved, dropped or answered meanwhile
            self.versions.push_back(read_row(table, key, memory + header.rows * table.row_bytes))
            note_traced(self.journal, table, key, EVENT_REFRESH_SENT, holder, self.versions.back())
            self.keys.push_back(key)
            self.epochs.push_back(table.records[key].epoch)
            self.codes.push_back(RESULT_ROW)
            header.rows += 1
        if header.rows == 0:
            unstage(memory, 1)
            return at
        header.count = header.rows
        header.table = <uint16_t>table.table_id
        header.origin = <uint16_t>self.rank
        header.window_slot = self._open_window_slot(holder)
        self.refreshed_rows += header.rows
        self._send_body(holder, MSG_REFRESH, table, &header, memory, True, True)
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

    cdef bint _take_acknowledgement(self, uint32_t holder, const RoundHeader* header) noexcept nogil:
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

    # A flush of the news for a holder is over when all that was known when it was asked for has been sent and acknowledged.
    # Once the list has been empty, nothing new is sent until then: news that keep coming cannot hold it up.

    cdef void flush(self) noexcept nogil:
        cdef uint32_t peer
        self._collect_dirt(self.transport.now_ns(), True)
        for peer in range(self.size):
            if peer != self.rank:
                self._ask_flush(peer, FLUSH_FOR_BARRIER)

    cdef bint is_flushed(self) noexcept nogil:
        cdef uint32_t peer
        for peer in range(self.size):
            if self.flush_asked[peer] & FLUSH_FOR_BARRIER:
                return False
        return True

    cdef void _ask_flush(self, uint32_t peer, uint8_t who) noexcept nogil:
        self.flush_asked[peer] |= who
        self.flush_drained[peer] = False

    cdef void _step_flush(self, uint32_t peer) noexcept nogil:
        cdef uint8_t asked = self.flush_asked[peer]
        if self.news[peer].empty():
            self.flush_drained[peer] = True
        if not self.flush_drained[peer] or self.refreshes_open[peer] > 0:
            return
        self.flush_drained[peer] = False
        self.flush_asked[peer] = 0
        if asked & FLUSH_FOR_SYNC:
            self._answer_sync(peer)

    # == wait_sync =======================================================================================================

    cdef void sync(self, Operation* operation) noexcept nogil:
        cdef SyncWait wait
        self.sync_wanted += 1
        wait.ticket = self.sync_wanted
        wait.operation = operation
        self.sync_waits.push_back(wait)
        self.look_at_intents = True

    cdef void unsync(self, Operation* operation) noexcept nogil:
        """The caller no longer waits."""
        cdef size_t i
        for i in range(self.sync_waits.size()):
            if self.sync_waits[i].operation == operation:
                self.sync_waits[i] = self.sync_waits.back()
                self.sync_waits.pop_back()
                operation.status = OPERATION_ABANDONED
                self.requests.close_submission(operation)    # another thread may wait for it
                return

    cdef void _step_sync(self) noexcept nogil:
        while True:
            if self.sync_running == 0:
                if self.sync_wanted == self.sync_done:
                    return
                self.sync_running = self.sync_wanted
                self.sync_flushed = False
                self._collect_dirt(self.transport.now_ns(), True)
                self.colour ^= 1
            if not self.sync_flushed:
                if self.busy[self.colour ^ 1] > 0:
                    return
                self.sync_flushed = True
                self._ask_for_news()
            if self.synced_missing > 0:
                return
            self._end_sync()

    cdef void _ask_for_news(self) noexcept nogil:
        cdef ControlHeader header
        cdef uint32_t peer
        if not self.holds_replicas() or is_planted(MUTATION_SYNC_WITHOUT_NEWS):
            return
        memset(&header, 0, sizeof(header))
        header.sequence = self.sync_running
        for peer in range(self.size):
            if peer != self.rank:
                self.synced_missing += 1
                send_staged(
                    self.transport, peer, MSG_SYNC, &header, sizeof(header), stage(self.transport, 0), 0)

    cdef void _answer_sync(self, uint32_t peer) noexcept nogil:
        cdef ControlHeader header
        memset(&header, 0, sizeof(header))
        send_staged(self.transport, peer, MSG_SYNCED, &header, sizeof(header), stage(self.transport, 0), 0)

    cdef void _end_sync(self) noexcept nogil:
        cdef size_t i = 0
        self.sync_done = self.sync_running
        self.sync_running = 0
        while i < self.sync_waits.size():
            if self.sync_waits[i].ticket <= self.sync_done:
                self.requests.close_submission(self.sync_waits[i].operation)
                self.sync_waits[i] = self.sync_waits.back()
                self.sync_waits.pop_back()
            else:
                i += 1

    cdef bint holds_replicas(self) noexcept nogil:
        return self.replicas_held > 0

    cdef void sample(self, int64_t now_ns, bint at_once) noexcept nogil:
        cdef Sample sample
        sample.time_ns = now_ns
        sample.relocations_in = self.relocations_in
        sample.relocations_out = self.relocations_out
        sample.replicas_held = self.replicas_held
        sample.sent_bytes = self.transport.sent_bytes
        sample.received_bytes = self.transport.received_bytes
        self.journal.take_sample(&sample, at_once)

    cdef void fail(self, int status) noexcept nogil:
        cdef size_t i
        for i in range(self.sync_waits.size()):
            self.sync_waits[i].operation.status = status
            self.requests.close_submission(self.sync_waits[i].operation)
        self.sync_waits.clear()

    # == messages ========================================================================================================

    cdef bint on_message(
            self, uint32_t source, uint8_t message_id, const RoundHeader* header,
            const char* body, size_t body_bytes) noexcept nogil:
        cdef TableState* table
        cdef const uint32_t* numbers
        cdef RoundBody sections
        cdef bint answers = message_id == MSG_ANSWER or message_id == MSG_REFRESH
        self.journal.now_ns = self.transport.now_ns()
        if message_id == MSG_REFRESHED:
            return self._take_acknowledgement(source, header)
        if header.table >= self.remote.table_count or header.origin >= self.size or header.round_rank >= self.size:
            return False
        table = self._table(header.table)
        if message_id == MSG_OFFER or message_id == MSG_MOVED:
            numbers = <const uint32_t*>body
            if not hint_fits(table, message_id, header, numbers, body_bytes):
                return False
            if message_id == MSG_MOVED:
                return self.hints.learn_moves(table, header, numbers)
            self._take_offers(table, header, numbers)
            return True
        sections = round_body(
            <char*>body, header, table.row_bytes, answers or header.flags & FLAG_FORWARDED, answers)
        if sections.size_bytes != body_bytes or not keys_fit(sections.keys, header.count, table.num_keys):
            return False
        if not _rows_fit(header, &sections, answers):
            return False
        if message_id == MSG_ROUND:
            self._serve_round(table, header, &sections)
        elif message_id == MSG_ANSWER:
            self._take_answer(source, table, header, &sections)
        elif message_id == MSG_REFRESH:
            self._take_refresh(source, table, header, &sections)
            self._acknowledge(source, header)
        else:
            return False
        return True

    cdef void _acknowledge(self, uint32_t owner, const RoundHeader* header) noexcept nogil:
        send_staged(
            self.transport, owner, MSG_REFRESHED, header, sizeof(RoundHeader), stage(self.transport, 0), 0)

    cdef bint on_control(self, uint32_t source, uint8_t message_id, const ControlHeader* header) noexcept nogil:
        if message_id == MSG_SYNC:
            self._collect_dirt(self.transport.now_ns(), True)
            self._ask_flush(source, FLUSH_FOR_SYNC)
        elif message_id == MSG_SYNCED and self.synced_missing > 0:
            self.synced_missing -= 1
        else:
            return False
        return True

    # == workers and tables ==============================================================================================

    cdef void count_rows(self, Table table) noexcept nogil:
        """A new table's rows count towards the memory budget."""
        self.held_bytes += table.state.slots_used * table.state.stride_bytes

    cdef void trim(self, size_t least_bytes) noexcept nogil:
        cdef uint32_t t
        for t in range(self.remote.table_count):
            trim_slots(self._table(t), least_bytes)

    cdef keep(self, IntentQueue queue):
        self.queues.append(queue)

    cdef void add_worker(self, IntentQueue queue) noexcept nogil:
        self.workers.push_back(<void*>queue)

    cdef void replicate_all(self, Table table) noexcept nogil:
        """Management "full_replication": this rank intends every key of the table for good."""
        cdef int64_t key
        if self.management != MANAGE_FULL_REPLICATION:
            return
        for key in range(table.state.num_keys):
            self._intend(table.state, <uint32_t>key)

    def uses_intents(self) -> bool:
        return uses_intents(self.management) and self.size > 1


# -- small pure things ---------------------------------------------------------------------------------------------------

cdef inline uint32_t _records_per_message(const TableState* table) noexcept nogil:
    return <uint32_t>min(<size_t>MESSAGE_RECORDS, max(<size_t>1, MESSAGE_ROWS_BYTES // table.row_bytes))


cdef inline uint32_t _colour(const TableState* table, uint32_t key) noexcept nogil:
    return (table.flags[key] & KEY_COLOUR) != 0


cdef inline bint _rows_fit(const RoundHeader* header, const RoundBody* body, bint answers) noexcept nogil:
    """There are as many rows as the records, or results, say."""
    cdef uint32_t i, rows = 0
    for i in range(header.count):
        rows += body.codes[i] != RESULT_DROPPED if answers else (body.codes[i] & (RECORD_ADD | RECORD_SET)) != 0
    return rows == header.rows
