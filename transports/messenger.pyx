"""Messages of a transport as Python objects; ``messenger.pxd`` states what it guarantees."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdio cimport snprintf
from libc.string cimport memcpy

from intentpm.foundation.losses cimport LOSS_NO_MEMORY_TO_SEND, LOSS_UNWANTED, loss_text
from intentpm.foundation.system cimport POLLIN, poll, pollfd
from intentpm.transports.base cimport (
    HOST_MEMORY, MAX_HEADER_BYTES, SEND_NO_MEMORY, SEND_OK, SEND_PEER_LOST, Piece, SendStatus, Transport)

from collections import deque
from typing import NamedTuple

from intentpm.foundation.deadlines import wait_ns
from intentpm.foundation.errors import PeerLostError, TransportError, WaitTimeoutError
from intentpm.foundation.losses import NOT_CONNECTED

cdef enum:
    ECHO_COPY_BYTES = 64            # room for an EchoCopy before the body it precedes


class Message(NamedTuple):
    """A message received."""

    source: int
    message_id: int
    header: bytes
    body: bytes


class Lost(NamedTuple):
    """A peer's loss, as reported by the transport."""

    rank: int
    why: str


cdef void _mark_done(void* argument, int status) noexcept nogil:
    cdef SendState* state = <SendState*>argument
    state.done_calls += 1
    state.status = status
    state.finished[0] += 1


cdef class SendHandle:
    """A message on its way. Keeps its buffers exported (so nobody can resize them) until the transport is done."""

    def __cinit__(self, Messenger messenger, uint32_t destination, buffers):
        cdef Py_buffer view
        cdef Piece piece
        self.messenger = messenger
        self.destination = destination
        self.state.finished = &messenger.finished_sends
        for buffer in buffers:
            PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
            self.views.push_back(view)
            piece.data = <const char*>view.buf
            piece.size_bytes = view.len
            piece.memory = HOST_MEMORY
            self.pieces.push_back(piece)

    def __dealloc__(self):
        self.release_buffers()

    cdef void release_buffers(self):
        cdef size_t index
        for index in range(self.views.size()):
            PyBuffer_Release(&self.views[index])
        self.views.clear()

    @property
    def done(self) -> bool:
        """Whether the buffers may be changed."""
        return self.state.done_calls > 0

    @property
    def done_calls(self) -> int:
        """How often the transport called ``done``: anything but 0 and then 1 is a bug of the transport."""
        return self.state.done_calls

    @property
    def status(self) -> int:
        """Of the ``done`` call: 0 sent or copied, else the peer was lost first."""
        return self.state.status

    def wait(self, timeout_s) -> int:
        """Makes progress until the buffers may be changed; returns ``status``. Raises WaitTimeoutError."""
        cdef int64_t deadline_ns = self.messenger.deadline(timeout_s)
        while self.state.done_calls == 0:
            self.messenger.step(deadline_ns, f"a send to rank {self.destination}", timeout_s)
        return self.state.status


cdef struct EchoCopy:
    # A body on its way back, right after this struct: on_message may not keep the one it was given.
    void* messenger
    size_t size_bytes


cdef void _release_echo(void* argument, int status) noexcept nogil:
    cdef EchoCopy* copy = <EchoCopy*>argument
    (<Messenger>copy.messenger).transport.release(<char*>copy, copy.size_bytes)


cdef void _take_message(
        void* context, uint32_t source, uint8_t message_id,
        const char* header, size_t header_bytes, const char* body, size_t body_bytes) noexcept nogil:
    if (<Messenger>context).auto_drop:
        (<Messenger>context).give_up(source, LOSS_UNWANTED)
    (<Messenger>context).take(source, message_id, header, header_bytes, body, body_bytes)


cdef void _take_loss(void* context, uint32_t rank, const char* why) noexcept nogil:
    with gil:
        (<Messenger>context).lost.append(Lost(rank, why.decode(errors="replace")))


cdef void _ignore_message(
        void* context, uint32_t source, uint8_t message_id,
        const char* header, size_t header_bytes, const char* body, size_t body_bytes) noexcept nogil:
    pass


cdef void _ignore_loss(void* context, uint32_t rank, const char* why) noexcept nogil:
    pass


