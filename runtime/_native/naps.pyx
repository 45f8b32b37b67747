"""Naps of the progress thread; ``naps.pxd`` says what for."""

from libc.stdint cimport int64_t, uint64_t

from intentpm.runtime._native.intents cimport NEVER
from intentpm.runtime._native.rounds cimport Rounds

cdef enum:
    CLOCK_PARTS = 8
    LEAST_NAP_NS = 200_000       # to be woken costs some 10 us
    MOST_NAP_NS = 4_000_000
    QUIET_NAPS = 4               # without a message that is not management's
    MUCH_BYTES = 1 << 20         # moved since it was last asked: more is coming


cdef class Naps:
    def __init__(self, Rounds rounds not None):
        self.rounds = rounds
        self.transport = rounds.transport

    cdef int64_t allowed_ns(self, int64_t now_ns, int64_t step_at_ns) noexcept nogil:
        cdef int64_t nap_ns = self._bearable_ns(now_ns)
        if nap_ns < LEAST_NAP_NS or not self._is_quiet(now_ns, nap_ns):
            return 0
        nap_ns = min(nap_ns, step_at_ns - now_ns)
        if nap_ns < LEAST_NAP_NS or self.transport.has_backlog():
            return 0
        self.taken += 1
        return nap_ns

    cdef int64_t _bearable_ns(self, int64_t now_ns) noexcept nogil:
        cdef int64_t clock_ns = self.rounds.news.shortest_clock_ns(now_ns)
        if self.rounds.holder.clock_ns:
            clock_ns = min(clock_ns, self.rounds.holder.clock_ns)
        return 0 if clock_ns == NEVER else min(clock_ns // CLOCK_PARTS, <int64_t>MOST_NAP_NS)

    cdef bint _is_quiet(self, int64_t now_ns, int64_t nap_ns) noexcept nogil:
        cdef uint64_t others = self.transport.received_messages - self.rounds.messages
        cdef uint64_t before = self.moved_bytes
        self.moved_bytes = self.transport.sent_bytes + self.transport.received_bytes
        if others != self.others_seen:
            self.others_seen = others
            self.others_ns = now_ns
        return now_ns - self.others_ns >= QUIET_NAPS * nap_ns and self.moved_bytes - before < MUCH_BYTES
