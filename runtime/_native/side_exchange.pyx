"""Exchanges beside collective calls; ``side_exchange.pxd`` is the contract."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp.algorithm cimport sort
from libcpp.string cimport string
from libcpp.vector cimport vector

from intentpm.foundation.primitives cimport store_relaxed_u64
from intentpm.runtime._native.membership cimport Membership
from intentpm.runtime._native.messages cimport MSG_SIDE, ControlHeader
from intentpm.runtime._native.staging cimport send_staged, stage

cdef enum:
    CONTRIBUTION = 0             # the header's flags
    RESULT = 1
    CALL = 2


cdef class SideExchange:
    def __init__(self, Membership membership not None):
        self.membership = membership
        self.transport = membership.transport
        self.rank = membership.rank
        self.size = membership.size
        self.left.resize(self.size, False)

    cdef void contribute(self, uint64_t number, const char* payload, size_t payload_bytes) noexcept nogil:
        if number < self.first:
            return
        if self.rank == self.membership.root:
            self._gather(self.rank, number, payload, payload_bytes)
        else:
            self._send(self.membership.root, number, CONTRIBUTION, payload, payload_bytes)

    cdef void call(self, uint64_t number) noexcept nogil:
        cdef uint32_t rank
        store_relaxed_u64(&self.called, max(self.called, number))
        for rank in self.membership.members:
            if rank != self.rank:
                self._send(rank, number, CALL, NULL, 0)

    cdef void take(self, uint64_t number, string& out) noexcept nogil:
        cdef vector[uint64_t] over
        cdef size_t i
        out.swap(self.results[number])
        for entry in self.results:
            if entry.first <= number:
                over.push_back(entry.first)
        for i in range(over.size()):
            self.results.erase(over[i])

    cdef size_t held(self) noexcept nogil:
        return self.results.size() + self.gatherings.size()

    cdef void absent(self, uint64_t number, vector[uint32_t]& ranks) noexcept nogil:
        cdef uint32_t rank
        if self.gatherings.count(number) == 0:
            return
        for rank in self.membership.members:
            if not self.gatherings[number].came[rank]:
                ranks.push_back(rank)

    cdef bint on_message(
            self, uint32_t source, const ControlHeader* header, const char* body, size_t body_bytes) noexcept nogil:
        cdef uint32_t root = self.membership.root
        if header.flags == CONTRIBUTION and self.rank == root:
            return self._gather(source, header.sequence, body, body_bytes)
        if header.flags == CALL and source == root and self.rank != root:
            store_relaxed_u64(&self.called, max(self.called, header.sequence))
            return True
        if header.flags == RESULT and source == root and self.rank != root:
            self.results[header.sequence].assign(body, body_bytes)
            return True
        return False

    cdef bint _gather(self, uint32_t source, uint64_t number, const char* payload, size_t payload_bytes) noexcept nogil:
        cdef Gathering* gathering = &self.gatherings[number]
        cdef uint32_t rank
        if gathering.payloads.empty():
            gathering.payloads.resize(self.size)
            gathering.came.resize(self.size, False)
            gathering.missing = <uint32_t>self.membership.members.size()
            for rank in self.membership.members:
                if self.left[rank] and rank != source:
                    self._put(gathering, rank, self.for_the_left.data(), self.for_the_left.size())
        # Who gave up what it had just taken part in, or has left since, comes twice: the first counts.
        if self._put(gathering, source, payload, payload_bytes) and gathering.missing == 0:
            self._answer(number, gathering)
        return True

    cdef bint _put(self, Gathering* gathering, uint32_t source, const char* payload, size_t payload_bytes) noexcept nogil:
        if gathering.came[source]:
            return False
        gathering.came[source] = True
        gathering.payloads[source].assign(payload, payload_bytes)
        gathering.missing -= 1
        return True

    cdef void note_left(self, uint32_t rank) noexcept nogil:
        cdef vector[uint64_t] over
        cdef size_t i
        self.left[rank] = True
        for entry in self.gatherings:
            over.push_back(entry.first)
        sort(over.begin(), over.end())       # an answer ends all before it
        for i in range(over.size()):
            self._put(&self.gatherings[over[i]], rank, self.for_the_left.data(), self.for_the_left.size())
            if self.gatherings[over[i]].missing == 0:
                self._answer(over[i], &self.gatherings[over[i]])

    cdef void _answer(self, uint64_t number, Gathering* gathering) noexcept nogil:
        cdef string answer
        cdef uint32_t rank, length
        cdef uint32_t count = <uint32_t>self.membership.members.size()
        answer.append(<const char*>&count, sizeof(count))
        for rank in self.membership.members:
            length = <uint32_t>gathering.payloads[rank].size()
            answer.append(<const char*>&length, sizeof(length))
        for rank in self.membership.members:
            answer.append(gathering.payloads[rank])
        for rank in self.membership.members:
            if rank != self.rank:
                self._send(rank, number, RESULT, answer.data(), answer.size())
        self.results[number].swap(answer)
        self._forget_gatherings(number)

    cdef void _forget_gatherings(self, uint64_t last) noexcept nogil:
        """Those up to ``last``, which is answered: who has not come to one before it, and came here, has given that up."""
        cdef vector[uint64_t] over
        cdef size_t i
        for entry in self.gatherings:
            if entry.first <= last:
                over.push_back(entry.first)
        for i in range(over.size()):
            self.gatherings.erase(over[i])

    cdef void restart(self, uint64_t first, uint64_t called) noexcept nogil:
        self.first = first
        store_relaxed_u64(&self.called, called)
        self.gatherings.clear()
        self.results.clear()

    cdef void _send(
            self, uint32_t to, uint64_t number, uint32_t flags, const char* payload, size_t payload_bytes) noexcept nogil:
        cdef ControlHeader header
        cdef char* memory = stage(self.transport, payload_bytes)
        memset(&header, 0, sizeof(header))
        header.sequence = number
        header.flags = flags
        if memory != NULL:
            memcpy(memory, payload, payload_bytes)      # of a call: nothing
        send_staged(self.transport, to, MSG_SIDE, &header, sizeof(header), memory, payload_bytes)
