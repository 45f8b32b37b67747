"""The tcp transport: one connection per pair of ranks, polled from nogil code."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.transports.base cimport Piece, SendStatus, Transport, done_fn
from intentpm.transports.buffer_pool cimport BufferPool
from intentpm.transports.framing cimport FrameReader, FrameStatus
from intentpm.transports.message_store cimport MessageList
from intentpm.transports.send_queue cimport SendItem, SendQueue, SpareItems
from intentpm.transports.tcp_room cimport Room


cdef enum PeerState:
    PEER_ABSENT = 0     # not connected yet, or this rank itself
    PEER_OPEN = 1
    PEER_BROKEN = 2     # sending failed; what the peer sent before may still be read
    PEER_CUT = 3        # descriptor closed; progress() has yet to fail its sends and report the loss
    PEER_GONE = 4       # for good


cdef enum:
    WHY_BYTES = 200
    DIRECT_POLL_PEERS = 4          # up to here one recv() each is cheaper than epoll_wait() first
    RECEIVES_PER_POLL = 4          # of one peer, before the others have their turn
    GATHER_ENTRIES = 64            # of one sendmsg()
    CORK_BYTES = 1 << 14           # answers held back while a batch of requests is handled
    CODED_BACKLOG_BYTES = 1 << 16  # waiting for a slow link, before what comes after is coded


# Every field: guarded by the caller's lock, as the whole transport.
cdef struct Peer:
    int fd
    uint32_t rank
    PeerState state
    bint expects_close
    bint is_full                   # the socket took less than it was offered
    bint waits_for_room            # EPOLLOUT is set in the epoll set
    bint is_backlogged             # listed in ``backlogged``
    int64_t last_heard_ns
    Room room                      # what the socket may hold
    SendQueue queue
    FrameReader reader
    char name[64]
    char why[WHY_BYTES]


cdef class TcpTransport(Transport):
    cdef Peer* peers               # by rank
    cdef vector[uint32_t] connected    # ranks whose socket is read
    cdef vector[uint32_t] backlogged   # ranks with queued sends
    cdef vector[uint32_t] cut          # ranks whose loss is yet to be reported
    cdef MessageList own_messages      # from this rank to itself
    cdef BufferPool pool
    cdef SpareItems spare_items
    cdef int epoll_fd
    cdef bint is_corked            # on_message runs: sends wait for the end of its batch
    cdef bint is_closed
    cdef int finished              # sends finished since progress() began
    cdef object identity
    cdef object listeners
    cdef object candidates
    cdef dict processes            # rank -> its process, of those in this rank's process table. Set by connect()
    cdef object process_ends       # ProcessEnds of these; None: not watched
    cdef double peer_timeout_s
    cdef size_t most_room_bytes    # of a socket that is given a limit
    cdef public bint codes_all     # whatever the link and what waits for it: for tests
    cdef readonly uint64_t spared_bytes    # by coding
    cdef uint64_t slow_bytes               # that sockets took while their links were slow

    cdef int adopt(self, uint32_t rank, int fd, bytes name) except -1
    cdef void break_sending(self, Peer* peer, int error) noexcept nogil
    cdef void cut_peer(self, Peer* peer, const char* why) noexcept nogil
    cdef void cut_peer_for(self, Peer* peer, int loss) noexcept nogil
    cdef void cut_peer_by_frame(self, Peer* peer, FrameStatus status) noexcept nogil
    cdef void cut_peer_by_errno(self, Peer* peer, int error) noexcept nogil
    cdef SendStatus send_to_self(
        self, uint8_t message_id, const char* header, size_t header_bytes,
        const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil
    cdef void write_now(self, Peer* peer, SendItem* item) noexcept nogil
    cdef void note_taken(self, Peer* peer, size_t size_bytes) noexcept nogil
    cdef void note_refused_write(self, Peer* peer, int error) noexcept nogil
    cdef bint keep_unsent(self, Peer* peer, SendItem* item) noexcept nogil
    cdef void code(self, Peer* peer, SendItem* item) noexcept nogil
    cdef void flush_peer(self, Peer* peer) noexcept nogil
    cdef void flush_backlogged(self) noexcept nogil
    cdef int deliver_own(self) noexcept nogil
    cdef int deliver_frames(self, Peer* peer) noexcept nogil
    cdef int receive_from(self, Peer* peer) noexcept nogil
    cdef int poll_each(self) noexcept nogil
    cdef int poll_ready(self) noexcept nogil
    cdef int report_cut(self) noexcept nogil
    cdef void forget_connection(self, uint32_t rank) noexcept nogil
    cdef bint watch_for_room(self, Peer* peer, bint wanted) noexcept nogil
    cdef void flush_until(self, int64_t deadline_ns) noexcept nogil
    cdef void linger_until(self, int64_t deadline_ns) noexcept nogil
    cdef void discard_received(self, char* scratch, size_t scratch_bytes) noexcept nogil
    cdef void release_all(self, bint silent) noexcept nogil
