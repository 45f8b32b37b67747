"""The tcp transport: non-blocking sockets, gathered writes, frames parsed where they arrive.

Called by: ``registry``, which makes it; the engine, per message. ``tcp_connect`` makes its connections.

Guarantees
    * As ``base.pxd``; besides, messages between two ranks keep their order. Memory received but not delivered is
      bounded by one receive buffer and one message per peer: a slow receiver makes its senders queue, by reference.
    * No byte of a peer is believed before a length check; a malformed frame costs that peer its connection, no more.
Assumptions
    * The caller serialises all calls (``base.pxd``); ``connect`` and ``close`` come before and after the data path.
    * Host memory only: a CUDA piece is refused with SEND_NO_MEMORY, as is a body above 4 GiB.
"""

from libc.errno cimport EAGAIN, ECONNRESET, EINTR, ENOBUFS, ENOMEM, EPIPE, ETIMEDOUT, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strerror
from libcpp.vector cimport vector
from posix.uio cimport iovec
from posix.unistd cimport close as close_descriptor

from intentpm.foundation.losses cimport (
    LOSS_CONNECTION_BROKE, LOSS_CONNECTION_CLOSED, LOSS_MALFORMED, LOSS_NO_ANSWER, LOSS_NO_MEMORY_TO_RECEIVE,
    LOSS_NO_MEMORY_TO_SEND, loss_text)
from intentpm.foundation.system cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, epoll_create1, epoll_ctl, epoll_event, epoll_wait)
from intentpm.transports.base cimport (
    SEND_NO_MEMORY, SEND_OK, SEND_PEER_LOST, Piece, SendStatus, Transport, done_fn)
from intentpm.transports.buffer_pool cimport pool_clear
from intentpm.transports.framing cimport (
    FRAME_COMPLETE, FRAME_NO_MEMORY, PROTOCOL_VERSION, Frame, FrameStatus, describe_frame_error,
    reader_clear, reader_commit, reader_next, reader_space)
from intentpm.transports.message_store cimport (
    StoredMessage, is_storable, list_append, list_clear, list_pop, store_message)
from intentpm.transports.send_queue cimport (
    SendItem, item_advance, item_clear, item_code, item_gather, item_start, queue_advance, queue_fail, queue_gather,
    queue_keep, spare_clear)
from intentpm.transports.tcp_room cimport LOOK_BYTES, fit_room
from intentpm.transports.tcp_socket cimport (
    end_sending, has_room, is_acknowledged, receive, send_gathered, total_bytes)
from intentpm.transports.word_coding cimport LEAST_CODED_BYTES

import os
from importlib.metadata import version

from intentpm.foundation.deadlines import wait_ns, wait_s
from intentpm.foundation.errors import ConfigError, TransportError
from intentpm.transports.process_ends import ProcessEnds, processes_here
from intentpm.transports.tcp_address import (
    Identity, RankAddress, check_secret, decode_address, encode_address, open_listeners)
from intentpm.transports.tcp_connect import connect_ranks, set_data_path_options
from intentpm.transports.tcp_room import most_room_bytes


