"""The queue of events and the trace of a simulation; ``sim_time.pxd`` states what they guarantee."""

cdef enum:
    HAPPENINGS = 256             # kept for reports

_EVENT_NAMES = ("deliver", "step", "lost", "wake")


cdef class Timeline:
    """Virtual nanoseconds since the start. ``seed``: any integer."""

    def __init__(self, seed: int):
        self.seed = seed
        self.random_state = <uint64_t>(hash(int(seed)) & 0xffffffffffffffff) ^ <uint64_t>0x5851F42D4C957F2D

    @property
    def trace_hash(self) -> str:
        """Of everything that happened: times, orders, contents of messages."""
        return f"{self.trace:016x}"

    def history(self, names=None) -> list:
        """The last things that happened, as text. names: of message ids."""
        cdef Happening happening
        cdef uint64_t first = max(0, <int64_t>self.events - <int64_t>self._happenings.size())
        lines = []
        for number in range(first, self.events):
            happening = self._happenings[number % HAPPENINGS]
            what = _EVENT_NAMES[happening.kind]
            if happening.kind == EVENT_DELIVER:
                kind = (names or {}).get(happening.message_id, happening.message_id)
                what = f"message {kind} {happening.source} -> {happening.rank}, {happening.body_bytes} B"
            elif happening.kind == EVENT_LOST:
                what += f" {happening.source}"
            lines.append(f"{happening.at_ns / 1e3:12.3f} us  rank {happening.rank}: {what}")
        return lines

    cdef uint32_t schedule(self, int64_t at_ns, uint8_t kind, uint32_t rank, uint32_t source, void* item) noexcept nogil:
        cdef Event event
        cdef uint32_t slot
        event.kind = kind
        event.rank = rank
        event.source = source
        event.item = item
        if self._free_slots.empty():
            slot = <uint32_t>self.slots.size()
            self.slots.push_back(event)
        else:
            slot = self._free_slots.back()
            self._free_slots.pop_back()
            self.slots[slot] = event
        self._queue.push(Entry(pair[int64_t, int64_t](-max(at_ns, self.now), -self._scheduled), slot))
        self._scheduled += 1
        return slot

    cdef void cancel(self, uint32_t slot) noexcept nogil:
        self.slots[slot].kind = NO_EVENT

    cdef bint is_due(self, int64_t until_ns) noexcept nogil:
        while not self._queue.empty() and self.slots[self._queue.top().second].kind == NO_EVENT:
            self._drop_next()
        return not self._queue.empty() and self.next_ns() <= until_ns

    cdef int64_t next_ns(self) noexcept nogil:
        return -self._queue.top().first.first

    cdef Event take_next(self) noexcept nogil:
        cdef Event event = self.slots[self._queue.top().second]
        self.now = self.next_ns()
        self._drop_next()
        return event

    cdef void _drop_next(self) noexcept nogil:
        cdef uint32_t slot = self._queue.top().second
        self._queue.pop()
        self.slots[slot].kind = NO_EVENT
        self._free_slots.push_back(slot)

    cdef void clear_events(self) noexcept nogil:
        while not self._queue.empty():
            self._drop_next()

    cdef void record(
            self, uint8_t kind, uint32_t rank, uint32_t source,
            uint8_t message_id, size_t body_bytes, uint64_t content) noexcept nogil:
        cdef Happening happening
        happening.at_ns = self.now
        happening.kind = kind
        happening.rank = rank
        happening.source = source
        happening.message_id = message_id
        happening.body_bytes = <uint32_t>body_bytes
        happening.content = content
        if self._happenings.size() < HAPPENINGS:
            self._happenings.push_back(happening)
        else:
            self._happenings[self.events % HAPPENINGS] = happening
        self.events += 1
        self.trace = mixed(self.trace, <uint64_t>happening.at_ns)
        self.trace = mixed(self.trace, (<uint64_t>kind << 56) | (<uint64_t>rank << 24) | source)
        self.trace = mixed(self.trace, content)
