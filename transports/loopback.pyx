"""The loopback transport: a rank is a thread, a message is a copy in its inbox.

Guarantees
    * As ``base.pxd``; besides, messages between two ranks keep their order. What a rank holds undelivered is bounded:
      a sender whose message finds no room keeps it by reference and is woken when there is some.
    * Waking costs a system call only when the receiver sleeps.
Assumptions
    * Each transport's calls are serialised by its caller; different ranks run on different threads.
    * The inbox locks are held for a few instructions and never across a callback, so one may be taken with the
      GIL.
How a sleeper is never forgotten
    1. receiver: ``is_armed = 1``, then reads ``events``: unchanged, so it sleeps on its descriptor.
    2. sender: ``events += 1``, then takes ``is_armed``: was 1, so it writes the descriptor.
    All four are sequentially consistent: whichever of 1 and 2 comes second sees the other.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free
from libc.string cimport memset
from libcpp.vector cimport vector
from posix.unistd cimport close as close_descriptor, read, usleep, write

from intentpm.foundation.losses cimport LOSS_GAVE_UP, LOSS_TRANSPORT_CLOSED, loss_text
from intentpm.foundation.system cimport EFD_CLOEXEC, EFD_NONBLOCK, eventfd
from intentpm.transports.base cimport (
    SEND_NO_MEMORY, SEND_OK, SEND_PEER_LOST, Piece, SendStatus, Transport, done_fn)
from intentpm.transports.framing cimport FRAME_PREFIX_BYTES, FramePrefix, frame_size
from intentpm.transports.message_store cimport (
    MessageList, StoredMessage, body_size, is_storable, list_append, list_clear, list_pop, store_message)
from intentpm.transports.send_queue cimport (
    SendItem, SendQueue, item_start, queue_advance, queue_fail, queue_keep, spare_clear)

from intentpm.foundation.deadlines import wait_ns
from intentpm.foundation.errors import ConfigError, TransportError


cdef void _notify(Inbox* inbox) noexcept nogil:
    cdef uint64_t one = 1
    inbox.events.fetch_add(1)
    if inbox.is_armed.exchange(0) == 1:
        write(inbox.event_fd, &one, sizeof(one))


cdef class LoopbackNetwork:
    """``size`` ranks in this process; ``transport(rank)`` gives each its end, once. Raises ConfigError."""

    def __init__(self, size: int):
        cdef Inbox* inbox
        if size < 1:
            raise ConfigError(f"a network of {size} ranks: needs at least 1")
        self.size = size
        self.taken = set()
        for _ in range(size):
            inbox = new Inbox()
            self.inboxes.push_back(inbox)
            memset(&inbox.messages, 0, sizeof(MessageList))
            inbox.held_bytes = 0
            inbox.links.resize(size)
            inbox.waiting.resize(size)
            inbox.events.store(0)
            inbox.is_armed.store(0)
            inbox.event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
            if inbox.event_fd < 0:
                raise TransportError("cannot make an event descriptor: too many files are open")

    def __dealloc__(self):
        cdef size_t index
        for index in range(self.inboxes.size()):
            list_clear(&self.inboxes[index].messages)
            if self.inboxes[index].event_fd >= 0:
                close_descriptor(self.inboxes[index].event_fd)
            del self.inboxes[index]

    def transport(self, rank: int) -> LoopbackTransport:
        """Returns the end of ``rank``."""
        if not 0 <= rank < self.size or rank in self.taken:
            raise ConfigError(f"rank {rank} of {self.size}: out of range, or already taken in this network")
        self.taken.add(rank)
        return LoopbackTransport(self, rank)

    # -- any rank's thread ---------------------------------------------------------------------------------------------

    cdef PutResult put(
            self, uint32_t destination, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
            const Piece* pieces, size_t piece_count) noexcept nogil:
        """Copies a message into the inbox of ``destination``, if there is room."""
        cdef Inbox* inbox = self.inboxes[destination]
        cdef size_t size_bytes = body_size(pieces, piece_count) + NODE_BYTES
        cdef PutResult result = self.reserve(inbox, source, size_bytes)
        cdef StoredMessage* message
        if result != PUT_DONE:
            return result
        # The copy is made outside the lock; the room for it is already taken.
        message = store_message(source, message_id, header, header_bytes, pieces, piece_count)
        inbox.lock.lock()
        if message == NULL:
            result = PUT_NO_MEMORY
        elif inbox.links[source] != LINK_UP:
            result = PUT_LOST
        if result == PUT_DONE:
            list_append(&inbox.messages, message)
        else:
            inbox.held_bytes -= size_bytes
        inbox.lock.unlock()
        if result == PUT_DONE:
            _notify(inbox)
        else:
            free(message)
        return result

    cdef PutResult reserve(self, Inbox* inbox, uint32_t source, size_t size_bytes) noexcept nogil:
        cdef PutResult result = PUT_DONE
        inbox.lock.lock()
        if inbox.links[source] != LINK_UP:
            result = PUT_LOST
        elif inbox.held_bytes > 0 and inbox.held_bytes + size_bytes > INBOX_BYTES:
            inbox.waiting[source] = True
            result = PUT_FULL
        else:
            inbox.held_bytes += size_bytes
        inbox.lock.unlock()
        return result

    cdef void set_link(self, uint32_t owner, uint32_t peer, LinkState state) noexcept nogil:
        """Changes how ``owner`` sees its link to ``peer``; the first change counts."""
        cdef Inbox* inbox = self.inboxes[owner]
        inbox.lock.lock()
        if inbox.links[peer] == LINK_UP:
            inbox.links[peer] = state
        inbox.lock.unlock()
        _notify(inbox)


@cython.no_gc_clear
cdef class LoopbackTransport(Transport):
    """One rank's end of a LoopbackNetwork. Made by ``LoopbackNetwork.transport``."""

    def __init__(self, LoopbackNetwork network not None, uint32_t rank):
        cdef SendQueue empty
        memset(&empty, 0, sizeof(empty))
        self.network = network
        self.rank = rank
        self.size = network.size
        self.name = "loopback"
        self.inbox = network.inboxes[rank]
        self.alive.resize(self.size, True)
        self.is_dropped.resize(self.size)
        self.is_backlogged.resize(self.size)
        self.expects_close.resize(self.size)
        self.heard_ns.resize(self.size, self.now_ns())
        self.queues.resize(self.size, empty)
        self.why.resize(self.size)

    def __dealloc__(self):
        if self.network is not None and not self.is_closed:
            self.leave(True)

    def address(self) -> bytes:
        return b"loopback"

    def connect(self, addresses, timeout_s) -> None:
        if list(addresses) != [b"loopback"] * self.size:
            raise TransportError(
                f"the loopback transport connects ranks of one process: expected {self.size} loopback addresses")

    def close(self, timeout_s=5.0) -> None:
        cdef int64_t deadline_ns = self.now_ns() + <int64_t>wait_ns(timeout_s)
        cdef MessageList discarded
        if self.is_closed:
            return
        with nogil:
            memset(&discarded, 0, sizeof(discarded))
            while not self.backlogged.empty() and self.now_ns() < deadline_ns:
                self.flush_backlogged()
                # Others may be closing as well and wait for room here.
                self.take_in(&discarded)
                list_clear(&discarded)
                usleep(100)
            self.leave(False)

    cdef void leave(self, bint silent) noexcept nogil:
        cdef uint32_t rank
        self.is_closed = True
        for rank in range(self.size):
            self.network.set_link(self.rank, rank, LINK_REFUSED)
            if rank != self.rank:
                self.network.set_link(rank, self.rank, LINK_LEFT)
            self.alive[rank] = False
            queue_fail(&self.queues[rank], 1, silent, &self.spare_items)
        self.inbox.lock.lock()
        list_clear(&self.inbox.messages)
        self.inbox.lock.unlock()
        spare_clear(&self.spare_items)
        self.backlogged.clear()
        self.cut.clear()

    # -- sending -------------------------------------------------------------------------------------------------------

    cdef SendStatus send(
            self, uint32_t destination, uint8_t message_id, const char* header, size_t header_bytes,
            const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil:
        cdef PutResult result = PUT_FULL
        if destination >= self.size or not self.alive[destination]:
            return SEND_PEER_LOST
        if not is_storable(header_bytes, pieces, piece_count):
            return SEND_NO_MEMORY
        if self.queues[destination].head == NULL:
            result = self.network.put(destination, self.rank, message_id, header, header_bytes, pieces, piece_count)
        if result == PUT_LOST:
            return SEND_PEER_LOST
        if result == PUT_NO_MEMORY:
            return SEND_NO_MEMORY
        if result == PUT_FULL and not self.keep(
                destination, message_id, header, header_bytes, pieces, piece_count, done, argument):
            return SEND_NO_MEMORY
        self.sent_messages += 1
        self.sent_bytes += frame_size(header_bytes, body_size(pieces, piece_count))
        if result == PUT_DONE and done != NULL:
            done(argument, 0)
        return SEND_OK

    cdef bint keep(
            self, uint32_t destination, uint8_t message_id, const char* header, size_t header_bytes,
            const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil:
        cdef SendItem item
        if not item_start(
                &item, message_id, self.due_ns, header, header_bytes, pieces, piece_count, done, argument):
            return False
        if not queue_keep(&self.queues[destination], &item, self.now_ns(), &self.spare_items):
            return False
        if not self.is_backlogged[destination]:
            self.is_backlogged[destination] = True
            self.backlogged.push_back(destination)
        return True

    cdef void flush_to(self, uint32_t destination) noexcept nogil:
        cdef SendQueue* queue = &self.queues[destination]
        cdef FramePrefix* prefix
        cdef PutResult result
        while queue.head != NULL:
            prefix = <FramePrefix*>queue.head.lead
            result = self.network.put(
                destination, self.rank, prefix.message_id, queue.head.lead + FRAME_PREFIX_BYTES, prefix.header_bytes,
                queue.head.pieces, queue.head.piece_count)
            if result == PUT_DONE:
                self.finished += queue_advance(queue, queue.head.unsent_bytes, &self.spare_items)
            else:
                # No room or memory: later. Lost: the queue is failed when the loss is reported.
                return

    cdef void flush_backlogged(self) noexcept nogil:
        cdef size_t index = 0
        cdef uint32_t rank
        while index < self.backlogged.size():
            rank = self.backlogged[index]
            self.flush_to(rank)
            if self.queues[rank].head == NULL or not self.alive[rank]:
                self.is_backlogged[rank] = False
                self.backlogged[index] = self.backlogged.back()
                self.backlogged.pop_back()
            else:
                index += 1

    # -- receiving -----------------------------------------------------------------------------------------------------

    cdef int progress(self) noexcept nogil:
        cdef MessageList messages
        cdef uint64_t count
        cdef int work = 0
        if self.is_closed:
            return 0
        self.finished = 0
        if self.slept:
            self.slept = False
            self.inbox.is_armed.store(0)
            read(self.inbox.event_fd, &count, sizeof(count))
        if self.inbox.events.load() != self.seen_events:
            memset(&messages, 0, sizeof(messages))
            self.take_in(&messages)
            work += self.deliver(&messages)
        if not self.backlogged.empty():
            self.flush_backlogged()
        if not self.cut.empty():
            work += self.report_cut()
        return work + self.finished

    cdef void take_in(self, MessageList* messages) noexcept nogil:
        """Empties the inbox into ``messages`` and notes which links went down: all they brought is in ``messages``."""
        cdef vector[char] links, waiting
        cdef char why[64]
        cdef uint32_t rank
        cdef StoredMessage* message
        waiting.resize(self.size)
        self.seen_events = self.inbox.events.load()
        self.inbox.lock.lock()
        messages[0] = self.inbox.messages
        memset(&self.inbox.messages, 0, sizeof(MessageList))
        message = messages.head
        while message != NULL:
            self.inbox.held_bytes -= message.body_bytes + NODE_BYTES
            message = message.next
        links = self.inbox.links
        waiting.swap(self.inbox.waiting)
        self.inbox.lock.unlock()
        for rank in range(self.size):
            if links[rank] == LINK_LEFT:
                self.cut_peer(rank, loss_text(LOSS_TRANSPORT_CLOSED))
            elif links[rank] == LINK_DROPPED:
                snprintf(why, sizeof(why), loss_text(LOSS_GAVE_UP), self.rank)
                self.cut_peer(rank, why)
        self.wake_senders(waiting)

    cdef void wake_senders(self, const vector[char]& waiting) noexcept nogil:
        cdef uint32_t rank
        for rank in range(self.size):
            if waiting[rank]:
                _notify(self.network.inboxes[rank])

    cdef int deliver(self, MessageList* messages) noexcept nogil:
        cdef StoredMessage* message = list_pop(messages)
        cdef int delivered = 0
        cdef int64_t now_ns = self.now_ns()
        while message != NULL:
            if not self.is_dropped[message.source]:
                self.heard_ns[message.source] = now_ns
                self.received_messages += 1
                self.received_bytes += frame_size(message.header_bytes, message.body_bytes)
                self.on_message(
                    self.context, message.source, message.message_id,
                    message.header, message.header_bytes, message.body, message.body_bytes)
                delivered += 1
            free(message)
            message = list_pop(messages)
        return delivered

    cdef int report_cut(self) noexcept nogil:
        cdef vector[uint32_t] ranks
        cdef size_t index
        cdef uint32_t rank
        ranks.swap(self.cut)
        for index in range(ranks.size()):
            rank = ranks[index]
            self.finished += queue_fail(&self.queues[rank], 1, False, &self.spare_items)
            if not self.expects_close[rank] and self.on_lost != NULL:
                self.on_lost(self.context, rank, self.why[rank].c_str())
        return <int>ranks.size()

    # -- waiting -------------------------------------------------------------------------------------------------------

    cdef int event_fd(self) noexcept nogil:
        return -1 if self.is_closed else self.inbox.event_fd

    cdef bint arm(self) noexcept nogil:
        if not self.cut.empty():
            return False
        self.inbox.is_armed.store(1)
        if self.inbox.events.load() != self.seen_events:
            self.inbox.is_armed.store(0)
            return False
        self.slept = True
        return True

    # -- state of a peer -----------------------------------------------------------------------------------------------

    cdef bint is_alive(self, uint32_t rank) noexcept nogil:
        return rank < self.size and self.alive[rank]

    cdef int64_t last_heard_ns(self, uint32_t rank) noexcept nogil:
        return self.now_ns() if rank == self.rank else self.heard_ns[rank]

    cdef void expect_close(self, uint32_t rank) noexcept nogil:
        self.expects_close[rank] = True

    cdef void cut_peer(self, uint32_t rank, const char* why) noexcept nogil:
        if self.alive[rank]:
            self.alive[rank] = False
            self.why[rank].assign(why)
            self.cut.push_back(rank)

    cdef void drop(self, uint32_t rank, const char* why) noexcept nogil:
        if rank == self.rank or not self.alive[rank]:
            return
        self.cut_peer(rank, why)
        self.is_dropped[rank] = True
        self.network.set_link(self.rank, rank, LINK_REFUSED)
        self.network.set_link(rank, self.rank, LINK_DROPPED)

    cdef size_t backlog_bytes(self, uint32_t rank) noexcept nogil:
        return self.queues[rank].unsent_bytes