cdef class TcpTransport(Transport):
    """Ranks connected by one TCP connection per pair, IPv4 or IPv6.

    Parameters
        rank, size: who this is, of how many.
        secret: at least 16 bytes known to the ranks of the job alone; proven by both sides of each connection.
        host: address, host name or interface name to listen on. None: all, and the peers pick what reaches them.
        port: to listen on while connecting. 0: any free one.
        peer_timeout_s: seconds of unanswered data after which the operating system gives a connection up.
    Raises
        ConfigError: the secret is too short, rank is not below size.
        TransportError: the port is taken, the host is not here.
    Threads: as ``base.pxd``: one caller at a time.
    """

    def __cinit__(self):
        self.epoll_fd = -1

    def __init__(self, rank: int, size: int, secret: bytes, *, host=None, port: int = 0, peer_timeout_s=10.0):
        if not 0 <= rank < size:
            raise ConfigError(f"rank {rank} of {size}: the rank must be from 0 to {size - 1}")
        self.rank = rank
        self.size = size
        self.name = "tcp"
        self.peer_timeout_s = wait_s(peer_timeout_s, "peer_timeout_s")
        self.most_room_bytes = most_room_bytes()
        secret = check_secret(secret)
        self.identity = Identity(rank, size, secret, os.urandom(16), version("intentpm"), PROTOCOL_VERSION)
        self.peers = <Peer*>calloc(size, sizeof(Peer))
        if self.peers == NULL:
            raise MemoryError(f"no memory for {size} connections")
        for index in range(size):
            self.peers[index].fd = -1
            self.peers[index].rank = index
            self.peers[index].reader.pool = &self.pool
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd < 0:
            raise TransportError(f"epoll is not available: {os.strerror(errno)}")
        self.listeners, self.candidates = open_listeners(host, port)

    def __dealloc__(self):
        if self.peers != NULL:
            self.release_all(True)
            free(self.peers)

    def address(self) -> bytes:
        me = self.identity
        return encode_address(
            RankAddress(me.rank, me.size, me.instance.hex(), me.package_version, me.protocol_version, self.candidates,
                        processes_here(), os.getpid()),
            me.secret)

    def connect(self, addresses, timeout_s) -> None:
        try:
            if len(addresses) != self.size:
                raise TransportError(f"{len(addresses)} addresses for {self.size} ranks: one per rank is needed")
            decoded = [decode_address(payload, rank, self.identity) for rank, payload in enumerate(addresses)]
            sockets = connect_ranks(self.identity, self.listeners, decoded, wait_s(timeout_s), self.peer_timeout_s)
        finally:
            self._close_listeners()
        here = processes_here()
        self.processes = {address.rank: address.process for address in decoded if address.is_seen_by(here)}
        for rank, sock in sockets.items():
            name = "%s port %s" % sock.getpeername()[:2]
            set_data_path_options(sock, self.peer_timeout_s)
            self.adopt(rank, sock.detach(), name.replace("::ffff:", "").encode())

    def watch_processes(self) -> None:
        self.process_ends = ProcessEnds(self.processes)

    def has_ended(self, rank: int) -> bool:
        return self.process_ends is not None and self.process_ends.has_ended(rank)

    def close(self, timeout_s=5.0) -> None:
        cdef int64_t deadline_ns = self.now_ns() + <int64_t>wait_ns(timeout_s)
        if self.process_ends is not None:
            self.process_ends.close()
        if self.is_closed:
            return
        self._close_listeners()
        for rank in range(self.size):
            self.expect_close(rank)
        with nogil:
            self.flush_until(deadline_ns)
            self.linger_until(deadline_ns)
            self.release_all(False)

    def describe(self) -> dict:
        peers = [self.peers[rank].name.decode() for rank in range(self.size)]
        return {
            "name": self.name, "protocol_version": PROTOCOL_VERSION, "peer_timeout_s": self.peer_timeout_s,
            "listens_on": [f"{candidate.host} port {candidate.port}" for candidate in self.candidates],
            "peers": {rank: name for rank, name in enumerate(peers) if name},
        }

    def _close_listeners(self):
        for listener in self.listeners or ():
            listener.close()
        self.listeners = []

    cdef int adopt(self, uint32_t rank, int fd, bytes name) except -1:
        """Takes over the connected socket of ``rank``."""
        cdef Peer* peer = &self.peers[rank]
        cdef epoll_event event
        peer.fd = fd
        peer.state = PEER_OPEN
        peer.last_heard_ns = self.now_ns()
        snprintf(peer.name, sizeof(peer.name), "%s", <const char*>name)
        self.connected.push_back(rank)
        event.events = EPOLLIN
        event.data.u32 = rank
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0:
            raise TransportError(f"cannot watch the connection to rank {rank}: {os.strerror(errno)}")
        return 0

    # -- losing a peer -------------------------------------------------------------------------------------------------

    cdef void cut_peer(self, Peer* peer, const char* why) noexcept nogil:
        """Closes the connection now; the report waits for progress(), where callbacks are allowed."""
        if peer.state != PEER_OPEN and peer.state != PEER_BROKEN:
            return
        if peer.state == PEER_OPEN:
            snprintf(peer.why, WHY_BYTES, "%s (%s)", why, peer.name)
        peer.state = PEER_CUT
        close_descriptor(peer.fd)
        peer.fd = -1
        self.cut.push_back(peer.rank)

    cdef void cut_peer_by_errno(self, Peer* peer, int error) noexcept nogil:
        cdef char why[WHY_BYTES]
        if error == ETIMEDOUT:
            snprintf(why, WHY_BYTES, loss_text(LOSS_NO_ANSWER), self.rank, self.peer_timeout_s)
        elif error == ECONNRESET:
            snprintf(why, WHY_BYTES, "%s", loss_text(LOSS_CONNECTION_CLOSED))
        else:
            snprintf(why, WHY_BYTES, loss_text(LOSS_CONNECTION_BROKE), self.rank, strerror(error))
        self.cut_peer(peer, why)

    cdef void cut_peer_for(self, Peer* peer, int loss) noexcept nogil:
        """``loss``: one that is given at most this rank."""
        cdef char why[WHY_BYTES]
        snprintf(why, WHY_BYTES, loss_text(loss), self.rank)
        self.cut_peer(peer, why)

    cdef void cut_peer_by_frame(self, Peer* peer, FrameStatus status) noexcept nogil:
        cdef char why[WHY_BYTES]
        if status == FRAME_NO_MEMORY:
            self.cut_peer_for(peer, LOSS_NO_MEMORY_TO_RECEIVE)
            return
        snprintf(why, WHY_BYTES, loss_text(LOSS_MALFORMED), self.rank, describe_frame_error(status))
        self.cut_peer(peer, why)

    cdef void break_sending(self, Peer* peer, int error) noexcept nogil:
        # A peer that closed after its last message resets what we send it, while that message may still wait unread
        # here: keep reading. After EPIPE or a reset, recv() comes to an end by itself.
        if error != EPIPE and error != ECONNRESET:
            self.cut_peer_by_errno(peer, error)
            return
        snprintf(peer.why, WHY_BYTES, "%s (%s)", loss_text(LOSS_CONNECTION_CLOSED), peer.name)
        peer.state = PEER_BROKEN

    cdef int report_cut(self) noexcept nogil:
        cdef vector[uint32_t] ranks
        cdef Peer* peer
        cdef size_t index
        ranks.swap(self.cut)
        for index in range(ranks.size()):
            peer = &self.peers[ranks[index]]
            peer.state = PEER_GONE
            reader_clear(&peer.reader)
            self.forget_connection(peer.rank)
            self.finished += queue_fail(&peer.queue, 1, False, &self.spare_items)
            if not peer.expects_close and self.on_lost != NULL:
                self.on_lost(self.context, peer.rank, peer.why)
        return <int>ranks.size()

    cdef void forget_connection(self, uint32_t rank) noexcept nogil:
        cdef size_t index
        for index in range(self.connected.size()):
            if self.connected[index] == rank:
                self.connected[index] = self.connected.back()
                self.connected.pop_back()
                return

    # -- sending -------------------------------------------------------------------------------------------------------

    cdef SendStatus send(
            self, uint32_t destination, uint8_t message_id, const char* header, size_t header_bytes,
            const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil:
        cdef SendItem item
        cdef Peer* peer
        if destination == self.rank:
            return self.send_to_self(message_id, header, header_bytes, pieces, piece_count, done, argument)
        if destination >= self.size or self.peers[destination].state != PEER_OPEN:
            return SEND_PEER_LOST
        peer = &self.peers[destination]
        if not item_start(
                &item, message_id, self.due_ns, header, header_bytes, pieces, piece_count, done, argument):
            return SEND_NO_MEMORY
        if peer.queue.head == NULL and not self.is_corked:
            self.write_now(peer, &item)
            if peer.state != PEER_OPEN:
                return SEND_PEER_LOST
        if item.unsent_bytes == item.frame_bytes:
            self.code(peer, &item)
        if item.unsent_bytes > 0 and not self.keep_unsent(peer, &item):
            return SEND_PEER_LOST if peer.state != PEER_OPEN else SEND_NO_MEMORY
        self.sent_messages += 1
        self.sent_bytes += item.frame_bytes
        if (item.unsent_bytes == 0 or item.coded != NULL) and done != NULL:
            done(argument, 0)
        elif self.is_corked and peer.queue.unsent_bytes > CORK_BYTES:
            self.flush_peer(peer)
        return SEND_OK

    cdef SendStatus send_to_self(
            self, uint8_t message_id, const char* header, size_t header_bytes,
            const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil:
        cdef StoredMessage* message
        if self.is_closed:
            return SEND_PEER_LOST
        if not is_storable(header_bytes, pieces, piece_count):
            return SEND_NO_MEMORY
        message = store_message(self.rank, message_id, header, header_bytes, pieces, piece_count)
        if message == NULL:
            return SEND_NO_MEMORY
        list_append(&self.own_messages, message)
        if done != NULL:
            done(argument, 0)
        return SEND_OK

    cdef void write_now(self, Peer* peer, SendItem* item) noexcept nogil:
        """Hands the socket as much of ``item`` as it takes."""
        cdef iovec entries[GATHER_ENTRIES]
        cdef size_t count, offered
        cdef ssize_t sent
        while item.unsent_bytes > 0:
            count = item_gather(item, entries, GATHER_ENTRIES)
            offered = total_bytes(entries, count)
            sent = send_gathered(peer.fd, entries, count)
            if sent < 0:
                self.note_refused_write(peer, errno)
                return
            item_advance(item, sent)
            self.note_taken(peer, sent)
            if <size_t>sent < offered:
                peer.is_full = True
                return
        peer.room.ran_empty = True

    cdef void code(self, Peer* peer, SendItem* item) noexcept nogil:
        """Of a message that has to wait: its body, if that is long and the link slow."""
        cdef size_t whole_bytes = item.frame_bytes
        if whole_bytes < LEAST_CODED_BYTES:
            return
        if not self.codes_all and not (peer.room.is_slow and peer.queue.unsent_bytes >= CODED_BACKLOG_BYTES):
            return
        if item_code(item):
            item.done = NULL                     # ``send`` calls it
            self.spared_bytes += whole_bytes - item.frame_bytes

    cdef inline void note_taken(self, Peer* peer, size_t size_bytes) noexcept nogil:
        """The socket took so many bytes."""
        peer.room.taken_bytes += size_bytes
        if peer.room.is_slow:
            peer.room.slow_bytes += size_bytes
            self.slow_bytes += size_bytes
        if peer.room.taken_bytes >= LOOK_BYTES:
            fit_room(peer.fd, &peer.room, self.most_room_bytes, self.slow_bytes)

    cdef void note_refused_write(self, Peer* peer, int error) noexcept nogil:
        if error == EAGAIN:
            peer.is_full = True
        elif error != ENOBUFS and error != ENOMEM:
            self.break_sending(peer, error)

    cdef bint keep_unsent(self, Peer* peer, SendItem* item) noexcept nogil:
        if not queue_keep(&peer.queue, item, self.now_ns(), &self.spare_items):
            item_clear(item)
            if item.unsent_bytes < item.frame_bytes:
                self.cut_peer_for(peer, LOSS_NO_MEMORY_TO_SEND)
            return False
        if not peer.is_backlogged:
            peer.is_backlogged = True
            self.backlogged.push_back(peer.rank)
        return True

    cdef void flush_peer(self, Peer* peer) noexcept nogil:
        cdef iovec entries[GATHER_ENTRIES]
        cdef size_t count, offered
        cdef ssize_t sent
        if peer.is_full and not has_room(peer.fd):
            return
        peer.is_full = False
        while peer.queue.head != NULL and peer.state == PEER_OPEN:
            count = queue_gather(&peer.queue, entries, GATHER_ENTRIES)
            offered = total_bytes(entries, count)
            sent = send_gathered(peer.fd, entries, count)
            if sent < 0:
                self.note_refused_write(peer, errno)
                return
            self.finished += queue_advance(&peer.queue, sent, &self.spare_items)
            self.note_taken(peer, sent)
            if <size_t>sent < offered:
                peer.is_full = True
                return
        peer.room.ran_empty = True

    cdef void flush_backlogged(self) noexcept nogil:
        cdef size_t index = 0
        cdef Peer* peer
        while index < self.backlogged.size():
            peer = &self.peers[self.backlogged[index]]
            self.flush_peer(peer)
            if peer.state == PEER_BROKEN:
                self.finished += queue_fail(&peer.queue, 1, False, &self.spare_items)
            # A cut peer's queue is failed by report_cut().
            if peer.queue.head == NULL or peer.state != PEER_OPEN:
                peer.is_backlogged = False
                self.backlogged[index] = self.backlogged.back()
                self.backlogged.pop_back()
            else:
                index += 1

    # -- receiving -----------------------------------------------------------------------------------------------------

    cdef int progress(self) noexcept nogil:
        cdef int work
        if self.is_closed:
            return 0
        self.finished = 0
        self.is_corked = True
        work = self.deliver_own() if self.own_messages.head != NULL else 0
        work += self.poll_each() if self.connected.size() <= DIRECT_POLL_PEERS else self.poll_ready()
        self.is_corked = False
        if not self.backlogged.empty():
            self.flush_backlogged()
        if not self.cut.empty():
            work += self.report_cut()
        return work + self.finished

    cdef int deliver_own(self) noexcept nogil:
        """What this rank sent itself before this call; what handlers add waits for the next."""
        cdef MessageList batch = self.own_messages
        cdef StoredMessage* message
        cdef int delivered = 0
        memset(&self.own_messages, 0, sizeof(MessageList))
        message = list_pop(&batch)
        while message != NULL:
            self.on_message(
                self.context, self.rank, message.message_id,
                message.header, message.header_bytes, message.body, message.body_bytes)
            free(message)
            delivered += 1
            message = list_pop(&batch)
        return delivered

    cdef int poll_each(self) noexcept nogil:
        cdef int work = 0
        cdef size_t index
        for index in range(self.connected.size()):
            work += self.receive_from(&self.peers[self.connected[index]])
        return work

    cdef int poll_ready(self) noexcept nogil:
        cdef epoll_event ready[64]
        cdef int work = 0, index
        cdef int count = epoll_wait(self.epoll_fd, ready, 64, 0)
        for index in range(count):
            work += self.receive_from(&self.peers[ready[index].data.u32])
        return work

    cdef int receive_from(self, Peer* peer) noexcept nogil:
        cdef int work = 0, _turn
        cdef size_t room
        cdef ssize_t received
        cdef char* where = NULL
        for _turn in range(RECEIVES_PER_POLL):
            if peer.state != PEER_OPEN and peer.state != PEER_BROKEN:
                break
            room = reader_space(&peer.reader, &where)
            if room == 0:
                self.cut_peer_for(peer, LOSS_NO_MEMORY_TO_RECEIVE)
                break
            received = receive(peer.fd, where, room)
            if received <= 0:
                if received == 0:
                    self.cut_peer_for(peer, LOSS_CONNECTION_CLOSED)
                elif errno != EAGAIN and errno != EINTR:
                    self.cut_peer_by_errno(peer, errno)
                break
            peer.last_heard_ns = self.now_ns()
            reader_commit(&peer.reader, received)
            work += self.deliver_frames(peer)
            if <size_t>received < room:
                break
        return work

    cdef int deliver_frames(self, Peer* peer) noexcept nogil:
        cdef Frame frame
        cdef FrameStatus status
        cdef int delivered = 0
        while True:
            status = reader_next(&peer.reader, &frame)
            if status != FRAME_COMPLETE:
                break
            delivered += 1
            self.received_messages += 1
            self.received_bytes += frame.frame_bytes
            self.on_message(
                self.context, peer.rank, frame.message_id,
                frame.header, frame.header_bytes, frame.body, frame.body_bytes)
            if peer.state == PEER_CUT:
                return delivered    # the handler dropped this peer
        if status < 0:
            self.cut_peer_by_frame(peer, status)
        return delivered

    # -- waiting -------------------------------------------------------------------------------------------------------

    cdef int event_fd(self) noexcept nogil:
        return self.epoll_fd

    cdef bint arm(self) noexcept nogil:
        cdef size_t index
        cdef Peer* peer
        if self.own_messages.head != NULL or not self.cut.empty():
            return False
        for index in range(self.connected.size()):
            peer = &self.peers[self.connected[index]]
            if peer.waits_for_room != peer.is_backlogged and not self.watch_for_room(peer, peer.is_backlogged):
                return False
        return True

    cdef bint watch_for_room(self, Peer* peer, bint wanted) noexcept nogil:
        cdef epoll_event event
        event.events = EPOLLIN | EPOLLOUT if wanted else EPOLLIN
        event.data.u32 = peer.rank
        peer.waits_for_room = wanted
        return epoll_ctl(self.epoll_fd, EPOLL_CTL_MOD, peer.fd, &event) == 0

    # -- state of a peer -----------------------------------------------------------------------------------------------

    cdef bint is_alive(self, uint32_t rank) noexcept nogil:
        if rank == self.rank:
            return not self.is_closed
        return rank < self.size and self.peers[rank].state == PEER_OPEN

    cdef int64_t last_heard_ns(self, uint32_t rank) noexcept nogil:
        return self.now_ns() if rank == self.rank else self.peers[rank].last_heard_ns

    cdef void expect_close(self, uint32_t rank) noexcept nogil:
        self.peers[rank].expects_close = True

    cdef void drop(self, uint32_t rank, const char* why) noexcept nogil:
        if rank != self.rank:
            self.cut_peer(&self.peers[rank], why)

    cdef size_t backlog_bytes(self, uint32_t rank) noexcept nogil:
        return self.peers[rank].queue.unsent_bytes

    # -- the end -------------------------------------------------------------------------------------------------------

    cdef void flush_until(self, int64_t deadline_ns) noexcept nogil:
        """Sends what is queued. Messages that still arrive are discarded: their senders may be flushing as well."""
        cdef char scratch[1 << 14]
        cdef epoll_event ready[1]
        cdef size_t index
        while True:
            self.flush_backlogged()
            self.discard_received(scratch, sizeof(scratch))
            self.report_cut()
            if self.backlogged.empty() or self.now_ns() >= deadline_ns:
                return
            for index in range(self.backlogged.size()):
                self.watch_for_room(&self.peers[self.backlogged[index]], True)
            epoll_wait(self.epoll_fd, ready, 1, 10)

    cdef void linger_until(self, int64_t deadline_ns) noexcept nogil:
        """Waits until the peers' systems have acknowledged all: closing earlier with unread data would destroy it."""
        cdef char scratch[1 << 14]
        cdef epoll_event ready[1]
        cdef size_t index
        cdef Peer* peer
        cdef bint drained
        for index in range(self.connected.size()):
            end_sending(self.peers[self.connected[index]].fd)
        while True:
            # From all of them, also from those that have all of ours: a peer can only end once we took what it sends.
            self.discard_received(scratch, sizeof(scratch))
            drained = True
            for index in range(self.connected.size()):
                peer = &self.peers[self.connected[index]]
                drained = (peer.state == PEER_CUT or is_acknowledged(peer.fd)) and drained
            if drained or self.now_ns() >= deadline_ns:
                return
            epoll_wait(self.epoll_fd, ready, 1, 1)

    cdef void discard_received(self, char* scratch, size_t scratch_bytes) noexcept nogil:
        cdef size_t index
        cdef ssize_t received
        cdef Peer* peer
        for index in range(self.connected.size()):
            peer = &self.peers[self.connected[index]]
            if peer.state == PEER_CUT:
                continue
            received = receive(peer.fd, scratch, scratch_bytes)
            while received > 0:
                received = receive(peer.fd, scratch, scratch_bytes)
            if received == 0 or (errno != EAGAIN and errno != EINTR):
                self.cut_peer_for(peer, LOSS_CONNECTION_CLOSED)

    cdef void release_all(self, bint silent) noexcept nogil:
        cdef uint32_t rank
        cdef Peer* peer
        self.is_closed = True
        for rank in range(self.size):
            peer = &self.peers[rank]
            if peer.fd >= 0:
                close_descriptor(peer.fd)
                peer.fd = -1
            peer.state = PEER_GONE
            queue_fail(&peer.queue, 1, silent, &self.spare_items)
            reader_clear(&peer.reader)
        self.connected.clear()
        self.backlogged.clear()
        self.cut.clear()
        list_clear(&self.own_messages)
        spare_clear(&self.spare_items)
        pool_clear(&self.pool)
        if self.epoll_fd >= 0:
            close_descriptor(self.epoll_fd)
            self.epoll_fd = -1
