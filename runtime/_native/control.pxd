"""Control messages: collective calls, signs of life, leaving, and the end of a job that lost a rank.

Collectives: every rank calls them in the same order; rank 0 gathers one payload per rank and answers all with all of them.
The answer, which grows with the number of ranks, goes down a tree: each rank passes it on to its children before it goes on.
What the payloads mean, and whether they fit together, is for the caller to compare: each rank sees the same list.

A rank's calls are numbered from 0. Of the newest, number ``entered`` - 1, this rank is
    ANSWERED   entered == completed: nothing to wait for. ``result`` is its answer, until the next call is entered
    WAITING    it has contributed, and an operation waits for the answer
    GIVEN_UP   it has contributed, and nobody waits: a deadline passed, or the caller was interrupted
and goes
    ANSWERED -enter-> WAITING -answer-> ANSWERED
    WAITING  -abandon-> GIVEN_UP -answer-> ANSWERED
    GIVEN_UP -rejoin-> WAITING              the same call, the same number: what was contributed stands
    ANSWERED -rejoin-> ANSWERED             the answer came while nobody waited
    GIVEN_UP -amend-> GIVEN_UP              another contribution takes the place of the first, if not all have come yet
    ANSWERED -amend-> GIVEN_UP              contributes to the next call without waiting for it
    ANSWERED -amend-> ANSWERED              the call it was about is over: too late
No rank enters a call before the one before it was answered: rank 0 gathers one at a time.

Life of a peer:  ALIVE -LEAVE-> LEFT (still serves; its disconnection is no loss)
                 ALIVE -disconnected, silent, ABORT-> LOST: the job has failed, on every rank, for good; or goes on without
                 it, with init(on_loss="continue") (membership.pxd)

Assumption: every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.string cimport string
from libcpp.vector cimport vector

from intentpm.runtime._native.membership cimport Membership
from intentpm.runtime._native.messages cimport MSG_PING, MSG_PONG, ControlHeader
from intentpm.runtime._native.requests cimport Operation, RequestPool
from intentpm.transports.base cimport Transport


@cython.final
cdef class Control:
    cdef Transport transport
    cdef RequestPool requests
    cdef Membership membership
    cdef uint32_t rank
    cdef uint32_t size
    # Collectives. "Rank 0" is the first of the members, where ranks were lost (membership.pxd).
    cdef readonly uint64_t entered           # calls this rank has begun
    cdef readonly uint64_t completed         # and ended
    cdef readonly uint64_t answered          # and ended with the newest answer; others that were lost with a rank have none
    cdef Operation* waiting                  # of the call this rank is in; NULL: none
    cdef string result                       # its answer: N lengths, then payloads; one of each if all are the same
    cdef uint32_t result_flags
    cdef vector[uint32_t] result_ranks       # N: whose, ascending: the members there were
    cdef vector[string] contributions        # rank 0: one per rank, of the collective being gathered
    cdef vector[uint32_t] revisions          # rank 0: 1 + how often each rank has amended its own; 0: has not come
    cdef uint32_t missing                    # rank 0: contributions still to come
    cdef uint32_t revision                   # of this rank's contribution to its newest call
    # Who has not come to this rank's newest call: asked of rank 0, for the message of a wait that ended without an answer.
    cdef bint roll_called                    # ``absent`` is rank 0's answer
    cdef vector[uint32_t] absent
    # Peers.
    cdef vector[uint8_t] left
    cdef vector[uint64_t] left_after         # collectives the peer had completed when it left
    cdef bint leaving                        # this rank has said LEAVE and waits for the others'
    cdef vector[int64_t] pinged_ns           # last unanswered ping; 0: none
    cdef vector[uint8_t] last_said           # MessageId of a peer's last message but signs of life; 0: there was none
    cdef readonly int64_t peer_timeout_ns
    # The job's end by failure.
    cdef readonly uint32_t failed            # atomic: stored release, under the lock, after the two below / any thread acquire
    cdef readonly uint32_t failed_rank       # written once
    cdef string failed_why                   # written once
    cdef readonly int64_t left_early         # rank whose leaving ended a collective; -1: none

    cdef void enter(self, Operation* operation, const char* payload, size_t payload_bytes) noexcept nogil
    cdef void abandon(self) noexcept nogil
    cdef void rejoin(self, Operation* operation) noexcept nogil
    cdef void amend(self, uint64_t number, const char* payload, size_t payload_bytes) noexcept nogil
    # Asks rank 0 which ranks have not come to this rank's newest call.
    cdef void call_roll(self) noexcept nogil
    cdef void leave(self) noexcept nogil
    # This rank has left, and so has every other that is not lost: nobody needs anything of anybody.
    cdef bint may_go(self) noexcept nogil
    # The transport is about to be closed: ends the collective this rank is in.
    cdef void close(self) noexcept nogil
    # Ends the job: fails every open request and collective here, and tells the peers who was lost and why. They tell it on.
    cdef void fail(self, uint32_t culprit, const char* why, size_t why_bytes) noexcept nogil
    # A rank is lost: the job fails, or goes on without it.
    cdef void lose(self, uint32_t rank, const char* why, size_t why_bytes) noexcept nogil
    # The answer of the collective that this rank is in: a rank that gave it on, or was to, is lost.
    cdef void complete(
        self, const char* body, size_t body_bytes, uint32_t flags, const vector[uint32_t]& ranks) noexcept nogil
    # The members have formed anew: the collective that is under way fails, and the next is number ``next`` on all of them.
    cdef void restart(self, uint64_t next) noexcept nogil
    # A message has come.
    cdef inline void note_said(self, uint32_t peer, uint8_t message_id) noexcept nogil:
        if message_id != MSG_PING and message_id != MSG_PONG:
            self.last_said[peer] = message_id

    # Pings peers that are waited for and silent; drops those silent for too long.
    cdef void check_silence(self, int64_t waiting_since_ns) noexcept nogil
    cdef bint on_message(
        self, uint32_t source, uint8_t message_id, const ControlHeader* header,
        const char* body, size_t body_bytes) noexcept nogil
    # private
    cdef bint _send(
        self, uint32_t to, uint8_t message_id, const ControlHeader* header, const char* payload,
        size_t payload_bytes) noexcept nogil
    cdef void _end(self, int status) noexcept nogil
    cdef void _contribute(self, const char* payload, size_t payload_bytes) noexcept nogil
    cdef bint _await_answer(self, Operation* operation) noexcept nogil
    cdef void _gather(
        self, uint32_t source, uint32_t revision, const char* payload, size_t payload_bytes) noexcept nogil
    cdef void _answer_roll(self, uint32_t source, uint64_t sequence) noexcept nogil
    cdef bint _take_roll(
        self, uint32_t source, const ControlHeader* header, const char* body, size_t body_bytes) noexcept nogil
    cdef void _answer(self) noexcept nogil
    cdef void _forget_contributions(self) noexcept nogil
    cdef bint _is_root(self) noexcept nogil
    # Of a rank other than 0: who passes answers on to it.
    cdef uint32_t _parent(self) noexcept nogil
    cdef void _take_result(self, const ControlHeader* header, const char* body, size_t body_bytes) noexcept nogil
    cdef void _on_leave(self, uint32_t source, uint64_t completed) noexcept nogil
    cdef void _check_left(self, uint32_t peer) noexcept nogil
    cdef bint _is_waited_for(self, uint32_t peer) noexcept nogil
    cdef void _check_peer(self, uint32_t peer, int64_t now, int64_t waiting_since_ns) noexcept nogil
