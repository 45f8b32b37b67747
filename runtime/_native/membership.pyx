"""Who is in the job; ``membership.pxd`` is the contract."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset, strlen
from posix.unistd cimport write

from intentpm.foundation.losses cimport LOSS_GAVE_UP, LOSS_TOLD_LOST, loss_text
from intentpm.foundation.primitives cimport store_release
from intentpm.runtime._native.messages cimport (
    EPOCH_SHIFT, MESSAGE_MASK, MSG_REFORM, ControlHeader, is_counted,
)
from intentpm.runtime._native.mutations cimport MUTATION_OLD_EPOCH_HEARD, MUTATION_OLD_EPOCH_KEPT, is_planted
from intentpm.runtime._native.staging cimport send_staged, stage
from intentpm.transports.base cimport Transport

cdef enum:
    EPOCH_MASK = 7


cdef class Membership:
    def __init__(self, Transport transport not None, continues: bool):
        self.transport = transport
        self.rank = transport.rank
        self.size = transport.size
        self.continues = continues
        self.wake_fd = -1
        self.lost.resize(self.size, 0)
        self.why.resize(self.size)
        self.left.resize(self.size, 0)
        self.stand_ins.resize(self.size, 0)
        self.sent_to.resize(self.size, 0)
        self.received_from.resize(self.size, 0)
        self._count_members()
        if continues:
            transport.sent_to = self.sent_to.data()

    def __dealloc__(self):
        if self.transport is not None:
            self.transport.sent_to = NULL

    def _count_members(self):
        with nogil:
            self.admit()

    # -- messages --------------------------------------------------------------------------------------------------------

    cdef bint admits(self, uint32_t source, uint8_t* message_id) noexcept nogil:
        cdef uint32_t epoch = message_id[0] >> EPOCH_SHIFT
        message_id[0] &= MESSAGE_MASK
        if self.lost[source]:
            self.refused += 1
            return False
        if not is_counted(message_id[0]):
            return True
        self.received_from[source] += 1
        if epoch == self.epoch & EPOCH_MASK or is_planted(MUTATION_OLD_EPOCH_HEARD):
            return True
        self.refused += 1
        return False

    cdef bint on_message(
            self, uint32_t source, const ControlHeader* header, const char* body, size_t body_bytes) noexcept nogil:
        if body_bytes < self.size:
            return False
        if body[self.rank]:
            return False                     # who gives this one up does not tell it
        if not self._hear_of(source, body):
            return True                      # of an earlier view: it will hear of this one, and begin again
        self.said[header.sequence << 32 | source].assign(body + self.size, body_bytes - self.size)
        return True

    cdef bint _hear_of(self, uint32_t source, const char* view) noexcept nogil:
        """Takes over what is more in another rank's view; whether it is this one then."""
        cdef char why[160]
        cdef uint32_t rank
        snprintf(why, sizeof(why), loss_text(LOSS_TOLD_LOST), source)
        for rank in range(self.size):
            if view[rank] and not self.lost[rank]:
                self.lose(rank, why, strlen(why))
        for rank in range(self.size):
            if self.lost[rank] and not view[rank]:
                return False
        return True

    cdef void tell(self, uint32_t step, const char* payload, size_t payload_bytes) noexcept nogil:
        cdef uint32_t rank
        for rank in range(self.size):
            if rank != self.rank and not self.lost[rank]:
                self._send(rank, step, payload, payload_bytes)
        self.said[<uint64_t>step << 32 | self.rank].assign(payload, payload_bytes)

    cdef void _send(self, uint32_t to, uint32_t step, const char* payload, size_t payload_bytes) noexcept nogil:
        cdef ControlHeader header
        cdef char* body = stage(self.transport, self.size + payload_bytes)
        cdef uint32_t rank
        if body == NULL:
            return
        memset(&header, 0, sizeof(header))
        header.sequence = step
        for rank in range(self.size):
            body[rank] = <char>self.lost[rank]
        if payload_bytes:
            memcpy(body + self.size, payload, payload_bytes)
        send_staged(self.transport, to, MSG_REFORM, &header, sizeof(header), body, self.size + payload_bytes)

    cdef bint have_told(self, uint32_t step) noexcept nogil:
        cdef const char* gone = loss_text(LOSS_GAVE_UP)
        cdef uint32_t rank
        cdef bint all_have = True
        for rank in range(self.size):
            if self.lost[rank] or self.said.count(<uint64_t>step << 32 | rank):
                continue
            all_have = False
            if self.left[rank] and not self.transport.is_alive(rank):        # it has closed. Losses are reported
                self.lose(rank, gone, strlen(gone))
        return all_have

    # -- the view --------------------------------------------------------------------------------------------------------

    cdef void lose(self, uint32_t rank, const char* why, size_t why_bytes) noexcept nogil:
        cdef char given_up[160]
        if rank == self.rank or self.lost[rank] or self.state >= ENGINE_CLOSED or self.state == ENGINE_FAILED:
            return
        self.why[rank].assign(why, why_bytes)
        self.lost[rank] = True
        self.lost_count += 1
        self.said.clear()
        if self.transport.is_alive(rank):    # should it live on: it sees its connections end, and that it is too few
            snprintf(given_up, sizeof(given_up), loss_text(LOSS_GAVE_UP), self.rank)
            self.transport.drop(rank, given_up)
        store_release(&self.state, ENGINE_FORMING)
        self.wake_former()

    cdef void wake_former(self) noexcept nogil:
        cdef uint64_t one = 1
        if self.wake_fd >= 0 and self.state == ENGINE_FORMING:
            write(self.wake_fd, &one, sizeof(one))

    cdef void admit(self) noexcept nogil:
        cdef uint32_t rank, next
        self.members.clear()
        for rank in range(self.size):
            if not self.lost[rank]:
                if rank == self.rank:
                    self.place = <uint32_t>self.members.size()
                self.members.push_back(rank)
            next = rank
            while self.lost[next]:
                next = (next + 1) % self.size
            self.stand_ins[rank] = <uint16_t>next
        self.root = self.members[0]
        self.epoch = self.lost_count
        if self.epoch and is_planted(MUTATION_OLD_EPOCH_KEPT):
            return
        self.transport.id_mark = <uint8_t>((self.epoch & EPOCH_MASK) << EPOCH_SHIFT)
