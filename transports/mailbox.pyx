"""Measures a transport: round trips and streams, in loops without the GIL.

Called by: the contract suite, ``doctor`` and the benches, which drive every transport through this class.

Guarantees (beyond ``messenger.pxd``)
    * The loss of a measurement's peer ends it with PeerLostError.
    * A ping is answered by whatever call makes progress; ``echo`` and ``sink`` only wait for their messages.
Assumption: as ``messenger.pxd``. Message ids from 250 are its own.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libcpp.vector cimport vector

from intentpm.foundation.losses cimport LOSS_MEASUREMENT_ENDED
from intentpm.transports.base cimport HOST_MEMORY, SEND_OK, Piece, SendStatus
from intentpm.transports.messenger cimport FIRST_OWN_ID, Messenger

import numpy as np

from intentpm.foundation.errors import PeerLostError, WaitTimeoutError
from intentpm.foundation.losses import while_waiting

cdef enum:
    PING = 250
    PONG = 251
    STREAM = 252
    STREAM_READ = 253
    STREAM_WINDOW_BYTES = 1 << 23


@cython.no_gc_clear
cdef class Mailbox(Messenger):
    """A Messenger that also measures its transport."""

    # Messages of each kind so far, and how many of them were waited for. Guarded by: the one thread that uses this.
    cdef int64_t pings, pings_awaited, pongs, streamed, streamed_awaited, stream_reads
    # What answers are sent from; the last one is in use, the others may still be read. Guarded as above.
    cdef vector[char*] reply_buffers
    cdef vector[size_t] reply_sizes

    def __dealloc__(self):
        cdef size_t index
        if self.transport is None:
            return
        for index in range(self.reply_buffers.size()):
            self.transport.release(self.reply_buffers[index], self.reply_sizes[index])

    def pingpong(self, uint32_t peer, size_t size_bytes, int iterations, timeout_s=60.0, bint sleep=False):
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

    def echo(self, uint32_t peer, int iterations, timeout_s=60.0, bint sleep=False) -> None:
        """Answers ``iterations`` pings of ``peer``, earlier ones included. Raises WaitTimeoutError, PeerLostError."""
        cdef int64_t deadline_ns = self.deadline(timeout_s)
        self.pings_awaited += iterations
        with nogil:
            self.poll_count(&self.pings, self.pings_awaited, peer, sleep, deadline_ns)
        self._check_count(self.pings, self.pings_awaited, peer, f"{iterations} pings of rank {peer}", timeout_s)
        self.flush(peer, deadline_ns, timeout_s)

    def stream(self, uint32_t peer, size_t size_bytes, int count, timeout_s=60.0, bint sleep=True) -> float:
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
            self.give_up(peer, LOSS_MEASUREMENT_ENDED)
            self.progress()

    def sink(self, uint32_t peer, int count, timeout_s=60.0, bint sleep=True) -> None:
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
            raise PeerLostError(peer, while_waiting(peer, self._why_lost(peer), what))
        raise WaitTimeoutError(f"waited {timeout_s:g} s for {what}: {awaited - counted} to come")

    # -- inside --------------------------------------------------------------------------------------------------------

    cdef int flush(self, uint32_t peer, int64_t deadline_ns, double timeout_s) except -1:
        while self.transport.backlog_bytes(peer) > 0:
            self.step(deadline_ns, f"an answer to leave for rank {peer}", timeout_s)
        return 0

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
        if message_id < FIRST_OWN_ID:
            Messenger.take(self, source, message_id, header, header_bytes, body, body_bytes)
        elif message_id == PING:
            self.answer_ping(source, body_bytes)
        elif message_id == PONG:
            self.pongs += 1
        elif message_id == STREAM:
            self.streamed += 1
        elif message_id == STREAM_READ:
            self.stream_reads += 1

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
