"""The loopback transport: several ranks in one process, each on its own thread."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic
from libcpp.mutex cimport mutex
from libcpp.string cimport string
from libcpp.vector cimport vector

from intentpm.transports.base cimport Piece, Transport, done_fn
from intentpm.transports.message_store cimport MessageList
from intentpm.transports.send_queue cimport SendQueue, SpareItems

cdef enum:
    INBOX_BYTES = 1 << 22          # a rank holds this much undelivered; beyond, its senders wait
    NODE_BYTES = 512               # what a message costs beside its body


# A rank's link to one peer, seen from the inbox of that rank.
cdef enum LinkState:
    LINK_UP = 0
    LINK_LEFT = 1                  # the peer closed its transport
    LINK_DROPPED = 2               # the peer dropped this rank
    LINK_REFUSED = 3               # this rank dropped the peer, or closed

cdef enum PutResult:
    PUT_DONE = 0
    PUT_FULL = 1                   # nothing taken; the sender is woken when there is room
    PUT_LOST = 2
    PUT_NO_MEMORY = 3


# What the threads of other ranks touch of a rank.
cdef cppclass Inbox:
    mutex lock
    MessageList messages           # guarded by: lock
    size_t held_bytes              # of messages here or being copied in; guarded by: lock
    vector[char] links             # by rank: LinkState; guarded by: lock
    vector[char] waiting           # by rank: its last put found no room; guarded by: lock
    atomic[uint64_t] events        # + 1 after every change the owner must look at; any thread, seq_cst
    atomic[int] is_armed           # owner sets before its last look at events / who changes something takes it, seq_cst
    int event_fd                   # constant


cdef class LoopbackNetwork:
    cdef readonly uint32_t size
    cdef vector[Inbox*] inboxes    # by rank; constant
    cdef set taken

    cdef PutResult put(
        self, uint32_t destination, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
        const Piece* pieces, size_t piece_count) noexcept nogil
    cdef PutResult reserve(self, Inbox* inbox, uint32_t source, size_t size_bytes) noexcept nogil
    cdef void set_link(self, uint32_t owner, uint32_t peer, LinkState state) noexcept nogil


cdef class LoopbackTransport(Transport):
    cdef LoopbackNetwork network
    cdef Inbox* inbox
    cdef uint64_t seen_events
    cdef bint slept
    cdef bint is_closed
    cdef int finished
    cdef vector[char] alive            # by rank
    cdef vector[char] is_dropped       # by rank: by this rank; what it had sent before is no longer wanted
    cdef vector[char] expects_close    # by rank
    cdef vector[int64_t] heard_ns      # by rank
    cdef vector[SendQueue] queues      # by rank: what found no room in the inbox over there
    cdef vector[uint32_t] backlogged   # ranks with a queue
    cdef vector[char] is_backlogged    # by rank: listed there
    cdef vector[uint32_t] cut          # ranks whose loss is yet to be reported
    cdef vector[string] why            # by rank: the reason to report
    cdef SpareItems spare_items

    cdef bint keep(
        self, uint32_t destination, uint8_t message_id, const char* header, size_t header_bytes,
        const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil
    cdef void flush_backlogged(self) noexcept nogil
    cdef void flush_to(self, uint32_t destination) noexcept nogil
    cdef void take_in(self, MessageList* messages) noexcept nogil
    cdef void wake_senders(self, const vector[char]& waiting) noexcept nogil
    cdef int deliver(self, MessageList* messages) noexcept nogil
    cdef int report_cut(self) noexcept nogil
    cdef void cut_peer(self, uint32_t rank, const char* why) noexcept nogil
    cdef void leave(self, bint silent) noexcept nogil
