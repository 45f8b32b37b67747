"""Intents of this rank; ``rank_intents.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint32_t

from intentpm.foundation.primitives cimport store_relaxed_u16
from intentpm.runtime._native.clock_timing cimport ClockTimer, clock_seen, clock_waits, clocks_asked_for
from intentpm.runtime._native.flags cimport KEY_ONCE, KEY_USED
from intentpm.runtime._native.hints cimport Hints
from intentpm.runtime._native.holder cimport Holder
from intentpm.runtime._native.holders cimport tick_of
from intentpm.runtime._native.intents cimport NEVER, Intent, IntentQueue
from intentpm.runtime._native.journal cimport EVENT_INTENT_OFF, EVENT_INTENT_ON, note_traced
from intentpm.runtime._native.mutations cimport MUTATION_FETCHED_KEPT, is_planted
from intentpm.runtime._native.policy cimport MANAGE_ADAPTIVE, MANAGE_FULL_REPLICATION, uses_intents
from intentpm.runtime._native.prefetching cimport prefetch_intended, prefetch_released
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.state cimport STATE_ABSENT, STATE_OWNED, STATE_REPLICA, WORD_SHARED, state_of
from intentpm.runtime._native.store cimport Table
from intentpm.runtime._native.table_state cimport (
    WINDOW_DUE, WINDOW_OVER, WINDOW_SIGNALLED, WINDOW_WITHDRAWN, KeyRecord, TableState, WindowEvent, is_here, key_state,
    word_of,
)
from intentpm.runtime._native.timing cimport bearable_gathering_ns

cdef enum:
    MOST_CLOCKS_AHEAD = 1 << 20
    ALL_INTENTS = 0xffff             # intent_refs is saturated: how many there are is not known, so the last never ends


cdef class RankIntents:
    def __init__(self, RemoteAccess remote not None, Holder holder not None, Hints hints not None, management: int):
        self.remote = remote
        self.journal = remote.journal
        self.holder = holder
        self.hints = hints
        self.rank = remote.transport.rank
        self.management = management
        self.managed = uses_intents(management) and remote.transport.size > 1
        self.queues = []

    # -- looking ---------------------------------------------------------------------------------------------------------

    cdef void _look_at_workers(self) noexcept nogil:
        cdef size_t i
        self.look_wanted = False
        cdef int64_t clock_ns = NEVER
        cdef int64_t bearable_ns = NEVER
        cdef ClockTimer* clocks
        for i in range(self.workers.size()):
            self._look_at(<IntentQueue>self.workers[i])
            clocks = &(<IntentQueue>self.workers[i]).clocks
            if clocks.clock_ns:
                clock_ns = min(clock_ns, clocks.clock_ns)
                bearable_ns = min(bearable_ns, bearable_gathering_ns(clocks.pace_ns, self.remote.transport.size - 1))
        self.holder.clock_ns = clock_ns if clock_ns < NEVER else 0
        self.holder.bearable_gathering_ns = bearable_ns if bearable_ns < NEVER else 0

    cdef void _look_at(self, IntentQueue queue) noexcept nogil:
        cdef Intent* intent
        queue.look_began(self.journal.now_ns)
        while True:
            self.collect(queue)
            clock_seen(&queue.clocks, queue.seen_clock, queue.horizon, self.journal.now_ns)
            intent = queue.next_due()
            while intent != NULL:
                self._begin(queue, intent)
                intent = queue.next_due()
            self._count_started(queue, queue.seen_clock)
            intent = queue.next_over()
            while intent != NULL:
                self._end(intent)
                queue.forget(intent)
                intent = queue.next_over()
            if queue.publish():
                break
        queue.look_ended(self.holder.is_busy())

    cdef void collect(self, IntentQueue queue) noexcept nogil:
        cdef Intent* intent
        queue.collect()
        for intent in queue.collected_now:
            self._tell_tier(intent, WINDOW_SIGNALLED, self._tick_of(queue, intent.start))
        queue.collected_now.clear()

    cdef inline void _tell_tier(self, const Intent* intent, WindowEvent event, uint32_t first_use) noexcept nogil:
        cdef TableState* table = self.remote.tables[intent.table_id]
        if table.tier != NULL and table.tier.note_window != NULL:
            table.tier.note_window(table, event, intent.keys, intent.count, first_use)

    # -- an intent is due ------------------------------------------------------------------------------------------------

    cdef void _begin(self, IntentQueue queue, Intent* intent) noexcept nogil:
        cdef uint32_t first_use = self._tick_of(queue, intent.start)
        self._tell_tier(intent, WINDOW_DUE, first_use)
        if not self.managed:
            return
        clocks_asked_for(&queue.clocks, self.journal.now_ns)
        self.intents_acted += intent.count
        if self._count(queue, intent, first_use):
            self.intents_in_time += intent.count
        else:
            queue.watch_start(intent)

    cdef bint _count(self, IntentQueue queue, Intent* intent, uint32_t first_use) noexcept nogil:
        """One more for each of its keys. True: all are here."""
        cdef TableState* table = self.remote.tables[intent.table_id]
        cdef bint once = self.management == MANAGE_ADAPTIVE and intent.end - intent.start <= 1
        cdef bint all_here = True
        cdef uint32_t i
        for i in range(intent.count):
            prefetch_intended(table, intent.keys, i, intent.count)
            all_here &= self._intend(table, intent.keys[i], once, first_use)
            if self.holder.may_ask_early() and intent.end > queue.seen_clock:
                self.holder.ask_early()
        return all_here

    cdef uint32_t _tick_of(self, IntentQueue queue, int64_t clock) noexcept nogil:
        """When the worker will have come to that clock."""
        cdef int64_t ahead = max(<int64_t>0, min(clock - queue.seen_clock, <int64_t>MOST_CLOCKS_AHEAD))
        return tick_of(self.journal.now_ns + ahead * queue.clocks.clock_ns)

    cdef inline bint _intend(self, TableState* table, uint32_t key, bint once, uint32_t first_use) noexcept nogil:
        """Counts one more active intent. once: for one clock. True: the key is here."""
        cdef KeyRecord* record = &table.records[key]
        if record.intent_refs < ALL_INTENTS:
            store_relaxed_u16(&record.intent_refs, record.intent_refs + 1)
        if self.journal.tracing and record.intent_refs == 1:
            note_traced(self.journal, table, key, EVENT_INTENT_ON, self.rank)
        if key_state(table, key) == STATE_ABSENT:
            self.holder.want(table, key, once and record.intent_refs == 1, first_use)
        elif key_state(table, key) == STATE_OWNED:
            table.flags[key] |= KEY_USED
        elif table.flags[key] & KEY_ONCE and not once:
            self.holder.want_longer(table, key)
        return is_here(table, key)

    cdef void replicate_all(self, Table table) noexcept nogil:
        cdef int64_t key
        if self.management != MANAGE_FULL_REPLICATION:
            return
        for key in range(table.state.num_keys):
            self._intend(table.state, <uint32_t>key, False, 0)

    # -- its window has started ------------------------------------------------------------------------------------------

    cdef void _count_started(self, IntentQueue queue, int64_t clock) noexcept nogil:
        cdef Intent* intent = queue.next_started(clock)
        cdef TableState* table
        cdef uint32_t i, missing
        while intent != NULL:
            table = self.remote.tables[intent.table_id]
            missing = 0
            for i in range(intent.count):
                missing += not is_here(table, intent.keys[i])
            self.intents_late += missing
            if missing:
                clock_waits(&queue.clocks)
            self.intents_in_time += intent.count - missing
            intent = queue.next_started(clock)

    # -- it is over ------------------------------------------------------------------------------------------------------

    cdef void _end(self, const Intent* intent) noexcept nogil:
        cdef TableState* table = self.remote.tables[intent.table_id]
        cdef uint32_t i, key
        cdef KeyRecord* record
        self._tell_tier(intent, WINDOW_OVER, 0)
        if not self.managed:
            return
        for i in range(intent.count):
            prefetch_released(table, intent.keys, i, intent.count)
            key = intent.keys[i]
            record = &table.records[key]
            if record.intent_refs == ALL_INTENTS:
                continue
            store_relaxed_u16(&record.intent_refs, record.intent_refs - 1)
            if record.intent_refs == 0:
                self._end_last(table, key)

    cdef inline void _end_last(self, TableState* table, uint32_t key) noexcept nogil:
        """No worker here intends the key any more."""
        cdef uint32_t word = word_of(table, key)
        if self.journal.tracing:
            note_traced(self.journal, table, key, EVENT_INTENT_OFF, self.rank)
        if state_of(word) == STATE_REPLICA:
            if not table.flags[key] & KEY_ONCE or not is_planted(MUTATION_FETCHED_KEPT):
                self.holder.release(table, key)
        elif word & WORD_SHARED:
            self.hints.offer_to_last_holder(table, key)

    # -- answers ---------------------------------------------------------------------------------------------------------

    cdef void answer_came(self) noexcept nogil:
        cdef size_t i
        for i in range(self.workers.size()):
            self._count_started(<IntentQueue>self.workers[i], (<IntentQueue>self.workers[i]).now())

    cdef void round_ended(self) noexcept nogil:
        cdef size_t i
        for i in range(self.workers.size()):
            (<IntentQueue>self.workers[i]).round_ended(self.journal.now_ns)
        self.look()

    # -- workers ---------------------------------------------------------------------------------------------------------

    cdef keep(self, IntentQueue queue):
        self.queues.append(queue)

    cdef void add_worker(self, IntentQueue queue) noexcept nogil:
        self.workers.push_back(<void*>queue)

    cdef void remove_worker(self, IntentQueue queue) noexcept nogil:
        cdef Intent* intent
        cdef size_t i, kept = 0
        self.collect(queue)
        intent = queue.next_waiting()
        while intent != NULL:
            self._tell_tier(intent, WINDOW_WITHDRAWN, 0)
            queue.forget(intent)
            intent = queue.next_waiting()
        intent = queue.next_active()
        while intent != NULL:
            self._end(intent)
            queue.forget(intent)
            intent = queue.next_active()
        self.keys_signalled += queue.keys_signalled
        for i in range(self.workers.size()):
            if self.workers[i] != <void*>queue:
                self.workers[kept] = self.workers[i]
                kept += 1
        self.workers.resize(kept)

    cdef release(self, IntentQueue queue):
        self.queues.remove(queue)
