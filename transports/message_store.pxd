"""Whole messages held in this process: what loopback delivers, and what a rank sends to itself. Not thread-safe."""

from libc.stdint cimport uint8_t, uint32_t

from intentpm.transports.base cimport MAX_HEADER_BYTES, Piece


cdef struct StoredMessage:
    StoredMessage* next
    uint32_t source
    uint8_t message_id
    size_t header_bytes
    size_t body_bytes
    char* body                     # 64-byte aligned, in the same allocation
    char header[MAX_HEADER_BYTES]


cdef struct MessageList:
    StoredMessage* head
    StoredMessage* tail
    size_t body_bytes              # of all


cdef size_t body_size(const Piece* pieces, size_t piece_count) noexcept nogil
# False: a length over the limit, or memory this transport cannot read.
cdef bint is_storable(size_t header_bytes, const Piece* pieces, size_t piece_count) noexcept nogil
# Copies the message. NULL: out of memory. Free with ``free()``.
cdef StoredMessage* store_message(
    uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
    const Piece* pieces, size_t piece_count) noexcept nogil
cdef void list_append(MessageList* messages, StoredMessage* message) noexcept nogil
# NULL: empty.
cdef StoredMessage* list_pop(MessageList* messages) noexcept nogil
cdef void list_clear(MessageList* messages) noexcept nogil
