"""Control messages; ``control.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset
from libcpp.string cimport string
from libcpp.vector cimport vector

from intentpm.foundation.deadlines import wait_ns

from intentpm.runtime._native.membership cimport Membership
from intentpm.runtime._native.messages cimport (
    FLAG_SAME, MSG_ABORT, MSG_ABSENT, MSG_ACCESS, MSG_COLLECT, MSG_FIRST_ROUND, MSG_LEAVE, MSG_PING, MSG_PONG, MSG_REPLY,
    MSG_RESULT, MSG_ROLL_CALL, MSG_SIDE, MSG_SYNC, MSG_SYNCED, ControlHeader,
)
from intentpm.foundation.losses cimport LOSS_NO_MEMORY_TO_TELL, LOSS_SILENT, loss_text
from intentpm.foundation.primitives cimport store_release
from intentpm.runtime._native.requests cimport (
    OPERATION_ABANDONED, OPERATION_PEER_LOST, OPERATION_RANK_LOST, Operation, RequestPool,
)
from intentpm.runtime._native.staging cimport send_staged, stage
from intentpm.transports.base cimport HOST_MEMORY, SEND_NO_MEMORY, Piece, Transport

cdef enum:
    WHY_BYTES = 256              # for the reason of a failure, which may be that there is no memory
    CHILDREN = 16                # of a rank, in the tree down which answers go


cdef class Control:
    def __init__(self, Membership membership not None, RequestPool requests not None, peer_timeout_s: float):
        cdef Transport transport = membership.transport
        self.membership = membership
        self.transport = transport
        self.requests = requests
        self.rank = transport.rank
        self.size = transport.size
        self.peer_timeout_ns = wait_ns(peer_timeout_s, "peer_timeout")
        if self.rank == 0 or membership.continues:
            self.contributions.resize(self.size)
            self.revisions.resize(self.size, 0)
        self.missing = self.size
        self.left.resize(self.size, 0)
        self.left_after.resize(self.size, 0)
        self.pinged_ns.resize(self.size, 0)
        self.last_said.resize(self.size, 0)
        self.left_early = -1
        self.failed_why.reserve(WHY_BYTES)

    cdef bint _send(
            self, uint32_t to, uint8_t message_id, const ControlHeader* header,
            const char* payload, size_t payload_bytes) noexcept nogil:
        cdef char* body = stage(self.transport, payload_bytes)
        if body == NULL:
            return False
        if payload_bytes:                # payload may be NULL
            memcpy(body, payload, payload_bytes)
        return send_staged(self.transport, to, message_id, header, sizeof(ControlHeader), body, payload_bytes)

    # -- collectives -----------------------------------------------------------------------------------------------------

    cdef void enter(self, Operation* operation, const char* payload, size_t payload_bytes) noexcept nogil:
        if self.entered == self.completed:   # else a rank has left, and the call that it left out never ends
            self.entered += 1
            self.revision = 0
        if self._await_answer(operation):
            self._contribute(payload, payload_bytes)

    cdef void rejoin(self, Operation* operation) noexcept nogil:
        if self.entered == self.completed:
            self.waiting = operation
            self._end(0)
        else:
            self._await_answer(operation)

    cdef void amend(self, uint64_t number, const char* payload, size_t payload_bytes) noexcept nogil:
        if self.completed > number:
            return
        if self.entered == number:
            self.entered += 1
            self.revision = 0
        else:
            self.revision += 1
        self._contribute(payload, payload_bytes)

    cdef void abandon(self) noexcept nogil:
        self.waiting = NULL

    cdef bint _await_answer(self, Operation* operation) noexcept nogil:
        """False: the operation has ended already, as no answer can come."""
        cdef uint32_t peer
        self.waiting = operation
        self.left_early = -1
        self.roll_called = False
        if self.failed:
            self._end(OPERATION_PEER_LOST)
        for peer in range(self.size):
            self._check_left(peer)
        return self.waiting != NULL

    cdef void _contribute(self, const char* payload, size_t payload_bytes) noexcept nogil:
        cdef ControlHeader header
        if self._is_root():
            self._gather(self.rank, self.revision, payload, payload_bytes)
            return
        memset(&header, 0, sizeof(header))
        header.sequence = self.entered - 1
        header.flags = self.revision
        self._send(self.membership.root, MSG_COLLECT, &header, payload, payload_bytes)

    cdef void close(self) noexcept nogil:
        self._end(OPERATION_PEER_LOST)

    cdef void _end(self, int status) noexcept nogil:
        cdef Operation* operation = self.waiting
        if operation == NULL:
            return
        self.waiting = NULL
        operation.status = status
        self.requests.close_submission(operation)

    cdef void _gather(
            self, uint32_t source, uint32_t revision, const char* payload, size_t payload_bytes) noexcept nogil:
        if revision < self.revisions[source]:
            return                           # overtaken by one that takes its place
        self.missing -= self.revisions[source] == 0
        self.revisions[source] = revision + 1
        self.contributions[source].assign(payload, payload_bytes)
        if self.missing == 0:
            self._answer()

    cdef void _answer(self) noexcept nogil:
        """Rank 0, all are here: answers with everything, once if it is all the same (a barrier)."""
        cdef ControlHeader header
        cdef string answer
        cdef uint32_t i, length
        cdef const vector[uint32_t]* members = &self.membership.members
        cdef uint32_t count = <uint32_t>members.size()
        cdef bint same = True
        memset(&header, 0, sizeof(header))
        for i in range(1, count):
            same = same and self.contributions[members[0][i]] == self.contributions[self.rank]
        header.flags = FLAG_SAME if same else 0
        header.sequence = self.completed
        for i in range(1 if same else count):
            length = <uint32_t>self.contributions[members[0][i]].size()
            answer.append(<const char*>&length, sizeof(length))
        for i in range(1 if same else count):
            answer.append(self.contributions[members[0][i]])
        self._forget_contributions()
        self._take_result(&header, answer.data(), answer.size())

    cdef void _forget_contributions(self) noexcept nogil:
        cdef uint32_t peer
        for peer in range(<uint32_t>self.revisions.size()):
            self.revisions[peer] = 0
            self.contributions[peer].clear()
        self.missing = <uint32_t>self.membership.members.size()

    cdef bint _is_root(self) noexcept nogil:
        return self.rank == self.membership.root

    cdef uint32_t _parent(self) noexcept nogil:
        return self.membership.members[(self.membership.place - 1) // CHILDREN]

    cdef void _take_result(self, const ControlHeader* header, const char* body, size_t body_bytes) noexcept nogil:
        cdef const vector[uint32_t]* members = &self.membership.members
        cdef uint64_t first_child = <uint64_t>self.membership.place * CHILDREN + 1
        cdef uint64_t child
        for child in range(first_child, min(first_child + CHILDREN, <uint64_t>members.size())):
            self._send(members[0][child], MSG_RESULT, header, body, body_bytes)
        self.result_ranks = members[0]
        self.completed = self.answered = header.sequence + 1
        self.result.assign(body, body_bytes)
        self.result_flags = header.flags
        self._end(0)

    # -- who has not come ------------------------------------------------------------------------------------------------

    cdef void call_roll(self) noexcept nogil:
        cdef ControlHeader header
        self.roll_called = False
        if self._is_root():
            self._answer_roll(self.rank, self.entered - 1)
            return
        memset(&header, 0, sizeof(header))
        header.sequence = self.entered - 1
        self._send(self.membership.root, MSG_ROLL_CALL, &header, NULL, 0)

    cdef void _answer_roll(self, uint32_t source, uint64_t sequence) noexcept nogil:
        """Rank 0: says who has not come to a call; nobody, where it was answered."""
        cdef ControlHeader header
        cdef vector[uint32_t] absent
        cdef uint32_t peer
        memset(&header, 0, sizeof(header))
        header.sequence = sequence
        if sequence == self.completed:
            for peer in range(self.size):
                if self.revisions[peer] == 0 and self.membership.is_member(peer):
                    absent.push_back(peer)
        if source == self.rank:
            self._take_roll(source, &header, <const char*>absent.data(), absent.size() * sizeof(uint32_t))
        else:
            self._send(source, MSG_ABSENT, &header, <const char*>absent.data(), absent.size() * sizeof(uint32_t))

    cdef bint _take_roll(
            self, uint32_t source, const ControlHeader* header, const char* body, size_t body_bytes) noexcept nogil:
        if source != self.membership.root or body_bytes % sizeof(uint32_t) or body_bytes > self.size * sizeof(uint32_t):
            return False
        if header.sequence + 1 == self.entered:  # else it was asked about an earlier call
            self.absent.resize(body_bytes // sizeof(uint32_t))
            if body_bytes:
                memcpy(self.absent.data(), body, body_bytes)
            self.roll_called = True
            self.requests.finished += 1          # somebody waits for it
        return True

    # -- leaving ---------------------------------------------------------------------------------------------------------

    cdef void leave(self) noexcept nogil:
        cdef ControlHeader header
        cdef uint32_t peer
        memset(&header, 0, sizeof(header))
        header.sequence = self.completed
        self.leaving = True
        for peer in range(self.size):
            if peer != self.rank:
                self._send(peer, MSG_LEAVE, &header, NULL, 0)
                if self.left[peer]:
                    self.transport.expect_close(peer)

    cdef bint may_go(self) noexcept nogil:
        cdef uint32_t peer
        for peer in range(self.size):
            if peer != self.rank and not self.left[peer] and self.membership.is_member(peer):
                return False
        return self.leaving

    cdef void _on_leave(self, uint32_t source, uint64_t completed) noexcept nogil:
        if self.left[source]:
            return
        self.left[source] = self.membership.left[source] = 1
        self.left_after[source] = completed
        if self.leaving:                     # else it still serves this rank
            self.transport.expect_close(source)
        self._check_left(source)

    cdef void _check_left(self, uint32_t peer) noexcept nogil:
        # A peer that left after completing this collective is fine: its LEAVE may overtake rank 0's answer.
        if self.waiting != NULL and self.left[peer] and self.left_after[peer] < self.entered:
            self.left_early = peer
            self._end(OPERATION_ABANDONED)

    # -- failure ---------------------------------------------------------------------------------------------------------

    cdef void fail(self, uint32_t culprit, const char* why, size_t why_bytes) noexcept nogil:
        cdef ControlHeader header
        cdef Piece piece
        cdef uint32_t peer
        cdef char untold[128]
        if self.failed:
            return
        self.failed_rank = culprit
        self.failed_why.assign(why, why_bytes)
        store_release(&self.failed, 1)
        # Before anything else: so peers name the rank that was lost, not this one, which will go because of it. Not staged:
        # there may be no memory left. The text stays where it is until after the transport is closed.
        memset(&header, 0, sizeof(header))
        header.culprit = culprit
        piece.data = self.failed_why.data()
        piece.size_bytes = why_bytes
        piece.memory = HOST_MEMORY
        self.transport.due_ns = 0
        for peer in range(self.size):
            if peer != self.rank and peer != culprit and self.transport.is_alive(peer):
                if SEND_NO_MEMORY == self.transport.send(
                        peer, MSG_ABORT | self.transport.id_mark, <const char*>&header, sizeof(header), &piece, 1, NULL, NULL):
                    snprintf(untold, sizeof(untold), loss_text(LOSS_NO_MEMORY_TO_TELL), self.rank)
                    self.transport.drop(peer, untold)
        self.requests.fail(NULL, OPERATION_PEER_LOST)
        self._end(OPERATION_PEER_LOST)

    cdef void lose(self, uint32_t rank, const char* why, size_t why_bytes) noexcept nogil:
        if self.membership.continues and rank != self.rank:
            self.membership.lose(rank, why, why_bytes)
        else:
            self.fail(rank, why, why_bytes)

    cdef void complete(
            self, const char* body, size_t body_bytes, uint32_t flags, const vector[uint32_t]& ranks) noexcept nogil:
        self.completed = self.answered = self.entered
        self.result.assign(body, body_bytes)
        self.result_flags = flags
        self.result_ranks = ranks
        self._end(0)

    cdef void restart(self, uint64_t next) noexcept nogil:
        cdef uint32_t peer
        self._end(OPERATION_RANK_LOST)
        self.entered = self.completed = next
        self.revision = 0
        self._forget_contributions()
        for peer in range(self.size):
            if not self.membership.is_member(peer):
                self.left[peer] = 1
                self.left_after[peer] = <uint64_t>-1     # of no call that it would have left early

    # -- signs of life ---------------------------------------------------------------------------------------------------

    cdef bint _is_waited_for(self, uint32_t peer) noexcept nogil:
        if peer == self.rank or not self.transport.is_alive(peer):
            return False
        if self.requests.in_flight_to[peer] > 0:
            return True
        if self.leaving:
            return not self.left[peer]
        if self.waiting == NULL:
            return False
        if self._is_root():
            return self.revisions[peer] == 0
        return peer == self.membership.root or peer == self._parent()

    cdef void check_silence(self, int64_t waiting_since_ns) noexcept nogil:
        cdef int64_t now = self.transport.now_ns()
        cdef uint32_t peer
        # At first those known to be waited for. Soon all: a request may have been forwarded, a key may be on its way from
        # anywhere, and management waits for whom it must.
        cdef bint everyone = now - waiting_since_ns > self.peer_timeout_ns // 10
        for peer in range(self.size):
            if self._is_waited_for(peer) or (everyone and peer != self.rank and self.transport.is_alive(peer)):
                self._check_peer(peer, now, waiting_since_ns)

    cdef void _check_peer(self, uint32_t peer, int64_t now, int64_t waiting_since_ns) noexcept nogil:
        cdef int64_t heard = self.transport.last_heard_ns(peer)
        cdef ControlHeader header
        cdef char why[320]
        if heard >= self.pinged_ns[peer]:
            self.pinged_ns[peer] = 0
        if now - max(heard, waiting_since_ns) < self.peer_timeout_ns // 10:
            return
        if self.pinged_ns[peer] == 0:
            memset(&header, 0, sizeof(header))
            self.pinged_ns[peer] = now
            self._send(peer, MSG_PING, &header, NULL, 0)
        elif now - self.pinged_ns[peer] > self.peer_timeout_ns * 7 // 10:
            snprintf(why, sizeof(why), loss_text(LOSS_SILENT), self.rank,
                     (now - max(heard, waiting_since_ns)) * 1e-9, self.peer_timeout_ns * 1e-9,
                     _in_words(self.last_said[peer]))
            self.transport.drop(peer, why)

    cdef bint on_message(
            self, uint32_t source, uint8_t message_id, const ControlHeader* header,
            const char* body, size_t body_bytes) noexcept nogil:
        cdef ControlHeader pong
        if message_id == MSG_COLLECT:
            if not self._is_root() or header.sequence > self.completed:
                return False
            if header.sequence == self.completed:    # else all had come before it was amended
                self._gather(source, header.flags, body, body_bytes)
        elif message_id == MSG_RESULT:
            if self._is_root() or source != self._parent() or body_bytes < sizeof(uint32_t):
                return False
            self._take_result(header, body, body_bytes)
        elif message_id == MSG_ROLL_CALL:
            if not self._is_root():
                return False
            self._answer_roll(source, header.sequence)
        elif message_id == MSG_ABSENT:
            return self._take_roll(source, header, body, body_bytes)
        elif message_id == MSG_PING:
            memset(&pong, 0, sizeof(pong))
            self._send(source, MSG_PONG, &pong, NULL, 0)
        elif message_id == MSG_LEAVE:
            self._on_leave(source, header.sequence)
        elif message_id == MSG_ABORT:
            if header.culprit >= self.size:
                return False
            self.lose(header.culprit, body, body_bytes)
        else:
            return message_id == MSG_PONG
        return True


cdef const char* _in_words(uint8_t message_id) noexcept nogil:
    """What a rank did that sent it."""
    if message_id == 0:
        return "nothing"
    if message_id == MSG_ACCESS:
        return "an access to rows"
    if message_id == MSG_REPLY:
        return "a reply to an access"
    if message_id == MSG_COLLECT:
        return "its part of a collective call"
    if message_id == MSG_RESULT:
        return "the result of a collective call"
    if message_id == MSG_SIDE:
        return "its part in a checkpoint"
    if message_id == MSG_LEAVE:
        return "its goodbye"
    if message_id == MSG_SYNC or message_id == MSG_SYNCED:
        return "about a wait_sync"
    if message_id >= MSG_FIRST_ROUND:
        return "about where keys are and what was written to them"
    return "a question, or its answer"