cdef class Messenger:
    """Puts what ``transport`` receives into Python objects. Make it before ``transport.connect()``.

    Attributes
        lost: the losses reported, in order (a list of Lost). One entry per peer at most, or the transport is at fault.
        auto_echo: answer every message at once, inside the handler, with the same id, header and body; do not keep it.
        auto_drop: drop the source of every message, inside the handler.
    """

    def __init__(self, Transport transport not None):
        self.transport = transport
        self.lost = []
        self.arrived = deque()
        self.unfinished = []
        transport.context = <void*>self
        transport.on_message = _take_message
        transport.on_lost = _take_loss

    def __dealloc__(self):
        if self.transport is not None:
            self.transport.on_message = _ignore_message
            self.transport.on_lost = _ignore_loss

    # -- messages ------------------------------------------------------------------------------------------------------

    def send(self, uint32_t rank, int message_id, bytes header=b"", pieces=(), int64_t due_ns=0) -> SendHandle:
        """Sends one message; its body is the concatenation of ``pieces`` (contiguous buffers, unchanged until done).

        due_ns: when it is needed, on the transport's clock; 0: at once. What must wait is sent in that order.

        Raises
            PeerLostError: ``rank`` is gone. Nothing was sent.
            TransportError: the id is not below 250, the header is longer than 256 bytes, the body too long, no memory.
        """
        cdef SendHandle handle = SendHandle(self, rank, pieces)
        cdef SendStatus status
        if not 0 <= message_id < FIRST_OWN_ID:
            raise TransportError(f"message id {message_id}: a messenger sends ids from 0 to {FIRST_OWN_ID - 1}")
        self.transport.due_ns = due_ns
        status = self.transport.send(
            rank, <uint8_t>message_id, header, len(header), handle.pieces.data(), handle.pieces.size(),
            _mark_done, &handle.state)
        self._check_sent(status, rank, len(header))
        if handle.state.done_calls == 0:
            # The transport holds pointers into the handle: keep it, and this messenger through it.
            Py_INCREF(handle)
            self.unfinished.append(handle)
        else:
            handle.release_buffers()
        return handle

    def _check_sent(self, int status, uint32_t rank, size_t header_bytes):
        if status == SEND_PEER_LOST:
            raise PeerLostError(rank, f"rank {rank} {self._why_lost(rank)}: cannot send to it")
        if status == SEND_NO_MEMORY:
            raise TransportError(
                f"the transport refused a message to rank {rank}: out of memory, body too long, or header of "
                f"{header_bytes} bytes above {MAX_HEADER_BYTES}")

    def _why_lost(self, uint32_t rank):
        return next((loss.why for loss in self.lost if loss.rank == rank), NOT_CONNECTED)

    def progress(self) -> int:
        """One call of the transport's progress(); returns what it returned."""
        cdef int work
        with nogil:
            work = self.transport.progress()
        self._settle()
        return work

    def _settle(self):
        cdef SendHandle handle
        cdef list waiting
        if self.finished_sends == 0:
            return
        self.finished_sends = 0
        waiting = []
        for handle in self.unfinished:
            if handle.state.done_calls == 0:
                waiting.append(handle)
            else:
                handle.release_buffers()
                Py_DECREF(handle)
        self.unfinished = waiting

    def receive(self, timeout_s) -> Message:
        """Returns the next message, waiting for it. Raises WaitTimeoutError."""
        cdef int64_t deadline_ns = self.deadline(timeout_s)
        while not self.arrived:
            self.step(deadline_ns, "a message", timeout_s)
        return self.arrived.popleft()

    def receive_many(self, count: int, timeout_s) -> list:
        """Returns the next ``count`` messages, waiting for them. Raises WaitTimeoutError and keeps what came."""
        cdef int64_t deadline_ns = self.deadline(timeout_s)
        while len(self.arrived) < count:
            self.step(deadline_ns, f"{count} messages ({len(self.arrived)} are here)", timeout_s)
        return [self.arrived.popleft() for _ in range(count)]

    def wait_lost(self, uint32_t rank, timeout_s) -> str:
        """Waits for the loss of ``rank``; returns the reason. Raises WaitTimeoutError."""
        cdef int64_t deadline_ns = self.deadline(timeout_s)
        while all(loss.rank != rank for loss in self.lost):
            self.step(deadline_ns, f"the loss of rank {rank}", timeout_s)
        return self._why_lost(rank)

    def run_for(self, duration_s) -> None:
        """Makes progress for ``duration_s``, sleeping when there is nothing to do."""
        cdef int64_t deadline_ns = self.deadline(duration_s)
        while self.transport.now_ns() < deadline_ns:
            with nogil:
                self.advance(True, deadline_ns)
            self._settle()

    @property
    def pending(self) -> int:
        """Messages received and not yet taken."""
        return len(self.arrived)

    # -- peers ---------------------------------------------------------------------------------------------------------

    def is_alive(self, uint32_t rank) -> bool:
        """Whether ``rank`` can be sent to."""
        return self.transport.is_alive(rank)

    def backlog_bytes(self, uint32_t rank) -> int:
        """Bytes accepted for ``rank`` and not yet handed to the network."""
        return self.transport.backlog_bytes(rank)

    def silence_s(self, uint32_t rank) -> float:
        """Seconds since the last byte from ``rank``."""
        return (self.transport.now_ns() - self.transport.last_heard_ns(rank)) * 1e-9

    def expect_close(self, uint32_t rank) -> None:
        """From now on the disconnection of ``rank`` is no loss."""
        self.transport.expect_close(rank)

    def drop(self, uint32_t rank, why: str) -> None:
        """Declares ``rank`` lost; reported by the next progress()."""
        cdef bytes text = why.encode()
        self.transport.drop(rank, text)

    def arm(self) -> bool:
        """Whether one may now sleep on ``fileno()``."""
        return self.transport.arm()

    def fileno(self) -> int:
        """The descriptor that becomes readable when there is work, after a successful arm()."""
        return self.transport.event_fd()

    def close(self, timeout_s=5.0) -> None:
        """Closes the transport."""
        self.transport.close(timeout_s)
        self._settle()

    # -- inside --------------------------------------------------------------------------------------------------------

    cdef int64_t deadline(self, timeout_s) except -1:
        return self.transport.now_ns() + <int64_t>wait_ns(timeout_s)

    cdef int step(self, int64_t deadline_ns, str what, double timeout_s) except -1:
        """Progress, or sleep until there may be some."""
        if self.transport.now_ns() > deadline_ns:
            raise WaitTimeoutError(f"waited {timeout_s:g} s for {what}")
        with nogil:
            self.advance(True, deadline_ns)
        self._settle()
        return 0

    cdef void advance(self, bint may_sleep, int64_t deadline_ns) noexcept nogil:
        cdef pollfd entry
        cdef int64_t left_ms
        if self.transport.progress() > 0 or not may_sleep or not self.transport.arm():
            return
        entry.fd = self.transport.event_fd()
        entry.events = POLLIN
        left_ms = (deadline_ns - self.transport.now_ns()) // 1000000 + 1
        if entry.fd >= 0 and left_ms > 0:
            poll(&entry, 1, <int>min(left_ms, 200))    # now and then up: Python may have a signal to handle

    cdef void give_up(self, uint32_t rank, int loss) noexcept nogil:
        cdef char why[160]
        snprintf(why, sizeof(why), loss_text(loss), self.transport.rank)
        self.transport.drop(rank, why)

    cdef void take(
            self, uint32_t source, uint8_t message_id,
            const char* header, size_t header_bytes, const char* body, size_t body_bytes) noexcept nogil:
        if self.auto_echo:
            self.send_back(source, message_id, header, header_bytes, body, body_bytes)
        else:
            with gil:
                self.arrived.append(Message(source, message_id, header[:header_bytes], body[:body_bytes]))

    cdef void send_back(
            self, uint32_t source, uint8_t message_id,
            const char* header, size_t header_bytes, const char* body, size_t body_bytes) noexcept nogil:
        cdef char* block = self.transport.allocate(ECHO_COPY_BYTES + body_bytes)
        cdef EchoCopy* copy = <EchoCopy*>block
        cdef Piece piece
        if block == NULL:
            self.give_up(source, LOSS_NO_MEMORY_TO_SEND)
            return
        copy.messenger = <void*>self
        copy.size_bytes = ECHO_COPY_BYTES + body_bytes
        memcpy(block + ECHO_COPY_BYTES, body, body_bytes)
        piece.data = block + ECHO_COPY_BYTES
        piece.size_bytes = body_bytes
        piece.memory = HOST_MEMORY
        self.echoed_messages += 1
        if self.transport.send(source, message_id, header, header_bytes, &piece, 1, _release_echo, copy) != SEND_OK:
            self.transport.release(block, copy.size_bytes)
