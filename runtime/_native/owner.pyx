"""The owner's side; ``owner.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memset
from libcpp.vector cimport vector

from intentpm.foundation.primitives cimport copy_row
from intentpm.runtime._native.cuts cimport snapshot_flags
from intentpm.runtime._native.directory cimport known_owner, learn_owner
from intentpm.runtime._native.draft cimport Draft
from intentpm.runtime._native.flags cimport KEY_USED
from intentpm.runtime._native.hand_over cimport HandOver
from intentpm.runtime._native.hints cimport WELL_KNOWN_RANKS, Hints, told_of_moves
from intentpm.runtime._native.holders cimport (
    HOLDING_NEWS, HOLDING_ONCE, HOLDING_ROUNDED, add_holding, holding_of, others_hold, remove_holding, rest_until,
)
from intentpm.runtime._native.journal cimport (
    EVENT_DELTA_TAKEN, EVENT_FORWARDED, EVENT_HOLDER_ADDED, EVENT_HOLDER_REMOVED, EVENT_MOVED_OUT, EVENT_PARKED, REASON_CHEAPER,
    REASON_LOAD, REASON_MODE, REASON_ONLY_INTENT, REASON_ONE_USE, REASON_OTHERS_HOLD, REASON_OWNER_INTENDS, Reason,
    note_decision, note_traced,
)
from intentpm.runtime._native.message_rows cimport (
    fetched_bytes, kept_bytes, once_written_bytes, result_bytes, takes_weights, written_bytes,
)
from intentpm.runtime._native.messages cimport (
    CUT_MASK, FLAG_FORWARDED, FLAG_HOLDERS, MSG_ANSWER, MSG_ROUND, RECORD_ADD, RECORD_GRADIENT, RECORD_HOLDS, RECORD_LEAVE,
    RECORD_ONCE, RECORD_SET, RECORD_STEP, RECORD_WEIGHTS, RECORD_WRITTEN, RESULT_DROPPED, RESULT_FETCHED, RESULT_MOVED,
    RESULT_MOVED_SAME, RESULT_ROW, RESULT_SAME, RESULT_WEIGHTS, RoundBody, RoundHeader,
)
from intentpm.runtime._native.mutations cimport (
    MUTATION_DELTAS_TWICE, MUTATION_HOLDINGS_KEPT, MUTATION_KEPT_TWICE, MUTATION_SAME_ALWAYS, MUTATION_STEPS_RECOUNTED,
    is_planted,
)
from intentpm.runtime._native.news cimport News
from intentpm.runtime._native.parking cimport ParkedRecord
from intentpm.runtime._native.policy cimport (
    MANAGE_ADAPTIVE, MANAGE_RELOCATE, NO_WAY, WAY_FETCH, WAY_RELOCATE, Situation, Way, cheapest, fixed_way, may_relocate,
    unpacked_load, weigh,
)
from intentpm.runtime._native.prefetching cimport prefetch_rows
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.row_optimiser cimport kept_steps, recount_steps, shorten_row
from intentpm.runtime._native.rows cimport apply_record, kept_of, mark_shared, read_row, version_of
from intentpm.runtime._native.slots cimport move_out
from intentpm.runtime._native.staging cimport PATIENT_NS, unstage
from intentpm.runtime._native.state cimport STATE_OWNED, next_version
from intentpm.runtime._native.table_state cimport Holding, TableState, key_state, prefetch_row

cdef enum:
    RECORDS_SMOOTHED = 1024
    LONGEST_AHEAD_NS = 2_000_000_000
    FAR_AHEAD_US = 50_000            # a first use: until then the owner may well use the key itself


cdef class Owner:
    def __init__(self, RemoteAccess remote not None, News news not None, Hints hints not None, management: int):
        self.transport = remote.transport
        self.parking = remote.parking
        self.journal = remote.journal
        self.cuts = remote.cuts
        self.news = news
        self.hints = hints
        self.draft = Draft(remote.transport)
        self.hand_over = HandOver(remote, news, management)
        self.rank = remote.transport.rank
        self.management = management
        # Where few hear of moves, the first who asks is not given what all are about to ask for.
        self.astray = 1.0 if remote.transport.size > WELL_KNOWN_RANKS else 0.0

    # -- answering -------------------------------------------------------------------------------------------------------

    cdef void serve_round(self, TableState* table, const RoundHeader* asked, const RoundBody* body) noexcept nogil:
        cdef RoundHeader header = asked[0]
        cdef uint32_t i, rows, at = 0
        cdef const char* written
        cdef char* memory
        self.is_new = self.cuts.is_new(table, asked.flags)       # the save may begin here
        # A row that moves while its table is being saved may take a second one along.
        rows = asked.count if table.snapshot == NULL else 2 * asked.count
        memory = self.draft.begin(asked.count, rows * table.stored_bytes, 3, asked.count + self.hand_over.room)
        if memory == NULL:
            return
        header.flags = snapshot_flags(table)
        header.rows_bytes = 0
        self._measure(asked)
        self.left_over.clear()
        self.rows_at.clear()
        self.hand_over.begin(unpacked_load(asked.load))
        for i in range(asked.count):
            prefetch_rows(table, body.keys, i, asked.count)
            written = body.rows + at
            if known_owner(table, body.keys[i]) != self.rank:
                self.left_over.push_back(i)
                self.rows_at.push_back(at)
            else:
                self._decide(
                    table, asked.origin, body.keys[i], body.codes[i], body.versions[i], written, memory, &header)
            at += <uint32_t>written_bytes(table, body.codes[i])
        header.count = <uint32_t>self.draft.keys.size()
        if self.hand_over.any:
            header.flags |= FLAG_HOLDERS
            self.news.send_last(table)
        if header.count > 0:
            self.draft.send(asked.origin, MSG_ANSWER, table, &header, memory, True, _needed_in_ns(asked, body))
        else:
            unstage(memory, 1)
        if not self.left_over.empty():
            self._pass_on(table, asked, body)

    cdef void serve_parked(self, TableState* table, vector[ParkedRecord]& records) noexcept nogil:
        cdef size_t first = 0
        while first < records.size():
            first = self._serve_alike(table, records, first)

    cdef size_t _serve_alike(self, TableState* table, vector[ParkedRecord]& records, size_t first) noexcept nogil:
        """Those that came as the first did, which are put next to it, as one round; returns the first of the others."""
        cdef RoundHeader header = records[first].message.round
        cdef RoundBody body
        cdef ParkedRecord record
        cdef size_t i, size_bytes
        self.parked_keys.clear()
        self.parked_epochs.clear()
        self.parked_versions.clear()
        self.parked_codes.clear()
        self.parked_rows.clear()
        header.count = header.rows_bytes = 0
        header.flags = FLAG_FORWARDED | (header.flags & CUT_MASK)
        for i in range(first, records.size()):
            record = records[i]
            if not _came_alike(&record.message.round, &header):
                continue
            records[i] = records[first + header.count]
            records[first + header.count] = record
            size_bytes = written_bytes(table, record.message.record)
            self.parked_keys.push_back(record.key)
            self.parked_epochs.push_back(record.message.epoch)
            self.parked_versions.push_back(record.message.version)
            self.parked_codes.push_back(record.message.record)
            self.parked_rows.insert(self.parked_rows.end(), record.message.row, record.message.row + size_bytes)
            header.count += 1
            header.rows_bytes += <uint32_t>size_bytes
        body.rows = self.parked_rows.data()
        body.keys = self.parked_keys.data()
        body.epochs = self.parked_epochs.data()
        body.versions = self.parked_versions.data()
        body.codes = self.parked_codes.data()
        self.serve_round(table, &header, &body)
        return first + header.count

    cdef void _decide(
            self, TableState* table, uint32_t holder, uint32_t key, uint8_t record, uint32_t seen_version, const char* written,
            char* memory, RoundHeader* header) noexcept nogil:
        """One record for a key owned here: applies what was written and adds the result to the answer being built."""
        cdef char* row = memory + header.rows_bytes
        cdef uint8_t result, apart
        cdef uint32_t before, version = 0
        cdef bint holds = (record & RECORD_HOLDS) != 0          # the holder's row is of version ``seen_version``
        # Where the next rows will be copied: else the next exchange of a word waits for the copy before it.
        prefetch_row(row + 4 * table.stored_bytes, table.stored_bytes, True)
        if record & RECORD_WRITTEN:
            before = self._take_written(table, key, holder, record, written)
            holds = holds and (is_planted(MUTATION_SAME_ALWAYS) or _is_same(
                table, record, written, before == seen_version))
            seen_version = next_version(before)
        if record & RECORD_LEAVE:
            result = RESULT_DROPPED
            self._remove_holder(table, key, holder)
            if table.records[key].intent_refs == 0:
                self.hints.offer_to_last_holder(table, key)
        elif self._choose(table, key, holder, record, seen_version) == WAY_RELOCATE:
            version = self._move_to(table, key, holder, row, &apart)
            result = RESULT_MOVED_SAME if holds and version == seen_version and table.snapshot == NULL else RESULT_MOVED
            if result == RESULT_MOVED:
                self.draft.holders.push_back(0)
            result |= apart
        elif not record & RECORD_ONCE and self.hand_over.is_due(table, key, holder):
            version = self.hand_over.give(table, key, holder, row, self.draft, &apart)
            self._leave_to(table, key, holder, REASON_LOAD)
            result = RESULT_MOVED | apart
        elif holds and record & RECORD_WRITTEN:
            result = RESULT_SAME
            version = seen_version
            self.with_row -= self.with_row / RECORDS_SMOOTHED
            if not record & RECORD_ONCE:
                self._keep_holder(table, key, holder)
            if record & (RECORD_ADD | RECORD_STEP) and not table.adds_exactly:
                self.news.note_rounded(table, key, holder)
            if is_planted(MUTATION_SAME_ALWAYS):
                self._add_holder(table, key, holder, 0, 0)   # forgets its news
        elif not record & RECORD_WRITTEN and self._has_row(table, key, holder, record, seen_version):
            result = RESULT_SAME
            version = seen_version
            if not record & RECORD_ONCE:
                self._keep_holder(table, key, holder)
            if not record & RECORD_HOLDS:
                self.news.note_lagging(table, key, holder)
        else:
            result = RESULT_ROW
            if record & (RECORD_ADD | RECORD_STEP):
                self.with_row += (1 - self.with_row) / RECORDS_SMOOTHED
            if takes_weights(table) and not self.news.is_flushing(holder):
                if record & RECORD_WEIGHTS:
                    result = RESULT_WEIGHTS
                elif record == RECORD_ONCE and holding_of(table, key, holder) == NULL:
                    result = RESULT_FETCHED      # not where it missed a refresh: that may have been a whole row
            self._add_holder(table, key, holder, record, seen_version)
            version = self._copy_row(table, key, holder, result, row)
        header.rows_bytes += <uint32_t>result_bytes(table, result)
        self.rows_spared += result == RESULT_SAME or result == RESULT_MOVED_SAME
        self.draft.keys.push_back(key)
        self.draft.epochs.push_back(table.records[key].epoch)
        self.draft.versions.push_back(version)
        self.draft.codes.push_back(result)

    cdef inline bint _has_row(
            self, TableState* table, uint32_t key, uint32_t holder, uint8_t record, uint32_t seen_version) noexcept nogil:
        """Whether the holder, which asks anew, has the newest row, or its weights."""
        cdef uint8_t has = RECORD_WEIGHTS if takes_weights(table) and not self.news.is_flushing(holder) else RECORD_HOLDS
        return record & has != 0 and holding_of(table, key, holder) != NULL and version_of(table, key) == seen_version

    cdef uint32_t _copy_row(self, TableState* table, uint32_t key, uint32_t holder, uint8_t result, char* row) noexcept nogil:
        """For a replica; returns its version."""
        cdef uint32_t version = read_row(
            table, key, row, table.weights_bytes if result == RESULT_WEIGHTS else table.stored_bytes)
        if result == RESULT_FETCHED:
            shorten_row(row, table.row_items, table.optimiser)
        if result != RESULT_ROW:
            self.news.note_lagging(table, key, holder)
        return version

    cdef inline uint32_t _take_written(
            self, TableState* table, uint32_t key, uint32_t holder, uint8_t record, const char* written) noexcept nogil:
        """Returns the row's version before."""
        cdef uint32_t before = apply_record(table, key, record, written, self.is_new)
        if is_planted(MUTATION_DELTAS_TWICE):
            apply_record(table, key, record & (RECORD_ADD | RECORD_SET), written, self.is_new)
        if is_planted(MUTATION_KEPT_TWICE) and record & RECORD_STEP:
            apply_record(table, key, record & (RECORD_STEP | RECORD_GRADIENT), kept_of(table, record, written), self.is_new)
        note_traced(self.journal, table, key, EVENT_DELTA_TAKEN, holder)
        self.news.spread(table, key, holder, self.journal.now_ns)
        return before

    cdef Way _choose(
            self, TableState* table, uint32_t key, uint32_t holder, uint8_t record, uint32_t first_use_us) noexcept nogil:
        """How the holder shall use the key; ``costs`` is what was compared. first_use_us: of a key that is asked for."""
        cdef Situation situation
        cdef Way way
        situation.row_bytes = table.stored_bytes
        situation.fetched_bytes = fetched_bytes(table)
        situation.written_bytes = once_written_bytes(table)
        situation.news_bytes = table.weights_bytes if takes_weights(table) else table.stored_bytes
        situation.owner_intends = table.records[key].intent_refs > 0
        situation.others_hold = others_hold(table, key, holder)
        situation.once = (record & RECORD_ONCE) != 0
        if self.management != MANAGE_ADAPTIVE:
            memset(self.costs, NO_WAY, sizeof(self.costs))
            return fixed_way(self.management, &situation)
        situation.told = told_of_moves(table.size)
        situation.astray = self.astray
        situation.with_row = self.with_row
        situation.stall_bytes = self.stall_bytes
        # A holder that has written asks for nothing. One that answers an offer is meant to have the key.
        situation.returns = situation.once and table.flags[key] & KEY_USED and (
            record & RECORD_WRITTEN or record == RECORD_ONCE and first_use_us >= FAR_AHEAD_US)
        weigh(&situation, self.costs)
        way = cheapest(self.costs)
        if way == WAY_FETCH and self.costs[<int>WAY_RELOCATE] != NO_WAY:
            table.flags[key] &= ~<uint8_t>KEY_USED   # lent; next time it moves, unless it is used here until then
        return way

    cdef void _measure(self, const RoundHeader* asked) noexcept nogil:
        """A ROUND has come that is about to be answered."""
        cdef double share = min(1.0, <double>asked.count / RECORDS_SMOOTHED)
        self.astray += share * (((asked.flags & FLAG_FORWARDED) != 0) - self.astray)
        if self.began_ns == 0:
            self.began_ns = self.journal.now_ns
            self.began_bytes = self.transport.sent_bytes
        self.stall_bytes = self.news.round_trip_ns() * (
            <double>(self.transport.sent_bytes - self.began_bytes) / max(1.0, <double>(self.journal.now_ns - self.began_ns)))

    cdef Reason _reason_to_lend(self, TableState* table, uint32_t key, uint32_t rank, uint8_t record) noexcept nogil:
        """Why ``_choose`` did not relocate the key to the rank."""
        cdef bint owner_intends = table.records[key].intent_refs > 0
        if not may_relocate(self.management):
            return REASON_MODE
        if not owner_intends and not others_hold(table, key, rank):
            return REASON_CHEAPER
        if record & RECORD_ONCE:
            return REASON_ONE_USE
        return REASON_OWNER_INTENDS if owner_intends else REASON_OTHERS_HOLD

    cdef uint32_t _move_to(
            self, TableState* table, uint32_t key, uint32_t holder, char* row, uint8_t* apart) noexcept nogil:
        """Gives the key away: the row goes into the answer, a forward pointer stays, the home rank is told."""
        cdef uint32_t version
        self._remove_holder(table, key, holder)
        version = move_out(table, key, row, apart)
        self._leave_to(table, key, holder, REASON_MODE if self.management == MANAGE_RELOCATE else REASON_ONLY_INTENT)
        return version

    cdef void _leave_to(self, TableState* table, uint32_t key, uint32_t holder, Reason reason) noexcept nogil:
        """The key is the holder's from now on; its row is in the answer being built."""
        learn_owner(table, key, holder, table.records[key].epoch + 1)
        table.flags[key] &= ~<uint8_t>KEY_USED
        self.relocations_out += 1
        note_decision(self.journal, table, key, EVENT_MOVED_OUT, holder, table.records[key].epoch, reason, self.costs)
        self.hints.note_move(table, key, holder)

    # -- who holds -------------------------------------------------------------------------------------------------------

    cdef void _add_holder(
            self, TableState* table, uint32_t key, uint32_t rank, uint8_t record, uint32_t first_use_us) noexcept nogil:
        """It holds a replica from now on, and is being sent the row."""
        cdef Holding* holding = holding_of(table, key, rank)
        if holding == NULL:
            holding = add_holding(table, key, rank)
            if holding == NULL:
                self.transport.out_of_memory = True
                return
            mark_shared(table, key, True)       # before the row is read: later writes are marked dirty
            note_decision(
                self.journal, table, key, EVENT_HOLDER_ADDED, rank, table.records[key].epoch,
                self._reason_to_lend(table, key, rank, record), self.costs)
        holding.flags &= <uint8_t>~(HOLDING_NEWS | HOLDING_ROUNDED | HOLDING_ONCE)
        holding.flags |= HOLDING_ONCE if record & RECORD_ONCE else 0
        holding.rests_until = 0
        if record & ~<int>RECORD_ONCE == 0 and first_use_us > 0:
            holding.rests_until = rest_until(self.journal.now_ns, 1000 * <int64_t>first_use_us)

    cdef void _keep_holder(self, TableState* table, uint32_t key, uint32_t rank) noexcept nogil:
        """It goes on to hold its replica, whatever it was asked for first."""
        cdef Holding* holding = holding_of(table, key, rank)
        if holding != NULL:
            holding.flags &= <uint8_t>~HOLDING_ONCE
            holding.rests_until = 0

    cdef void _remove_holder(self, TableState* table, uint32_t key, uint32_t rank) noexcept nogil:
        if holding_of(table, key, rank) == NULL:
            return
        note_decision(self.journal, table, key, EVENT_HOLDER_REMOVED, rank, table.records[key].epoch)
        if remove_holding(table, key, rank):
            mark_shared(table, key, False)

    cdef void forget_holder(self, TableState* table, uint32_t holder, const uint8_t* holds) noexcept nogil:
        cdef int64_t key
        if table.holdings_used == 0 or is_planted(MUTATION_HOLDINGS_KEPT):
            return
        for key in range(table.num_keys):
            if key_state(table, key) == STATE_OWNED and (holds == NULL or not holds[key]):
                self._remove_holder(table, <uint32_t>key, holder)

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
                self._park(table, asked, body, i, self.rows_at[n])
            else:
                numbers.push_back(i)
                rows.push_back(self.rows_at[n])
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
            self, TableState* table, const RoundHeader* asked, const RoundBody* body, uint32_t i, uint32_t at) noexcept nogil:
        note_traced(self.journal, table, body.keys[i], EVENT_PARKED, asked.origin)
        if not self.parking.park_record(
                table, body.keys[i], asked, body.codes[i], body.epochs[i], body.versions[i],
                body.rows + at):
            self.transport.out_of_memory = True

    cdef void _forward(
            self, TableState* table, uint32_t owner, const RoundHeader* asked, const RoundBody* body,
            const vector[uint32_t]& numbers, const vector[uint32_t]& rows) noexcept nogil:
        cdef RoundHeader header = asked[0]
        cdef size_t n, size_bytes
        cdef uint32_t i
        cdef char* memory = self.draft.begin(numbers.size(), asked.rows_bytes, 3)
        if memory == NULL:
            return
        header.hops += 1
        header.flags = FLAG_FORWARDED | (asked.flags & CUT_MASK)
        header.rows_bytes = 0
        for n in range(numbers.size()):
            i = numbers[n]
            if known_owner(table, body.keys[i]) != owner:
                continue
            size_bytes = written_bytes(table, body.codes[i])
            if size_bytes > 0:
                copy_row(memory + header.rows_bytes, body.rows + rows[n], size_bytes)
                header.rows_bytes += <uint32_t>size_bytes
            if is_planted(MUTATION_STEPS_RECOUNTED) and body.codes[i] & RECORD_STEP and not body.codes[i] & RECORD_GRADIENT:
                recount_steps(memory + header.rows_bytes - kept_bytes(table, body.codes[i]), table.optimiser)
            note_traced(self.journal, table, body.keys[i], EVENT_FORWARDED, owner)
            self.draft.keys.push_back(body.keys[i])
            self.draft.epochs.push_back(table.records[body.keys[i]].epoch)
            self.draft.versions.push_back(body.versions[i])
            self.draft.codes.push_back(body.codes[i])
        header.count = <uint32_t>self.draft.keys.size()
        self.draft.send(owner, MSG_ROUND, table, &header, memory, True)


