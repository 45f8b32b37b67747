"""Messages on their way into a byte stream: gathered straight from the caller's memory, the unsent rest remembered.

What is needed at once goes first, and then what is needed sooner; else they keep their order. One of which a part is on its way
goes to its end, and what was needed by now is not overtaken any more: nothing waits for ever.
Lengths are checked before a message is accepted. Nothing of a body is ever copied, but for what is coded. Not thread-safe.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from posix.uio cimport iovec

from intentpm.transports.base cimport MAX_HEADER_BYTES, Piece, done_fn


cdef enum:
    FRAME_LEAD_BYTES = 16 + MAX_HEADER_BYTES
    FEW_PIECES = 4
    MAX_SPARE_ITEMS = 256


cdef struct SendItem:
    SendItem* next
    done_fn done
    void* argument
    const Piece* pieces            # the caller's while in send(), own copy once kept
    size_t piece_count
    size_t segment                 # first one unsent: 0 lead, 1..piece_count pieces, then the tail
    size_t offset_bytes            # sent of that segment
    size_t frame_bytes
    size_t unsent_bytes
    uint32_t lead_bytes
    uint32_t tail_bytes            # zeros after the body
    char* coded                    # the body, coded; NULL: it goes as it is
    int64_t due_ns                 # 0: at once
    Piece few_pieces[FEW_PIECES]   # room for kept pieces without an allocation
    char lead[FRAME_LEAD_BYTES]


cdef struct SendQueue:
    SendItem* head
    SendItem* last_urgent          # of those that are needed at once; NULL: there is none
    size_t unsent_bytes


cdef struct SpareItems:            # kept for the next queued message
    SendItem* first
    size_t count


# False: a length over the limit, or memory this transport cannot read.
cdef bint item_start(
    SendItem* item, uint8_t message_id, int64_t due_ns, const char* header, size_t header_bytes,
    const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil
# Codes the body, of one piece, of a message of which nothing is sent yet. True: the piece is not needed any more; ``done`` is
# the caller's to call once the item is kept, or the item's memory to give back by ``item_clear``.
cdef bint item_code(SendItem* item) noexcept nogil
cdef void item_clear(SendItem* item) noexcept nogil
# Fills at most ``room`` entries with what is unsent; returns how many.
cdef size_t item_gather(const SendItem* item, iovec* out, size_t room) noexcept nogil
cdef void item_advance(SendItem* item, size_t sent_bytes) noexcept nogil

# Takes a copy of ``item`` (not of its body) in, behind what is needed as soon. False: out of memory.
cdef bint queue_keep(SendQueue* queue, const SendItem* item, int64_t now_ns, SpareItems* spare) noexcept nogil
cdef size_t queue_gather(const SendQueue* queue, iovec* out, size_t room) noexcept nogil
# ``sent_bytes`` went out: calls ``done(argument, 0)`` of the messages that are finished and returns their number.
cdef int queue_advance(SendQueue* queue, size_t sent_bytes, SpareItems* spare) noexcept nogil
# Nothing more goes out: calls ``done(argument, status)`` of all and returns their number. With ``silent``, no call.
cdef int queue_fail(SendQueue* queue, int status, bint silent, SpareItems* spare) noexcept nogil
cdef void spare_clear(SpareItems* spare) noexcept nogil
