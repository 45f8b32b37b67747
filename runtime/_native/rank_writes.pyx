"""Own writes on their way to others; ``rank_writes.pxd`` is the contract."""

from libc.stdint cimport int32_t, int64_t, uint32_t

from intentpm.foundation.primitives cimport fence_seq_cst, load_relaxed, load_relaxed_i32, store_release
from intentpm.runtime._native.fetched cimport is_for_one_use
from intentpm.runtime._native.holder cimport Holder
from intentpm.runtime._native.holders cimport ns_since, tick_of
from intentpm.runtime._native.intents cimport NEVER
from intentpm.runtime._native.mutations cimport MUTATION_GATHERED_KEPT, is_planted
from intentpm.runtime._native.news cimport News
from intentpm.runtime._native.policy cimport MANAGE_ADAPTIVE
from intentpm.runtime._native.prefetching cimport prefetch_dirty
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.state cimport STATE_OWNED, STATE_REPLICA, KeyRef, KeyState
from intentpm.runtime._native.dirty_stack cimport forget_dirty, is_dirty, take_dirty
from intentpm.runtime._native.replicas cimport has_pending, pending_norm
from intentpm.runtime._native.table_state cimport TableState, key_state
from intentpm.runtime._native.timing cimport gathering_ns


cdef class RankWrites:
    def __init__(self, RemoteAccess remote not None, Holder holder not None, News news not None, management: int):
        self.remote = remote
        self.holder = holder
        self.news = news
        self.rank = remote.transport.rank
        self.gathers = management == MANAGE_ADAPTIVE

    cdef int64_t collect(self, int64_t now_ns, bint at_once) noexcept nogil:
        cdef uint32_t t
        cdef int64_t written_ns
        cdef bint withheld = at_once and self.holder.sync_threshold > 0      # may be there
        cdef bint dirty = withheld or self._any()
        if not dirty and load_relaxed(&self.noted):
            # Collected before it was noted (by a sync). Were the note left, the next writer would take it for its own.
            self._expect()
            dirty = self._any()
        if not dirty:
            return self._tell_gathered(now_ns, at_once)
        if self.since_ns == 0:
            self.since_ns = now_ns
        if not at_once and now_ns < self.collected_ns + self.news.sync_interval_ns:
            return min(self.collected_ns + self.news.sync_interval_ns, self._tell_gathered(now_ns, False))
        self.collected_ns = now_ns
        written_ns = self.since_ns
        self.since_ns = 0
        self._expect()
        if self.gathers and not self.gathering_set:
            self.gathering_ns = gathering_ns(self.holder.longest_round_ns, self.holder.bearable_gathering_ns)
        for t in range(self.remote.table_count):
            self._sort(self.remote.tables[t], written_ns, at_once)
            if withheld:
                self._queue_withheld(self.remote.tables[t])
        return self._tell_gathered(now_ns, at_once)

    cdef int64_t _tell_gathered(self, int64_t now_ns, bint at_once) noexcept nogil:
        """Those that are due. Returns when the next one is."""
        cdef KeyRef first
        cdef int64_t waited_ns
        while not self.gathered.empty():
            first = self.gathered.front()
            waited_ns = ns_since(first.tick, now_ns)
            if (not at_once or is_planted(MUTATION_GATHERED_KEPT)) and waited_ns < self.gathering_ns:
                return now_ns + self.gathering_ns - waited_ns
            self.gathered.pop_front()
            self._tell(self.remote.tables[first.table], first.key, now_ns - waited_ns, at_once)
        return NEVER

    cdef inline bint _any(self) noexcept nogil:
        cdef uint32_t t
        for t in range(self.remote.table_count):
            if is_dirty(self.remote.tables[t]):
                return True
        return False

    cdef void _expect(self) noexcept nogil:
        """From now on the next writer tells the engine. To be called before the stacks are looked at or taken."""
        store_release(&self.noted, 0)
        fence_seq_cst()

    cdef void _sort(self, TableState* table, int64_t written_ns, bint at_once) noexcept nogil:
        cdef bint gathers = self.gathering_ns > 0 and not at_once
        cdef KeyRef reference
        cdef size_t i
        reference.table = table.table_id
        reference.tick = tick_of(written_ns)
        take_dirty(table, self.keys)
        for i in range(self.keys.size()):
            prefetch_dirty(table, self.keys.data(), i, self.keys.size())
            if gathers and self._may_wait(table, self.keys[i]):
                reference.key = self.keys[i]
                self.gathered.push_back(reference)
            else:
                self._tell(table, self.keys[i], written_ns, at_once)

    cdef inline bint _may_wait(self, const TableState* table, uint32_t key) noexcept nogil:
        return key_state(table, key) == STATE_REPLICA and table.records[key].intent_refs > 0 and not is_for_one_use(table, key)

    cdef void _tell(self, TableState* table, uint32_t key, int64_t written_ns, bint at_once) noexcept nogil:
        cdef KeyState state
        forget_dirty(table, key)
        state = key_state(table, key)
        if state == STATE_REPLICA:
            if is_for_one_use(table, key) and not at_once:
                return                           # it goes with the release; Holder.fetched remembers it
            if at_once or self.holder.sync_threshold == 0 or pending_norm(table, key) >= self.holder.sync_threshold:
                self.holder.queue(table, key)
        elif state == STATE_OWNED:
            self.news.spread(table, key, self.rank, written_ns)

    cdef void _queue_withheld(self, TableState* table) noexcept nogil:
        """Deltas below the threshold are not collected but by a wait_sync: it looks at every slot."""
        cdef int64_t slot
        cdef int32_t key
        for slot in range(table.slots_touched):
            key = load_relaxed_i32(&table.key_of[slot])
            if key >= 0 and key_state(table, key) == STATE_REPLICA and has_pending(table, key):
                self.holder.queue(table, <uint32_t>key)
