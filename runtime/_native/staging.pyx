"""Staged message bodies; ``staging.pxd`` is the contract."""

from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t

from intentpm.runtime._native.messages cimport is_counted, is_last, is_urgent
from intentpm.transports.base cimport HOST_MEMORY, SEND_NO_MEMORY, SEND_OK, Piece, SendStatus, Transport

cdef enum:
    STAGED_HEADER_BYTES = 64     # keeps the body on a cache line

cdef struct Staged:
    void* transport
    size_t size_bytes            # header included


cdef char* try_stage(Transport transport, size_t size_bytes) noexcept nogil:
    cdef char* memory = transport.allocate(size_bytes + STAGED_HEADER_BYTES)
    if memory == NULL:
        return NULL
    (<Staged*>memory).transport = <void*>transport
    (<Staged*>memory).size_bytes = size_bytes + STAGED_HEADER_BYTES
    return memory + STAGED_HEADER_BYTES


cdef char* stage(Transport transport, size_t size_bytes) noexcept nogil:
    cdef char* memory = try_stage(transport, size_bytes)
    if memory == NULL:
        transport.out_of_memory = True
    return memory


cdef void unstage(void* body, int status) noexcept nogil:
    cdef char* memory = <char*>body - STAGED_HEADER_BYTES
    (<Transport>(<Staged*>memory).transport).release(memory, (<Staged*>memory).size_bytes)


cdef bint send_staged(
        Transport transport, uint32_t destination, uint8_t message_id, const void* header, size_t header_bytes,
        char* body, size_t body_bytes, int64_t ahead_ns=PATIENT_NS) noexcept nogil:
    cdef Piece piece
    cdef SendStatus status
    if body == NULL:
        return False
    transport.sent_bytes_of[message_id & 31] += header_bytes + body_bytes
    if is_urgent(message_id, header):
        transport.due_ns = 0
    else:
        transport.due_ns = INT64_MAX if is_last(message_id) else transport.now_ns() + ahead_ns
    piece.data = body
    piece.size_bytes = body_bytes
    piece.memory = HOST_MEMORY
    status = transport.send(
        destination, message_id | transport.id_mark, <const char*>header, header_bytes, &piece, 1, unstage, body)
    if status == SEND_OK:
        if transport.sent_to != NULL and is_counted(message_id):
            transport.sent_to[destination] += 1
        return True
    unstage(body, 1)
    if status == SEND_NO_MEMORY:
        transport.out_of_memory = True
    return False
