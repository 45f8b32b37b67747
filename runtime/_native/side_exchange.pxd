"""Exchanges between ranks beside their collective calls: what those say to each other who make a checkpoint.

    SIDE, contribution    to rank 0, which keeps them until it has one of every rank
    SIDE, result          from rank 0 to all: the contributions in rank order, after how many they are u32 and their lengths
    SIDE, call            from rank 0 to all: it is about to make number so-and-so, and they had better, too

"Rank 0" is the first of the members, and they are "all", where ranks were lost (membership.pxd).
A rank that has left the job contributes ``for_the_left`` to all that it has not come to.
They are numbered by who makes them. A rank comes to them in ascending order, and may leave some out, that were given up: an
exchange that is answered, or whose answer is taken, ends all before it. What they mean is the caller's.
Called by: RankSnapshot (contribute, take), Dispatch (a SIDE has come).
Assumption: every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libcpp.string cimport string
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

from intentpm.runtime._native.membership cimport Membership
from intentpm.runtime._native.messages cimport ControlHeader
from intentpm.transports.base cimport Transport


cdef struct Gathering:
    vector[string] payloads      # one per rank
    vector[bint] came
    uint32_t missing


@cython.final
cdef class SideExchange:
    cdef Transport transport
    cdef Membership membership
    cdef uint32_t rank
    cdef uint32_t size
    cdef unordered_map[uint64_t, Gathering] gatherings       # rank 0
    cdef vector[bint] left                                   # rank 0: per rank
    cdef string for_the_left                                 # set once, before the engine runs
    # The newest that rank 0 has called for. Atomic: stored under the engine's lock, which who looks for it does not take.
    cdef uint64_t called
    cdef uint64_t first                                      # those before are void
    cdef unordered_map[uint64_t, string] results             # not taken yet: N u32, lengths u32 [N], payloads

    cdef void contribute(self, uint64_t number, const char* payload, size_t payload_bytes) noexcept nogil
    cdef inline bint is_answered(self, uint64_t number) noexcept nogil:
        return self.results.count(number) > 0
    # The rank has said LEAVE, or is this one and about to.
    cdef void note_left(self, uint32_t rank) noexcept nogil
    # Of rank 0.
    cdef void call(self, uint64_t number) noexcept nogil
    # The ranks that have not contributed; known to rank 0 alone.
    cdef void absent(self, uint64_t number, vector[uint32_t]& ranks) noexcept nogil
    # Moves the answer of a call that is answered to ``out``; those before it are not asked for any more.
    cdef void take(self, uint64_t number, string& out) noexcept nogil
    # Exchanges of which something is kept here.
    cdef size_t held(self) noexcept nogil
    # False: makes no sense.
    cdef bint on_message(
        self, uint32_t source, const ControlHeader* header, const char* body, size_t body_bytes) noexcept nogil
    # The members have formed anew: exchanges before ``first`` are void, and ``called`` is the newest that all have heard of.
    cdef void restart(self, uint64_t first, uint64_t called) noexcept nogil
    # private
    cdef void _forget_gatherings(self, uint64_t last) noexcept nogil
    cdef bint _gather(self, uint32_t source, uint64_t number, const char* payload, size_t payload_bytes) noexcept nogil
    cdef bint _put(self, Gathering* gathering, uint32_t source, const char* payload, size_t payload_bytes) noexcept nogil
    cdef void _answer(self, uint64_t number, Gathering* gathering) noexcept nogil
    cdef void _send(
        self, uint32_t to, uint64_t number, uint32_t flags, const char* payload, size_t payload_bytes) noexcept nogil
