"""Intents of one worker; ``intents.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc
from libcpp.pair cimport pair

from intentpm.foundation.primitives cimport (
    add_relaxed_i64, exchange_seq_cst_i64, load_acquire_i64, load_relaxed_i64, load_seq_cst_i64, store_release_i64,
)
from intentpm.runtime._native.budget cimport INTENT_BYTES
from intentpm.runtime._native.state cimport lock_word, unlock_unchanged
from intentpm.runtime._native.timing cimport farthest_clocks, timer_horizon_clocks, timer_init, timer_round_passed


cdef inline HeapEntry _entry(int64_t when, const Intent* intent) noexcept nogil:
    return HeapEntry(pair[int64_t, int64_t](-when, -intent.number), <size_t>intent)


cdef class IntentQueue:
    def __init__(self, immediate: bool, worker_id: int, others: int):
        """immediate: every intent is due when it is signalled (timing="immediate"). others: ranks beside this one."""
        self.worker_id = worker_id
        self.others = others
        self.immediate = immediate
        self.round_clock = -1
        self.look_by_clock = NEVER
        timer_init(&self.timer, others)
        self.publish()

    def __dealloc__(self):
        cdef Intent* intent
        for intent in self.incoming:
            free(intent)
        while not self.waiting.empty():
            free(<Intent*>self.waiting.top().second)
            self.waiting.pop()
        while not self.active.empty():
            free(<Intent*>self.active.top().second)
            self.active.pop()

    # -- worker ----------------------------------------------------------------------------------------------------------

    cdef bint signal(
            self, uint32_t table_id, const int64_t* keys, uint32_t count, int64_t start, int64_t end,
            Attention* attention) noexcept nogil:
        cdef Intent* intent
        cdef uint32_t i, seen
        if load_relaxed_i64(&self.signalled_keys) + count > MAX_SIGNALLED_KEYS:
            return False
        if not self._has_room(count):
            add_relaxed_i64(&self.room.refused_keys, count)
            return True
        intent = <Intent*>malloc(sizeof(Intent) + count * sizeof(uint32_t))
        if intent == NULL:
            self._leave_room(count)
            return False
        start = max(start, <int64_t>0)       # clocks are; and the arithmetic below cannot overflow
        intent.start = start
        intent.end = end
        intent.table_id = table_id
        intent.count = count
        intent.keys = <uint32_t*>(intent + 1)
        for i in range(count):
            intent.keys[i] = <uint32_t>keys[i]
        add_relaxed_i64(&self.signalled_keys, count)
        add_relaxed_i64(&self.keys_signalled, count)
        seen = lock_word(&self.incoming_lock)
        self.incoming.push_back(intent)
        # Under the lock: the engine publishes under it too, and looks again when something came in meanwhile.
        # Not before now: a round measured from a clock before the signal would seem long, and widen the horizon, and so on.
        store_release_i64(&self.wake_clock, min(self.wake_clock, max(start - self.horizon + 1, self.clock)))
        store_release_i64(&self.look_by_clock, min(self.look_by_clock, start - self.clocks_per_round))
        if start < self.act_before or self.clock >= self.wake_clock:
            attention[0] = URGENT if self.clock >= self.look_by_clock else DUE
        unlock_unchanged(&self.incoming_lock, seen)
        return True

    cdef bint _has_room(self, uint32_t count) noexcept nogil:
        """For an intent of so many keys, which it has then."""
        cdef int64_t size_bytes = INTENT_BYTES + count * <int64_t>sizeof(uint32_t)
        if self.room == NULL or self.room.most_bytes == 0:
            return True
        if add_relaxed_i64(&self.room.held_bytes, size_bytes) + size_bytes <= self.room.most_bytes:
            return True
        add_relaxed_i64(&self.room.held_bytes, -size_bytes)
        return False

    cdef void _leave_room(self, uint32_t count) noexcept nogil:
        if self.room != NULL and self.room.most_bytes > 0:
            add_relaxed_i64(&self.room.held_bytes, -(INTENT_BYTES + count * <int64_t>sizeof(uint32_t)))

    cdef Attention advance(self) noexcept nogil:
        # Sequentially consistent against publish(): either this thread sees the new wake_clock or the engine the new clock.
        cdef int64_t clock = self.clock + 1
        exchange_seq_cst_i64(&self.clock, clock)
        if clock < load_seq_cst_i64(&self.wake_clock):
            return NO_ATTENTION
        return URGENT if clock >= load_relaxed_i64(&self.look_by_clock) else DUE

    # -- engine ----------------------------------------------------------------------------------------------------------

    cdef void collect(self) noexcept nogil:
        cdef uint32_t seen = lock_word(&self.incoming_lock)
        cdef Intent* intent
        self.seen_clock = load_acquire_i64(&self.clock)
        for intent in self.incoming:
            intent.number = self.collected
            self.collected += 1
            self.waiting.push(_entry(intent.start, intent))
        self.collected_now.swap(self.incoming)
        self.incoming.clear()
        store_release_i64(&self.look_by_clock, <int64_t>NEVER)
        unlock_unchanged(&self.incoming_lock, seen)

    cdef Intent* next_due(self) noexcept nogil:
        cdef Intent* intent
        if self.waiting.empty():
            return NULL
        intent = <Intent*>self.waiting.top().second
        if intent.start >= self.act_before:
            return NULL
        self.waiting.pop()
        self.active.push(_entry(intent.end, intent))
        return intent

    cdef Intent* next_over(self) noexcept nogil:
        cdef Intent* intent
        if self.active.empty():
            return NULL
        intent = <Intent*>self.active.top().second
        if intent.end > self.seen_clock:         # not the clock: an intent that is over must have been ``next_started``
            return NULL
        self.active.pop()
        return intent

    cdef void watch_start(self, Intent* intent) noexcept nogil:
        self.starting.push(_entry(intent.start, intent))

    cdef Intent* next_started(self, int64_t clock) noexcept nogil:
        cdef Intent* intent
        if self.starting.empty() or -self.starting.top().first.first > clock:
            return NULL
        intent = <Intent*>self.starting.top().second
        self.starting.pop()
        return intent

    cdef int64_t now(self) noexcept nogil:
        return load_acquire_i64(&self.clock)

    cdef void forget(self, Intent* intent) noexcept nogil:
        add_relaxed_i64(&self.signalled_keys, -<int64_t>intent.count)
        self._leave_room(intent.count)
        free(intent)

    cdef Intent* next_active(self) noexcept nogil:
        cdef Intent* intent
        if self.active.empty():
            return NULL
        intent = <Intent*>self.active.top().second
        self.active.pop()
        return intent

    cdef Intent* next_waiting(self) noexcept nogil:
        cdef Intent* intent
        while not self.starting.empty():         # these are active, too
            self.starting.pop()
        if self.waiting.empty():
            return NULL
        intent = <Intent*>self.waiting.top().second
        self.waiting.pop()
        return intent

    cdef bint publish(self) noexcept nogil:
        cdef uint32_t seen = lock_word(&self.incoming_lock)
        cdef int64_t clock = load_acquire_i64(&self.clock)
        cdef int64_t wake = NEVER
        cdef bint settled
        self.horizon = min(timer_horizon_clocks(&self.timer), farthest_clocks(self.clocks.pace_ns, self.others))
        if self.room != NULL and self.room.most_bytes > 0:
            self.horizon = max(<int64_t>1, self.horizon * load_relaxed_i64(&self.room.ahead_256) // 256)
        self.clocks_per_round = max(<int64_t>1, <int64_t>self.timer.clocks_per_round)
        store_release_i64(&self.act_before, NEVER if self.immediate else clock + self.horizon)
        if not self.active.empty():
            wake = -self.active.top().first.first
        if not self.waiting.empty():
            wake = min(wake, max(-self.waiting.top().first.first - self.horizon + 1, clock + 1))
        exchange_seq_cst_i64(&self.wake_clock, wake)
        settled = self.incoming.empty() and load_seq_cst_i64(&self.clock) < wake
        unlock_unchanged(&self.incoming_lock, seen)
        return settled

    cdef void look_began(self, int64_t now_ns) noexcept nogil:
        if self.round_clock < 0:
            self.looked_clock = load_acquire_i64(&self.clock)
            self.looked_ns = now_ns
            self.round_clock = min(self.looked_clock, load_relaxed_i64(&self.wake_clock))

    cdef void look_ended(self, bint asked) noexcept nogil:
        if not asked:
            self.round_clock = -1

    cdef void round_ended(self, int64_t now_ns) noexcept nogil:
        if self.round_clock >= 0:
            timer_round_passed(&self.timer, self.looked_clock - self.round_clock + self._clocks_since_look(now_ns))
            self.round_clock = -1

    cdef double _clocks_since_look(self, int64_t now_ns) noexcept nogil:
        """Counted; where that is 1 at most, timed: a clock may happen to end during the shortest round."""
        cdef int64_t passed = load_acquire_i64(&self.clock) - self.looked_clock
        if passed > 1 or self.clocks.clock_ns == 0:
            return <double>passed
        return min((now_ns - self.looked_ns) / <double>self.clocks.clock_ns, passed + 1.0)
