"""A transport for Python callers and for measurements: messages become Python objects, loops run without the GIL.

The contract suite, ``doctor`` and the benches drive every transport through this class.

Guarantees
    * Every wait has a deadline, sleeps on the transport's event descriptor when there is nothing to do, and raises
      WaitTimeoutError naming what it waited for. The loss of a measurement's peer ends it with PeerLostError.
    * A ping is answered by whatever call makes progress; ``echo`` and ``sink`` only wait for their messages.
Assumptions
    * One thread at a time uses a mailbox, and nothing else uses its transport. Message ids from 250 are its own.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

from intentpm.transports.base cimport (
    HOST_MEMORY, MAX_HEADER_BYTES, SEND_NO_MEMORY, SEND_OK, SEND_PEER_LOST, Piece, SendStatus, Transport)

from collections import deque
from typing import NamedTuple

import numpy as np

from intentpm.foundation.errors import PeerLostError, TransportError, WaitTimeoutError

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    enum: POLLIN
    int poll(pollfd* entries, unsigned long count, int timeout_ms)

cdef enum:
    FIRST_OWN_ID = 250
    PING = 250
    PONG = 251
    STREAM = 252
    STREAM_READ = 253
    STREAM_WINDOW_BYTES = 1 << 23
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


cdef struct SendState:
    int done_calls
    int status
    int* finished                   # the mailbox's count


cdef void _mark_done(void* argument, int status) noexcept nogil:
    cdef SendState* state = <SendState*>argument
    state.done_calls += 1
    state.status = status
    state.finished[0] += 1


cdef class SendHandle:
    """A message on its way. Keeps its buffers exported (so nobody can resize them) until the transport is done."""

    cdef SendState state
    cdef Mailbox mailbox
    cdef uint32_t destination
    cdef vector[Py_buffer] views
    cdef vector[Piece] pieces

    def __cinit__(self, Mailbox mailbox, uint32_t destination, buffers):
        cdef Py_buffer view
        cdef Piece piece
        self.mailbox = mailbox
        self.destination = destination
        self.state.finished = &mailbox.finished_sends
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

    def wait(self, timeout_s: float) -> int:
        """Makes progress until the buffers may be changed; returns ``status``. Raises WaitTimeoutError."""
        cdef int64_t deadline_ns = self.mailbox.deadline(timeout_s)
        while self.state.done_calls == 0:
            self.mailbox.step(deadline_ns, f"a send to rank {self.destination}", timeout_s)
        return self.state.status


cdef struct EchoCopy:
    # A body on its way back, right after this struct: on_message may not keep the one it was given.
    void* mailbox
    size_t size_bytes


cdef void _release_echo(void* argument, int status) noexcept nogil:
    cdef EchoCopy* copy = <EchoCopy*>argument
    (<Mailbox>copy.mailbox).transport.release(<char*>copy, copy.size_bytes)


cdef void _take_message(
        void* context, uint32_t source, uint8_t message_id,
        const char* header, size_t header_bytes, const char* body, size_t body_bytes) noexcept nogil:
    (<Mailbox>context).take(source, message_id, header, header_bytes, body, body_bytes)


cdef void _take_loss(void* context, uint32_t rank, const char* why) noexcept nogil:
    with gil:
        (<Mailbox>context).lost.append(Lost(rank, why.decode(errors="replace")))


cdef void _ignore_message(
        void* context, uint32_t source, uint8_t message_id,
        const char* header, size_t header_bytes, const char* body, size_t body_bytes) noexcept nogil:
    pass


cdef void _ignore_loss(void* context, uint32_t rank, const char* why) noexcept nogil:
    pass


@cython.no_gc_clear
cdef class Mailbox:
    """Puts what ``transport`` receives into Python objects, and measures it. Make it before ``transport.connect()``.

    Attributes
        lost: the losses reported, in order (a list of Lost). One entry per peer at most, or the transport is at fault.
        auto_echo: answer every message at once, inside the handler, with the same id, header and body; do not keep it.
        auto_drop: drop the source of every message, inside the handler.
    """

    cdef readonly Transport transport
    cdef readonly list lost
    cdef public bint auto_echo
    cdef public bint auto_drop
    cdef readonly uint64_t echoed_messages
    cdef int finished_sends
    cdef object arrived
    cdef list unfinished
    cdef int64_t pings, pings_awaited, pongs, streamed, streamed_awaited, stream_reads
    cdef vector[char*] reply_buffers
    cdef vector[size_t] reply_sizes

    def __init__(self, Transport transport not None):
        self.transport = transport
        self.lost = []
        self.arrived = deque()
        self.unfinished = []
        transport.context = <void*>self
        transport.on_message = _take_message
        transport.on_lost = _take_loss

    def __dealloc__(self):
        cdef size_t index
        if self.transport is None:
            return
        self.transport.on_message = _ignore_message
        self.transport.on_lost = _ignore_loss
        for index in range(self.reply_buffers.size()):
            self.transport.release(self.reply_buffers[index], self.reply_sizes[index])

    # -- messages ------------------------------------------------------------------------------------------------------

    def send(self, uint32_t rank, int message_id, bytes header=b"", pieces=()) -> SendHandle:
        """Sends one message; its body is the concatenation of ``pieces`` (contiguous buffers, unchanged until done).

        Raises
            PeerLostError: ``rank`` is gone. Nothing was sent.
            TransportError: the id is not below 250, the header is longer than 256 bytes, the body too long, no memory.
        """
        cdef SendHandle handle = SendHandle(self, rank, pieces)
        cdef SendStatus status
        if not 0 <= message_id < FIRST_OWN_ID:
            raise TransportError(f"message id {message_id}: a mailbox sends ids from 0 to {FIRST_OWN_ID - 1}")
        status = self.transport.send(
            rank, <uint8_t>message_id, header, len(header), handle.pieces.data(), handle.pieces.size(),
            _mark_done, &handle.state)
        self._check_sent(status, rank, len(header))
        if handle.state.done_calls == 0:
            # The transport holds pointers into the handle: keep it, and this mailbox through it.
            Py_INCREF(handle)
            self.unfinished.append(handle)
        else:
            handle.release_buffers()
        return handle

    def _check_sent(self, int status, uint32_t rank, size_t header_bytes):
        if status == SEND_PEER_LOST:
            raise PeerLostError(rank, f"cannot send to rank {rank}: {self._why_lost(rank)}")
        if status == SEND_NO_MEMORY:
            raise TransportError(
                f"the transport refused a message to rank {rank}: out of memory, body too long, or header of "
                f"{header_bytes} bytes above {MAX_HEADER_BYTES}")

    def _why_lost(self, uint32_t rank):
        return next((loss.why for loss in self.lost if loss.rank == rank), "it is not connected")

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

    def receive(self, timeout_s: float) -> Message:
        """Returns the next message, waiting for it. Raises WaitTimeoutError."""
        cdef int64_t deadline_ns = self.deadline(timeout_s)
        while not self.arrived:
            self.step(deadline_ns, "a message", timeout_s)
        return self.arrived.popleft()

    def receive_many(self, count: int, timeout_s: float) -> list:
        """Returns the next ``count`` messages, waiting for them. Raises WaitTimeoutError and keeps what came."""
        cdef int64_t deadline_ns = self.deadline(timeout_s)
        while len(self.arrived) < count:
            self.step(deadline_ns, f"{count} messages ({len(self.arrived)} are here)", timeout_s)
        return [self.arrived.popleft() for _ in range(count)]

    def wait_lost(self, uint32_t rank, timeout_s: float) -> str:
        """Waits for the loss of ``rank``; returns the reason. Raises WaitTimeoutError."""
        cdef int64_t deadline_ns = self.deadline(timeout_s)
        while all(loss.rank != rank for loss in self.lost):
            self.step(deadline_ns, f"the loss of rank {rank}", timeout_s)
        return self._why_lost(rank)

    def run_for(self, duration_s: float) -> None:
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

    def close(self, timeout_s: float = 5.0) -> None:
        """Closes the transport."""
        self.transport.close(timeout_s)
        self._settle()

    # -- measurements --------------------------------------------------------------------------------------------------

    def pingpong(self, uint32_t peer, size_t size_bytes, int iterations, timeout_s: float = 60.0, bint sleep=False):
        """Round trips with ``peer``, which must be making progress: in ``echo``, for comparable numbers.

        Parameters
            size_bytes: of the body, both ways.
            sleep: sleep on the event descriptor while waiting, instead of polling.
        Returns: ndarray int64 (iterations,), nanoseconds per round trip.
        Raises WaitTimeoutError, PeerLostError.
        Threads: the mailbox's; without the GIL.
        """
        cdef int64_t[::1] samples = np.empty(iterations, np.int64)
        cdef char[::1] body = np.zeros(max(size_bytes, 1), np.uint8).view(np.int8)
        cdef int64_t deadline_ns = self.deadline(timeout_s), begin_ns, awaited = self.pongs
        cdef Piece piece
        cdef SendStatus status = SEND_OK
        cdef int index
        piece.data = &body[0]
        piece.size_bytes = size_bytes
        piece.memory = HOST_MEMORY
        with nogil:
            for index in range(iterations):
                begin_ns = self.transport.now_ns()
                awaited += 1
                status = self.transport.send(peer, PING, NULL, 0, &piece, 1, NULL, NULL)
                if status != SEND_OK or not self.poll_count(&self.pongs, awaited, peer, sleep, deadline_ns):
                    break
                samples[index] = self.transport.now_ns() - begin_ns
        self._check_sent(status, peer, 0)
        self._check_count(self.pongs, awaited, peer, f"{iterations} round trips with rank {peer}", timeout_s)
        return np.asarray(samples)

    def echo(self, uint32_t peer, int iterations, timeout_s: float = 60.0, bint sleep=False) -> None:
        """Answers ``iterations`` pings of ``peer``, earlier ones included. Raises WaitTimeoutError, PeerLostError."""
        cdef int64_t deadline_ns = self.deadline(timeout_s)
        self.pings_awaited += iterations
        with nogil:
            self.poll_count(&self.pings, self.pings_awaited, peer, sleep, deadline_ns)
        self._check_count(self.pings, self.pings_awaited, peer, f"{iterations} pings of rank {peer}", timeout_s)
        self.flush(peer, deadline_ns, timeout_s)

    def stream(self, uint32_t peer, size_t size_bytes, int count, timeout_s: float = 60.0, bint sleep=True) -> float:
        """Sends ``count`` messages of ``size_bytes`` to ``peer``, which must be in ``sink``.

        sleep: sleep on the event descriptor when there is nothing to do, as an engine does; else poll.
        Returns: seconds from the first send until ``peer`` said that it has received them all.
        Raises WaitTimeoutError, PeerLostError.
        """
        cdef char[::1] body = np.zeros(max(size_bytes, 1), np.uint8).view(np.int8)
        cdef int64_t deadline_ns = self.deadline(timeout_s), begin_ns = self.transport.now_ns()
        cdef int64_t awaited = self.stream_reads + 1
        cdef Piece piece
        cdef SendStatus status = SEND_OK
        cdef int _index
        piece.data = &body[0]
        piece.size_bytes = size_bytes
        piece.memory = HOST_MEMORY
        with nogil:
            for _index in range(count):
                status = self.transport.send(peer, STREAM, NULL, 0, &piece, 1, NULL, NULL)
                while (self.transport.backlog_bytes(peer) > STREAM_WINDOW_BYTES
                       and self.transport.now_ns() < deadline_ns):
                    self.advance(sleep, deadline_ns)
                if status != SEND_OK or self.transport.now_ns() >= deadline_ns:
                    break
            if status == SEND_OK:
                self.poll_count(&self.stream_reads, awaited, peer, sleep, deadline_ns)
        # ``body`` must outlive what the transport still sends from it.
        if self.stream_reads < awaited:
            self._leave_stream(peer, body)
        self._check_sent(status, peer, 0)
        self._check_count(self.stream_reads, awaited, peer, f"a stream to rank {peer}", timeout_s)
        return (self.transport.now_ns() - begin_ns) * 1e-9

    def _leave_stream(self, uint32_t peer, body):
        if self.transport.backlog_bytes(peer):
            self.transport.drop(peer, b"a measurement was abandoned")
            self.progress()

    def sink(self, uint32_t peer, int count, timeout_s: float = 60.0, bint sleep=True) -> None:
        """Receives ``count`` messages of a ``stream`` and tells ``peer``. Raises WaitTimeoutError, PeerLostError."""
        cdef int64_t deadline_ns = self.deadline(timeout_s)
        self.streamed_awaited += count
        with nogil:
            self.poll_count(&self.streamed, self.streamed_awaited, peer, sleep, deadline_ns)
        what = f"{count} streamed messages of rank {peer}"
        self._check_count(self.streamed, self.streamed_awaited, peer, what, timeout_s)
        self._check_sent(self.transport.send(peer, STREAM_READ, NULL, 0, NULL, 0, NULL, NULL), peer, 0)
        self.flush(peer, deadline_ns, timeout_s)

    def _check_count(self, int64_t counted, int64_t awaited, uint32_t peer, what, timeout_s):
        if counted >= awaited:
            return
        if not self.transport.is_alive(peer):
            raise PeerLostError(peer, f"rank {peer} was lost while waiting for {what}: {self._why_lost(peer)}")
        raise WaitTimeoutError(f"waited {timeout_s:g} s for {what}: {awaited - counted} to come")

    # -- inside --------------------------------------------------------------------------------------------------------

    cdef int64_t deadline(self, double timeout_s):
        return self.transport.now_ns() + <int64_t>(timeout_s * 1e9)

    cdef int step(self, int64_t deadline_ns, str what, double timeout_s) except -1:
        """Progress, or sleep until there may be some."""
        if self.transport.now_ns() > deadline_ns:
            raise WaitTimeoutError(f"waited {timeout_s:g} s for {what}")
        with nogil:
            self.advance(True, deadline_ns)
        self._settle()
        return 0

    cdef int flush(self, uint32_t peer, int64_t deadline_ns, double timeout_s) except -1:
        while self.transport.backlog_bytes(peer) > 0:
            self.step(deadline_ns, f"an answer to leave for rank {peer}", timeout_s)
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

    cdef bint poll_count(
            self, const int64_t* counted, int64_t awaited, uint32_t peer, bint sleep,
            int64_t deadline_ns) noexcept nogil:
        """Makes progress until ``counted`` reaches ``awaited``. False: the deadline passed or the peer is gone."""
        while counted[0] < awaited:
            self.advance(sleep, deadline_ns)
            if counted[0] < awaited and (self.transport.now_ns() > deadline_ns or not self.transport.is_alive(peer)):
                return False
        return True

    cdef void take(
            self, uint32_t source, uint8_t message_id,
            const char* header, size_t header_bytes, const char* body, size_t body_bytes) noexcept nogil:
        if self.auto_drop:
            self.transport.drop(source, "dropped by its first message")
        if message_id == PING:
            self.answer_ping(source, body_bytes)
        elif message_id == PONG:
            self.pongs += 1
        elif message_id == STREAM:
            self.streamed += 1
        elif message_id == STREAM_READ:
            self.stream_reads += 1
        elif self.auto_echo:
            self.send_back(source, message_id, header, header_bytes, body, body_bytes)
        else:
            with gil:
                self.arrived.append(Message(source, message_id, header[:header_bytes], body[:body_bytes]))

    cdef void answer_ping(self, uint32_t source, size_t body_bytes) noexcept nogil:
        # From a buffer of our own that outlives the send; what is in it does not matter.
        cdef Piece piece
        if self.reply_sizes.empty() or self.reply_sizes.back() < body_bytes:
            self.reply_buffers.push_back(self.transport.allocate(body_bytes + 64))
            self.reply_sizes.push_back(body_bytes + 64)
        piece.data = self.reply_buffers.back()
        piece.size_bytes = body_bytes
        piece.memory = HOST_MEMORY
        self.pings += 1
        self.transport.send(source, PONG, NULL, 0, &piece, 1, NULL, NULL)

    cdef void send_back(
            self, uint32_t source, uint8_t message_id,
            const char* header, size_t header_bytes, const char* body, size_t body_bytes) noexcept nogil:
        cdef char* block = self.transport.allocate(ECHO_COPY_BYTES + body_bytes)
        cdef EchoCopy* copy = <EchoCopy*>block
        cdef Piece piece
        if block == NULL:
            self.transport.drop(source, "no memory for an echo")
            return
        copy.mailbox = <void*>self
        copy.size_bytes = ECHO_COPY_BYTES + body_bytes
        memcpy(block + ECHO_COPY_BYTES, body, body_bytes)
        piece.data = block + ECHO_COPY_BYTES
        piece.size_bytes = body_bytes
        piece.memory = HOST_MEMORY
        self.echoed_messages += 1
        if self.transport.send(source, message_id, header, header_bytes, &piece, 1, _release_echo, copy) != SEND_OK:
            self.transport.release(block, copy.size_bytes)
