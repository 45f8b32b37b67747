"""Whole messages held in memory; ``message_store.pxd`` is the contract."""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from intentpm.foundation.system cimport aligned_alloc
from intentpm.transports.base cimport HOST_MEMORY, MAX_HEADER_BYTES, Piece, pack_pieces
from intentpm.transports.framing cimport MAX_BODY_BYTES


cdef size_t body_size(const Piece* pieces, size_t piece_count) noexcept nogil:
    cdef size_t index, size_bytes = 0
    for index in range(piece_count):
        size_bytes += pieces[index].size_bytes
    return size_bytes


cdef bint is_storable(size_t header_bytes, const Piece* pieces, size_t piece_count) noexcept nogil:
    cdef size_t index
    for index in range(piece_count):
        if pieces[index].memory != HOST_MEMORY or pieces[index].size_bytes > MAX_BODY_BYTES:
            return False
    return header_bytes <= MAX_HEADER_BYTES and body_size(pieces, piece_count) <= MAX_BODY_BYTES


cdef StoredMessage* store_message(
        uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
        const Piece* pieces, size_t piece_count) noexcept nogil:
    cdef size_t body_offset = (sizeof(StoredMessage) + 63) & ~<size_t>63
    cdef size_t body_bytes = body_size(pieces, piece_count)
    cdef StoredMessage* message = <StoredMessage*>aligned_alloc(64, (body_offset + body_bytes + 63) & ~<size_t>63)
    if message == NULL:
        return NULL
    message.next = NULL
    message.source = source
    message.message_id = message_id
    message.header_bytes = header_bytes
    message.body_bytes = body_bytes
    message.body = <char*>message + body_offset
    if header_bytes:
        memcpy(message.header, header, header_bytes)
    pack_pieces(message.body, pieces, piece_count)
    return message


cdef void list_append(MessageList* messages, StoredMessage* message) noexcept nogil:
    message.next = NULL
    if messages.head == NULL:
        messages.head = message
    else:
        messages.tail.next = message
    messages.tail = message
    messages.body_bytes += message.body_bytes


cdef StoredMessage* list_pop(MessageList* messages) noexcept nogil:
    cdef StoredMessage* message = messages.head
    if message != NULL:
        messages.head = message.next
        messages.body_bytes -= message.body_bytes
    return message


cdef void list_clear(MessageList* messages) noexcept nogil:
    cdef StoredMessage* message = list_pop(messages)
    while message != NULL:
        free(message)
        message = list_pop(messages)
