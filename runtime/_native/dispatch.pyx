"""Which part of a rank a message is for; ``dispatch.pxd`` is the contract."""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, strlen

from intentpm.foundation.losses cimport (
    LOSS_NONSENSE, LOSS_SIMULATION_ENDED, is_loss, loss_text,
)
from intentpm.runtime._native.inquiry cimport Inquiry
from intentpm.runtime._native.intents cimport NEVER
from intentpm.runtime._native.messages cimport (
    MSG_ACCESS, MSG_COLLECT, MSG_EXPLAIN, MSG_EXPLAINED, MSG_FIRST_ROUND, MSG_LEAVE, MSG_REFORM, MSG_REPLY,
    MSG_SIDE, MSG_SYNC, MSG_SYNCED, AccessHeader, ControlHeader, RoundHeader,
)
from intentpm.runtime._native.serving cimport Serving
from intentpm.runtime._native.side_exchange cimport SideExchange
from intentpm.runtime._native.turns cimport Turns
from intentpm.transports.base cimport Transport


cdef inline void _count_received(Transport transport, uint8_t message_id, size_t size_bytes) noexcept nogil:
    transport.received_bytes_of[message_id & 31] += size_bytes


cdef void _on_message(
        void* context, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
        const char* body, size_t body_bytes) noexcept nogil:
    # Headers are copied out first: the pointer may be unaligned.
    cdef AccessHeader access
    cdef ControlHeader control
    cdef RoundHeader round
    cdef bint understood = False
    if (<Dispatch>context).membership.continues and not (<Dispatch>context).membership.admits(source, &message_id):
        return
    _count_received((<Dispatch>context).transport, message_id, header_bytes + body_bytes)
    (<Dispatch>context).control.note_said(source, message_id)
    if message_id < MSG_COLLECT:
        if header_bytes == sizeof(AccessHeader):
            memcpy(&access, header, sizeof(AccessHeader))
            if message_id == MSG_ACCESS:
                understood = (<Dispatch>context).serving.serve(source, &access, body, body_bytes)
            elif message_id == MSG_REPLY:
                understood = (<Dispatch>context).remote.finish(source, &access, body, body_bytes)
    elif message_id == MSG_REFORM:
        if header_bytes == sizeof(ControlHeader) and (<Dispatch>context).membership.continues:
            memcpy(&control, header, sizeof(ControlHeader))
            understood = (<Dispatch>context).membership.on_message(source, &control, body, body_bytes)
            (<Dispatch>context).turns.wake_waiters()
    elif message_id >= MSG_FIRST_ROUND:
        if header_bytes == sizeof(RoundHeader):
            memcpy(&round, header, sizeof(RoundHeader))
            understood = (<Dispatch>context).rounds.on_message(source, message_id, &round, body, body_bytes)
    elif header_bytes == sizeof(ControlHeader):
        memcpy(&control, header, sizeof(ControlHeader))
        if message_id == MSG_SYNC or message_id == MSG_SYNCED:
            understood = (<Dispatch>context).rounds.sync.on_message(source, message_id)
        elif message_id == MSG_EXPLAIN or message_id == MSG_EXPLAINED:
            understood = (<Dispatch>context).inquiry.on_message(source, message_id, &control, body, body_bytes)
        elif message_id == MSG_SIDE:
            understood = (<Dispatch>context).side.on_message(source, &control, body, body_bytes)
            (<Dispatch>context).turns.wake_waiters()
        else:
            understood = (<Dispatch>context).control.on_message(source, message_id, &control, body, body_bytes)
            if message_id == MSG_LEAVE:
                (<Dispatch>context).side.note_left(source)
    if not understood:
        _drop_for_nonsense((<Dispatch>context).transport, source)


cdef void _drop_for_nonsense(Transport transport, uint32_t source) noexcept nogil:
    cdef char why[128]
    snprintf(why, sizeof(why), loss_text(LOSS_NONSENSE), transport.rank)
    transport.drop(source, why)


cdef void _on_step(void* context) noexcept nogil:
    (<Dispatch>context).turns.thread_wakes_ns = NEVER
    (<Dispatch>context).turns.look_and_step()


cdef void _on_lost(void* context, uint32_t rank, const char* why) noexcept nogil:
    if is_loss(why, LOSS_SIMULATION_ENDED):
        (<Dispatch>context).control.fail(rank, why, strlen(why))
    else:
        (<Dispatch>context).control.lose(rank, why, strlen(why))


cdef class Dispatch:
    def __init__(self, Turns turns not None, Serving serving not None, Inquiry inquiry not None):
        self.transport = turns.transport
        self.turns = turns
        self.control = turns.control
        self.membership = turns.membership
        self.rounds = turns.rounds
        self.serving = serving
        self.remote = serving.remote
        self.inquiry = inquiry
        self.side = SideExchange(turns.membership)
        self.transport.on_message = _on_message
        self.transport.on_lost = _on_lost
        self.transport.on_step = _on_step
        self.transport.context = <void*>self
