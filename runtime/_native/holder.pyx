"""The holder's side; ``holder.pxd`` is the contract."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from intentpm.foundation.primitives cimport copy_row, store_relaxed
from intentpm.runtime._native.apart cimport arrive_apart
from intentpm.runtime._native.budget cimport slot_bytes
from intentpm.runtime._native.concerned_ranks cimport ConcernedRanks
from intentpm.runtime._native.cuts cimport is_of
from intentpm.runtime._native.directory cimport known_owner, learn_owner
from intentpm.runtime._native.draft cimport Draft, records_per_message
from intentpm.runtime._native.fetched cimport is_for_one_use
from intentpm.runtime._native.flags cimport (
    KEY_COLOUR, KEY_FRESH, KEY_IN_FLIGHT, KEY_MISSED, KEY_OFFERED, KEY_ONCE, KEY_QUEUED, KEY_USED,
)
from intentpm.runtime._native.hints cimport Hints
from intentpm.runtime._native.holders cimport ns_since, tick_of
from intentpm.runtime._native.intents cimport NEVER
from intentpm.runtime._native.journal cimport (
    EVENT_DELTA_SENT, EVENT_DROPPED, EVENT_GRANTED, EVENT_MOVED_IN, EVENT_REFRESHED, EVENT_REQUESTED, EVENT_WITHDRAWN,
    note_decision, note_traced,
)
from intentpm.runtime._native.message_rows cimport result_bytes, takes_weights, written_bytes
from intentpm.runtime._native.messages cimport (
    FLAG_BEGINS, FLAG_HOLDERS, MSG_REFRESHED, MSG_ROUND, RECORD_GRADIENT, RECORD_HOLDS, RECORD_LEAVE, RECORD_ONCE, RECORD_STEP,
    RECORD_WEIGHTS, RECORD_WRITTEN, RESULT_DROPPED, RESULT_KEPT, RESULT_MOVED_SAME, RESULT_SAME, RESULT_SAVED, RoundBody,
    RoundHeader, is_fetched, is_moved, is_weights, packed_clock,
)
from intentpm.runtime._native.mutations cimport (
    MUTATION_FENCE_OPEN, MUTATION_KEPT_LOST, MUTATION_LAG_UNTOLD, MUTATION_RELEASES_MISCOUNTED, is_planted,
)
from intentpm.runtime._native.owner cimport Owner
from intentpm.runtime._native.policy cimport packed_load
from intentpm.runtime._native.prefetching cimport prefetch_offers, prefetch_records, prefetch_rows
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.replicas cimport (
    STATE_LAGS, has_pending, pending_norm, promote_in_place, promote_replica, refresh_replica, refresh_weights, take_pending,
)
from intentpm.runtime._native.round_order cimport ASKS_FIRST, RELEASES_FIRST, group_by_table, put_first
from intentpm.runtime._native.row_optimiser cimport lengthen_row
from intentpm.runtime._native.serving cimport Serving
from intentpm.runtime._native.slots cimport bind_slot, change_state, drop_replica, publish, publish_owned
from intentpm.runtime._native.staging cimport send_staged, stage, unstage
from intentpm.runtime._native.state cimport STATE_ABSENT, STATE_OWNED, STATE_REPLICA, STATE_REQUESTED, KeyRef, KeyRefs, is_later
from intentpm.runtime._native.table_state cimport ReplicaRecord, TableState, key_state, row_of, slot_of
from intentpm.runtime._native.timing cimport longest_of_last
from intentpm.runtime._native.unparking cimport Unparking

cdef enum:
    FETCHED_NS = 50_000_000          # a replica for one use that is here for longer, and so many rounds, becomes one as any ...
    FETCHED_ROUNDS = 8
    FETCHED_CLOCKS = 4               # ... but not within so many clocks
    TICK_US = 66
    MOST_AHEAD_US = 1_000_000_000
    EARLY_RECORDS = 256              # new keys of one owner that are asked for while more are being counted


cdef class Holder:
    def __init__(
            self, Serving serving not None, Owner owner not None, Hints hints not None,
            ConcernedRanks concerned not None, sync_threshold: float):
        cdef RemoteAccess remote = serving.remote
        cdef uint32_t size = remote.transport.size
        self.remote = remote
        self.transport = remote.transport
        self.requests = remote.requests
        self.journal = remote.journal
        self.owner = owner
        self.unparking = Unparking(serving, owner)
        self.hints = hints
        self.draft = Draft(remote.transport)
        self.concerned = concerned
        self.rank = remote.transport.rank
        self.sync_threshold = sync_threshold
        self.budget = remote.budget
        self.early_records = EARLY_RECORDS
        self.todo.resize(size)
        self.open_records.resize(2 * size, 0)
        self.releasable.resize(size, 0)
        self.asked_bytes.resize(size, 0)
        self.growing.resize(size, 0)
        self.began_ns.resize(size, 0)

    # -- asking --------------------------------------------------------------------------------------------------------

    cdef void want(self, TableState* table, uint32_t key, bint once, uint32_t first_use) noexcept nogil:
        cdef KeyRef reference
        if not self.budget.promise(table):
            self.intents_refused += 1            # accesses to the key stay remote: slower, and right
            return
        change_state(table, key, STATE_REQUESTED)
        note_decision(self.journal, table, key, EVENT_REQUESTED, known_owner(table, key), table.records[key].epoch)
        self._become_busy(table, key)
        table.flags[key] = (table.flags[key] & ~<uint8_t>KEY_ONCE) | KEY_QUEUED | (KEY_ONCE if once else 0)
        reference.table = table.table_id
        reference.key = key
        reference.tick = first_use
        self.fenced.push_back(reference)

    cdef void want_longer(self, TableState* table, uint32_t key) noexcept nogil:
        # MISSED: what the owner did not send it is asked for with the next record, which says no longer ONCE.
        table.flags[key] = (table.flags[key] & ~<uint8_t>KEY_ONCE) | KEY_MISSED
        if key_state(table, key) == STATE_REPLICA:
            self.queue(table, key)

    cdef int64_t step_fetched(self, int64_t now_ns) noexcept nogil:
        cdef TableState* table
        cdef uint32_t key
        # They come some rounds, or two clocks, ahead of their use.
        cdef int64_t longest_ns = max(FETCHED_NS + FETCHED_ROUNDS * self.round_ns, FETCHED_CLOCKS * self.clock_ns)
        while not self.fetched.empty():
            table = self.remote.tables[self.fetched.front().table]
            key = self.fetched.front().key
            if ns_since(self.fetched.front().tick, now_ns) < longest_ns:
                return now_ns + longest_ns - ns_since(self.fetched.front().tick, now_ns)
            self.fetched.pop_front()
            if key_state(table, key) == STATE_REPLICA and table.flags[key] & KEY_ONCE and table.records[key].intent_refs > 0:
                # OFFERED: its next record, which says no longer ONCE, is sent though nothing may be written.
                table.flags[key] = (table.flags[key] & ~<uint8_t>KEY_ONCE) | KEY_OFFERED
                self.queue(table, key)
        return NEVER

    cdef void queue_fetched(self) noexcept nogil:
        cdef TableState* table
        cdef uint32_t key
        cdef size_t i
        for i in range(self.fetched.size()):
            table = self.remote.tables[self.fetched[i].table]
            key = self.fetched[i].key
            if key_state(table, key) == STATE_REPLICA and table.flags[key] & KEY_ONCE and has_pending(table, key):
                self.queue(table, key)

    cdef void step_fence(self) noexcept nogil:
        if not self.draining.empty() and self.requests.writes_open[self.requests.phase ^ 1] == 0:
            self._release_fenced(self.draining)
        if not self.fenced.empty() and (self._no_writes_open() or is_planted(MUTATION_FENCE_OPEN)):
            self._release_fenced(self.fenced)
        if not self.fenced.empty() and self.draining.empty():
            self.draining.swap(self.fenced)
            self.requests.phase ^= 1

    cdef void _release_fenced(self, KeyRefs& references) noexcept nogil:
        cdef size_t i
        for i in range(references.size()):
            self._put_in_queue(self.remote.tables[references[i].table], references[i].key, references[i].tick)
        references.clear()

    cdef void ask_early(self) noexcept nogil:
        # What one step sends to a peer is one round, in however many messages (I2): no answer is taken in between.
        cdef uint32_t owner
        cdef size_t i
        for i in range(self.fenced.size()):
            owner = known_owner(self.remote.tables[self.fenced[i].table], self.fenced[i].key)
            self._put_in_queue(self.remote.tables[self.fenced[i].table], self.fenced[i].key, self.fenced[i].tick)
            if self.todo[owner].size() >= self.early_records and self._may_send_to(owner) and self._may_ask(owner):
                self._begin_round(owner)
                self.growing[owner] = True
        self.fenced.clear()

    cdef void queue(self, TableState* table, uint32_t key) noexcept nogil:
        if table.flags[key] & (KEY_QUEUED | KEY_IN_FLIGHT) or known_owner(table, key) == self.rank:
            return
        self._become_busy(table, key)
        self._put_in_queue(table, key)

    cdef void release(self, TableState* table, uint32_t key) noexcept nogil:
        self.queue(table, key)
        if table.flags[key] & KEY_QUEUED:
            self.releasable[known_owner(table, key)] += 1

    cdef void _put_in_queue(self, TableState* table, uint32_t key, uint32_t first_use=0) noexcept nogil:
        cdef KeyRef reference
        reference.table = table.table_id
        reference.key = key
        reference.tick = first_use
        table.flags[key] |= KEY_QUEUED
        self.todo[known_owner(table, key)].push_back(reference)
        self.concerned.add(known_owner(table, key))

    # -- being busy: holder.pxd says why -------------------------------------------------------------------------------

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

    # -- sending rounds ------------------------------------------------------------------------------------------------

    cdef void _begin_round(self, uint32_t peer) noexcept nogil:
        """Sends what ``todo`` holds for ``peer``, a message per table and so many rows."""
        cdef KeyRefs references
        cdef size_t i, asks, at = 0, sent_bytes = 0
        cdef uint64_t before = self.records_in_flight
        references.swap(self.todo[peer])
        self.releasable[peer] = 0
        asks = references.size()
        if asks > self.early_records:
            asks = put_first(self.remote.tables, references, ASKS_FIRST)
        group_by_table(references, 0, asks)
        group_by_table(references, asks, references.size())
        while at < references.size() and sent_bytes < self.budget.round_bytes and self._may_ask(peer) and (
                not self.transport.out_of_memory):
            at = self._send_records(peer, peer, references, at, asks if at < asks else references.size(), &sent_bytes)
        for i in range(at, references.size()):
            self.todo[peer].push_back(references[i])
        if not self.growing[peer]:
            self.rounds += self.records_in_flight > before
            self.began_ns[peer] = self.journal.now_ns

    cdef void _send_releases(self, uint32_t peer) noexcept nogil:
        """Beside the round in flight: a key that is given back is not told of again, however soon."""
        cdef KeyRefs references
        cdef size_t i, count, at = 0, sent_bytes = 0
        references.swap(self.todo[peer])
        self.releasable[peer] = 0
        count = put_first(self.remote.tables, references, RELEASES_FIRST)
        group_by_table(references, 0, count)
        while at < count and sent_bytes < self.budget.round_bytes and not self.transport.out_of_memory:
            at = self._send_records(peer, self._releases_to(peer), references, at, count, &sent_bytes)
        for i in range(at, references.size()):
            self.todo[peer].push_back(references[i])

    cdef size_t _send_records(
            self, uint32_t peer, uint32_t counts_for, const KeyRefs& references, size_t at, size_t end,
            size_t* sent_bytes) noexcept nogil:
        """One ROUND message with records of one table; returns the first reference not looked at."""
        cdef TableState* table = self.remote.tables[references[at].table]
        cdef uint32_t most = <uint32_t>min(<size_t>records_per_message(table), end - at)
        # One row more than records, so that the last may have two.
        cdef char* memory = self.draft.begin(most, (most + 1) * table.record_bytes, 2)
        cdef RoundHeader header
        cdef uint32_t key
        cdef int record
        if memory == NULL:
            return at
        memset(&header, 0, sizeof(header))
        while at < end and references[at].table == table.table_id and self.draft.keys.size() < most and (
                header.rows_bytes <= (most - 1) * table.record_bytes):
            prefetch_records(table, references.data(), at, references.size())
            key = references[at].key
            at += 1
            table.flags[key] &= ~<uint8_t>KEY_QUEUED
            if known_owner(table, key) != peer:
                self._put_in_queue(table, key, references[at - 1].tick)      # its owner has changed since it was queued
                self.passed_back = self.passed_back or known_owner(table, key) < peer
                continue
            record = self._next_record(table, key, memory + header.rows_bytes)
            if record < 0:
                self._become_idle(table, key)
                continue
            if record & RECORD_WRITTEN:
                header.rows_bytes += <uint32_t>written_bytes(table, <uint8_t>record)
                note_traced(self.journal, table, key, EVENT_DELTA_SENT, peer)
            table.flags[key] = (table.flags[key] | KEY_IN_FLIGHT) & ~<uint8_t>(KEY_MISSED | KEY_OFFERED)
            if _colour(table, key) != self.colour:
                table.flags[key] |= KEY_FRESH
            self.draft.keys.push_back(key)
            self.draft.versions.push_back(self._number_of(table, &references[at - 1], record))
            self.draft.codes.push_back(<uint8_t>record)
        if self.draft.keys.empty():
            unstage(memory, 1)
            return at
        header.count = <uint32_t>self.draft.keys.size()
        header.table = <uint16_t>table.table_id
        header.origin = <uint16_t>self.rank
        header.round_rank = <uint16_t>(peer if is_planted(MUTATION_RELEASES_MISCOUNTED) else counts_for)
        header.load = packed_load(self.owner.hand_over.load())
        header.window_slot = packed_clock(self.clock_ns)
        header.flags = self.remote.cuts.flags() | (FLAG_BEGINS if counts_for == peer and self.open_records[peer] == 0 else 0)
        self.open_records[counts_for] += header.count
        self.records_in_flight += header.count
        self.records += header.count
        if counts_for == peer:
            self.asked_bytes[peer] += header.count * table.stored_bytes
        sent_bytes[0] += header.rows_bytes
        self.draft.send(peer, MSG_ROUND, table, &header, memory, False)
        return at

    cdef uint32_t _number_of(self, TableState* table, const KeyRef* reference, int record) noexcept nogil:
        """What stands for a version in a record."""
        cdef int32_t ticks
        if record & (RECORD_HOLDS | RECORD_WEIGHTS):
            return table.replicas[slot_of(table, reference.key)].seen_version & ~<uint32_t>STATE_LAGS
        ticks = <int32_t>(reference.tick - tick_of(self.journal.now_ns))
        if reference.tick == 0 or ticks <= 0 or record & ~<int>RECORD_ONCE:
            return 0
        return <uint32_t>min(<int64_t>ticks * TICK_US, <int64_t>MOST_AHEAD_US)

    cdef int _next_record(self, TableState* table, uint32_t key, char* row) noexcept nogil:
        """What to tell the owner of this key now (what was written goes to ``row``); negative: nothing."""
        cdef int written, holds
        if key_state(table, key) == STATE_REQUESTED:
            if table.records[key].intent_refs == 0 and not self.remote.parking.any(table, key):
                change_state(table, key, STATE_ABSENT)      # over before it was asked for
                self.intents_withdrawn += 1
                note_decision(self.journal, table, key, EVENT_WITHDRAWN, known_owner(table, key))
                table.slots_promised -= 1
                return -1
            return RECORD_ONCE if table.flags[key] & KEY_ONCE else 0
        if key_state(table, key) != STATE_REPLICA:
            return -1
        written = take_pending(table, key, row)
        if table.records[key].intent_refs == 0 or self._sheds(table):
            return RECORD_LEAVE | (
                written & ~<int>(RECORD_STEP | RECORD_GRADIENT) if is_planted(MUTATION_KEPT_LOST) else written)
        if written == 0 and not table.flags[key] & (KEY_MISSED | KEY_OFFERED):
            return -1
        if not is_for_one_use(table, key):
            table.flags[key] &= ~<uint8_t>KEY_ONCE           # the owner hears of it with this record
        # What a missed refresh brought is to be sent again, whole, though its version may be known.
        holds = 0 if table.flags[key] & KEY_MISSED or self.cutting else self._what_it_has(table, key)
        return holds | written | (RECORD_ONCE if table.flags[key] & KEY_ONCE else 0)

    cdef bint _sheds(self, const TableState* table) noexcept nogil:
        if self.shed_bytes <= 0:
            return False
        self.shed_bytes -= slot_bytes(table)
        return True

    cdef inline int _what_it_has(self, const TableState* table, uint32_t key) noexcept nogil:
        """Of a replica that missed nothing."""
        cdef bint lags = (table.replicas[slot_of(table, key)].seen_version & STATE_LAGS) != 0
        return (0 if lags and not is_planted(MUTATION_LAG_UNTOLD) else RECORD_HOLDS) | (
            RECORD_WEIGHTS if takes_weights(table) else 0)

    # -- taking answers ------------------------------------------------------------------------------------------------

    cdef bint close_records(self, const RoundHeader* header) noexcept nogil:
        cdef int64_t took_ns
        self.open_records[header.round_rank] -= header.count
        self.records_in_flight -= header.count
        if self.open_records[header.round_rank] > 0 or header.round_rank >= self.todo.size():
            return False
        self.asked_bytes[header.round_rank] = 0
        took_ns = self.transport.now_ns() - self.began_ns[header.round_rank]
        self.round_ns += (took_ns - self.round_ns) // 8
        self.longest_round_ns = <int64_t>longest_of_last(self.longest_round_ns, took_ns)
        return True

    cdef void take_answer(
            self, uint32_t owner, TableState* table, const RoundHeader* header, const RoundBody* body) noexcept nogil:
        cdef uint32_t i
        cdef uint8_t apart
        cdef const char* row = body.rows
        cdef const uint16_t* others = body.holders if header.flags & FLAG_HOLDERS else NULL
        for i in range(header.count):
            apart = self._hear_of_snapshot(table, header.flags, body.codes[i])
            prefetch_rows(table, body.keys, i, header.count)
            table.flags[body.keys[i]] &= ~<uint8_t>KEY_IN_FLIGHT
            if body.codes[i] == RESULT_DROPPED:
                learn_owner(table, body.keys[i], owner, body.epochs[i])
                self._take_drop(table, body.keys[i])
                continue
            if body.codes[i] == RESULT_SAME or body.codes[i] == RESULT_MOVED_SAME:
                self._take_same(
                    owner, table, body.keys[i], body.codes[i] == RESULT_MOVED_SAME, body.epochs[i], body.versions[i])
                continue
            if is_moved(body.codes[i]):
                self._take_ownership(
                    owner, table, body.keys[i], row, others, body.epochs[i], body.versions[i], apart)
                others += 1 + others[0] if others != NULL else 0
            else:
                self._take_row(owner, table, body.keys[i], row, body.codes[i], body.epochs[i], body.versions[i])
            row += result_bytes(table, body.codes[i])
        self.unparking.serve(table, header.count, body.keys)
        for i in range(header.count):
            self._look_again(table, body.keys[i])
        self.remote.step_waiting()

    cdef inline uint8_t _hear_of_snapshot(self, TableState* table, uint8_t flags, uint8_t code) noexcept nogil:
        """What a result says of the row besides, if that is about the checkpoint this rank knows of."""
        cdef uint8_t apart = code & <uint8_t>(RESULT_KEPT | RESULT_SAVED)
        if apart == 0:
            return 0
        self.remote.cuts.hear(table, flags)
        return apart if table.snapshot != NULL and is_of(table.snapshot, flags) else <uint8_t>0

    cdef void _take_drop(self, TableState* table, uint32_t key) noexcept nogil:
        if key_state(table, key) != STATE_REPLICA:
            return
        if not drop_replica(table, key):
            # A write came in since the record was sent: the key goes round once more. Its owner counts this rank as a holder
            # no more, and would send no news: if the key is intended again, the owner is asked for the row as for a new one.
            table.flags[key] |= KEY_MISSED
            return
        self.replicas_dropped += 1
        self.replicas_taken -= 1
        note_decision(self.journal, table, key, EVENT_DROPPED, known_owner(table, key))

    cdef void _take_same(
            self, uint32_t owner, TableState* table, uint32_t key, bint moved, uint32_t epoch,
            uint32_t version) noexcept nogil:
        """This replica's row is the owner's of that version already, but for the order in which deltas were added."""
        if moved:
            table.flags[key] = (table.flags[key] & ~<uint8_t>KEY_ONCE) | KEY_USED
            promote_in_place(table, key, version)
            self.replicas_promoted += 1
            self.replicas_taken -= 1
            self.relocations_in += 1
            note_decision(self.journal, table, key, EVENT_MOVED_IN, owner, epoch)
        else:
            self._note_seen(table, key, version | (table.replicas[slot_of(table, key)].seen_version & STATE_LAGS))
        learn_owner(table, key, self.rank if moved else owner, epoch)

    cdef void _take_row(
            self, uint32_t owner, TableState* table, uint32_t key, const char* row, uint8_t result, uint32_t epoch,
            uint32_t version) noexcept nogil:
        """The row of a key that was asked for, or newer news of a replica, whole or in part."""
        cdef bint lags = is_weights(result) or is_fetched(result)
        if key_state(table, key) == STATE_REQUESTED:
            table.slots_promised -= 1
            _fill_row(table, bind_slot(table, key), row, result)
            publish(table, key, STATE_REPLICA)
            note_decision(self.journal, table, key, EVENT_GRANTED, owner, epoch)
            self.replicas_set_up += 1
            self.replicas_taken += 1
            if table.flags[key] & KEY_ONCE:
                self.replicas_fetched += 1
                self.fetched.push_back(_reference(table, key, tick_of(self.journal.now_ns)))
            self._note_seen(table, key, version | (STATE_LAGS if lags else 0))
        elif not is_later(table.replicas[slot_of(table, key)].seen_version, version):
            if lags:
                refresh_weights(table, key, row)
            else:
                lags = refresh_replica(table, key, row)
            note_traced(self.journal, table, key, EVENT_REFRESHED, owner, version)
            self._note_seen(table, key, version | (STATE_LAGS if lags else 0))
        learn_owner(table, key, owner, epoch)

    cdef inline void _note_seen(self, TableState* table, uint32_t key, uint32_t version) noexcept nogil:
        cdef ReplicaRecord* replica = &table.replicas[slot_of(table, key)]
        replica.seen_version = version
        store_relaxed(&replica.seen_tick, tick_of(self.journal.now_ns))

    cdef void _take_ownership(
            self, uint32_t owner, TableState* table, uint32_t key, const char* row, const uint16_t* others, uint32_t epoch,
            uint32_t version, uint8_t apart) noexcept nogil:
        """The row of a key that is owned here from now on. others: how many hold it, and who; NULL: nobody."""
        cdef bint shared = others != NULL and others[0] > 0
        cdef bint wrote = False
        if key_state(table, key) == STATE_REQUESTED:
            table.slots_promised -= 1
            copy_row(row_of(table, bind_slot(table, key)), row, table.stored_bytes)
            if table.snapshot != NULL:
                arrive_apart(table, key, apart, row + table.stored_bytes)
            publish_owned(table, key, version, shared)
        else:
            wrote = promote_replica(table, key, row, version, shared, apart)
            self.replicas_promoted += 1
            self.replicas_taken -= 1
        table.flags[key] = (table.flags[key] & ~<uint8_t>KEY_ONCE) | KEY_USED
        self.relocations_in += 1
        note_decision(self.journal, table, key, EVENT_MOVED_IN, owner, epoch)
        learn_owner(table, key, self.rank, epoch)
        if shared:
            self.owner.hand_over.take(table, key, others, wrote)

    cdef void _look_again(self, TableState* table, uint32_t key) noexcept nogil:
        """After an answer: goes on with what happened while the key's record was in flight."""
        if self._needs_record(table, key):
            self._stay_busy(table, key)
            return
        self._become_idle(table, key)
        if key_state(table, key) == STATE_ABSENT and table.records[key].intent_refs > 0:
            self.want(table, key, table.flags[key] & KEY_ONCE and table.records[key].intent_refs == 1, 0)
        elif key_state(table, key) == STATE_OWNED and table.records[key].intent_refs == 0:
            self.hints.offer_to_last_holder(table, key)

    cdef bint _needs_record(self, TableState* table, uint32_t key) noexcept nogil:
        if key_state(table, key) != STATE_REPLICA:
            return False
        return (table.records[key].intent_refs == 0 or table.flags[key] & (KEY_MISSED | KEY_OFFERED)
                or self._is_worth_sending(table, key))

    cdef bint _is_worth_sending(self, TableState* table, uint32_t key) noexcept nogil:
        """Of what is pending: anything, or with a sync_threshold enough of it; of a fetched replica nothing but for a sync."""
        if is_for_one_use(table, key) and not self.tells_all:
            return False
        if self.sync_threshold == 0 or self.tells_all:
            return has_pending(table, key)
        return pending_norm(table, key) >= self.sync_threshold

    # -- taking refreshes and offers -----------------------------------------------------------------------------------

    cdef void take_refresh(
            self, uint32_t owner, TableState* table, const RoundHeader* header, const RoundBody* body) noexcept nogil:
        cdef const char* row = body.rows
        cdef uint32_t i, key
        for i in range(header.count):
            prefetch_rows(table, body.keys, i, header.count)
            key = body.keys[i]
            if key_state(table, key) == STATE_REQUESTED or table.flags[key] & KEY_IN_FLIGHT:
                table.flags[key] |= KEY_MISSED
            elif key_state(table, key) == STATE_REPLICA:
                self._take_row(owner, table, key, row, body.codes[i], body.epochs[i], body.versions[i])
            row += result_bytes(table, body.codes[i])
        send_staged(
            self.transport, owner, MSG_REFRESHED, header, sizeof(RoundHeader), stage(self.transport, 0), 0)

    cdef void take_offers(self, TableState* table, const RoundHeader* header, const uint32_t* keys) noexcept nogil:
        cdef uint32_t i
        for i in range(header.count):
            prefetch_offers(table, keys, i, header.count)
            if key_state(table, keys[i]) == STATE_REPLICA:
                table.flags[keys[i]] |= KEY_OFFERED
                self.queue(table, keys[i])


cdef inline uint32_t _colour(const TableState* table, uint32_t key) noexcept nogil:
    return (table.flags[key] & KEY_COLOUR) != 0


cdef inline void _fill_row(TableState* table, int32_t slot, const char* row, uint8_t result) noexcept nogil:
    """Of a key that was asked for."""
    cdef size_t size_bytes = result_bytes(table, result)
    copy_row(row_of(table, slot), row, size_bytes)
    if is_fetched(result):
        lengthen_row(row_of(table, slot), table.row_items, table.optimiser)


cdef inline KeyRef _reference(const TableState* table, uint32_t key, uint32_t tick) noexcept nogil:
    cdef KeyRef reference
    reference.table = table.table_id
    reference.key = key
    reference.tick = tick
    return reference