cdef inline bint _came_alike(const RoundHeader* one, const RoundHeader* other) noexcept nogil:
    return one.origin == other.origin and one.round_rank == other.round_rank and (one.flags ^ other.flags) & CUT_MASK == 0


cdef int64_t _needed_in_ns(const RoundHeader* asked, const RoundBody* body) noexcept nogil:
    """Half of the time until the first of the rows that were asked for is used, which is an estimate: a row that comes late has
    its rank wait for all that is on the way before it. What answers news may wait."""
    cdef uint32_t i, soonest_us = <uint32_t>(LONGEST_AHEAD_NS // 1000)
    if asked.rows_bytes > 0:
        return PATIENT_NS
    for i in range(asked.count):
        soonest_us = min(soonest_us, body.versions[i])       # of such a record: in how many us, Holder._number_of
    return 500 * <int64_t>soonest_us


cdef inline bint _is_same(const TableState* table, uint8_t record, const char* written, bint alone) noexcept nogil:
    """The holder's row, with what it wrote, is the owner's but for rounding. alone: nobody else has written."""
    if table.optimiser == NULL:
        return alone or (record & RECORD_SET) != 0
    if not record & RECORD_STEP:
        return alone
    # The owner takes what was pushed or set first, and then the steps, in whatever order the holder did.
    if record & (RECORD_ADD | RECORD_SET) and table.optimiser.order_matters:
        return False
    return alone and (
        table.optimiser.blocks_are_steps or (record & RECORD_GRADIENT) != 0
        or kept_steps(kept_of(table, record, written), table.optimiser) <= 1)
