"""Frame parser and writer of the tcp transport; ``framing.pxd`` is the contract.

``FrameParser`` shows the parser to Python, for tests and for reading recorded streams. No sockets here.
"""

from libc.stdint cimport uint8_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove, memset

from intentpm.foundation.system cimport aligned_alloc
from intentpm.transports.base cimport MAX_HEADER_BYTES
from intentpm.transports.buffer_pool cimport pool_clear, pool_give, pool_take
from intentpm.transports.word_coding cimport (
    CODING_NONE, CODING_WORDS, code_words, coded_room, decode_words, decoded_bytes,
)


cdef size_t write_frame_lead(
        char* lead, uint8_t message_id, const char* header, size_t header_bytes, size_t body_bytes) noexcept nogil:
    cdef FramePrefix* prefix = <FramePrefix*>lead
    cdef size_t lead_bytes = FRAME_PREFIX_BYTES + padded(header_bytes)
    prefix.magic = FRAME_MAGIC
    prefix.version = PROTOCOL_VERSION
    prefix.message_id = message_id
    prefix.header_bytes = <uint16_t>header_bytes
    prefix.coding = CODING_NONE
    prefix.body_bytes = body_bytes
    if header_bytes:
        memset(lead + lead_bytes - 8, 0, 8)
        memcpy(lead + FRAME_PREFIX_BYTES, header, header_bytes)
    return lead_bytes


cdef void note_coded(char* lead, size_t coded_bytes) noexcept nogil:
    (<FramePrefix*>lead).coding = CODING_WORDS
    (<FramePrefix*>lead).body_bytes = coded_bytes


cdef FrameStatus check_prefix(const FramePrefix* prefix) noexcept nogil:
    if prefix.magic != FRAME_MAGIC:
        return FRAME_BAD_MAGIC
    if prefix.version != PROTOCOL_VERSION:
        return FRAME_BAD_VERSION
    if prefix.coding > CODING_WORDS:
        return FRAME_BAD_CODING
    if prefix.header_bytes > MAX_HEADER_BYTES:
        return FRAME_HEADER_TOO_LONG
    if prefix.body_bytes > MAX_BODY_BYTES:
        return FRAME_BODY_TOO_LONG
    return FRAME_COMPLETE


cdef const char* describe_frame_error(FrameStatus status) noexcept nogil:
    if status == FRAME_BAD_MAGIC:
        return "wrong magic number"
    if status == FRAME_BAD_VERSION:
        return "other protocol version"
    if status == FRAME_BAD_CODING:
        return "damaged coding"
    if status == FRAME_HEADER_TOO_LONG:
        return "header too long"
    if status == FRAME_BODY_TOO_LONG:
        return "body too long"
    return "no memory for a received frame"


cdef size_t reader_space(FrameReader* reader, char** where) noexcept nogil:
    if reader.body != NULL:
        where[0] = reader.body + reader.body_received_bytes
        return reader.body_bytes - reader.body_received_bytes
    if reader.buffer == NULL:
        reader.buffer = <char*>aligned_alloc(64, RECEIVE_BUFFER_BYTES)
        if reader.buffer == NULL:
            return 0
    if reader.begin == reader.end:
        reader.begin = reader.end = 0
    elif RECEIVE_BUFFER_BYTES - reader.begin < LARGE_FRAME_BYTES:
        memmove(reader.buffer, reader.buffer + reader.begin, reader.end - reader.begin)
        reader.end -= reader.begin
        reader.begin = 0
    where[0] = reader.buffer + reader.end
    return RECEIVE_BUFFER_BYTES - reader.end


cdef void reader_commit(FrameReader* reader, size_t received_bytes) noexcept nogil:
    if reader.body != NULL:
        reader.body_received_bytes += received_bytes
    else:
        reader.end += received_bytes


cdef inline void _forget_delivered(FrameReader* reader) noexcept nogil:
    if reader.delivered_bytes == 0:
        return
    reader.begin += reader.delivered_bytes
    reader.delivered_bytes = 0
    if reader.body != NULL:
        pool_give(reader.pool, reader.body, reader.body_bytes)
        reader.body = NULL
    _forget_decoded(reader)


cdef inline void _forget_decoded(FrameReader* reader) noexcept nogil:
    if reader.decoded != NULL:
        pool_give(reader.pool, reader.decoded, reader.decoded_bytes)
        reader.decoded = NULL


cdef FrameStatus _fill_frame(FrameReader* reader, const FramePrefix* prefix, Frame* frame) noexcept nogil:
    frame.message_id = prefix.message_id
    frame.header_bytes = prefix.header_bytes
    frame.body_bytes = prefix.body_bytes
    frame.header = reader.buffer + reader.begin + FRAME_PREFIX_BYTES
    frame.frame_bytes = frame_size(prefix.header_bytes, prefix.body_bytes)
    if reader.body != NULL:
        frame.body = reader.body
    else:
        frame.body = frame.header + padded(prefix.header_bytes)
    return FRAME_COMPLETE if prefix.coding == CODING_NONE else _decode(reader, frame)


cdef FrameStatus _decode(FrameReader* reader, Frame* frame) noexcept nogil:
    cdef size_t raw_bytes = decoded_bytes(frame.body, frame.body_bytes)
    if raw_bytes == 0:
        return FRAME_BAD_CODING
    reader.decoded_bytes = padded(raw_bytes)
    reader.decoded = pool_take(reader.pool, reader.decoded_bytes)
    if reader.decoded == NULL:
        return FRAME_NO_MEMORY
    if not decode_words(frame.body, frame.body_bytes, reader.decoded):
        return FRAME_BAD_CODING
    frame.body = reader.decoded
    frame.body_bytes = raw_bytes
    return FRAME_COMPLETE


cdef FrameStatus _move_body_out(FrameReader* reader, const FramePrefix* prefix, size_t lead_bytes) noexcept nogil:
    """The frame is incomplete and large: what is here of its body moves to its own buffer, the rest arrives there."""
    cdef size_t here_bytes = reader.end - reader.begin - lead_bytes
    reader.body_bytes = padded(prefix.body_bytes)
    reader.body = pool_take(reader.pool, reader.body_bytes)
    if reader.body == NULL:
        return FRAME_NO_MEMORY
    memcpy(reader.body, reader.buffer + reader.begin + lead_bytes, here_bytes)
    reader.body_received_bytes = here_bytes
    reader.end = reader.begin + lead_bytes
    return FRAME_INCOMPLETE


cdef FrameStatus reader_next(FrameReader* reader, Frame* frame) noexcept nogil:
    cdef const FramePrefix* prefix
    cdef FrameStatus status
    cdef size_t lead_bytes, frame_bytes, available
    _forget_delivered(reader)
    available = reader.end - reader.begin
    if available < FRAME_PREFIX_BYTES:
        return FRAME_INCOMPLETE
    prefix = <const FramePrefix*>(reader.buffer + reader.begin)
    if reader.body != NULL:
        if reader.body_received_bytes < reader.body_bytes:
            return FRAME_INCOMPLETE
        reader.delivered_bytes = available
        return _fill_frame(reader, prefix, frame)
    status = check_prefix(prefix)
    if status < 0:
        return status
    lead_bytes = FRAME_PREFIX_BYTES + padded(prefix.header_bytes)
    frame_bytes = lead_bytes + padded(prefix.body_bytes)
    if available < frame_bytes:
        if frame_bytes > LARGE_FRAME_BYTES and available >= lead_bytes:
            return _move_body_out(reader, prefix, lead_bytes)
        return FRAME_INCOMPLETE
    reader.delivered_bytes = frame_bytes
    return _fill_frame(reader, prefix, frame)


cdef void reader_clear(FrameReader* reader) noexcept nogil:
    if reader.body != NULL:
        pool_give(reader.pool, reader.body, reader.body_bytes)
        reader.body = NULL
    _forget_decoded(reader)
    free(reader.buffer)
    reader.buffer = NULL
    reader.begin = reader.end = reader.delivered_bytes = 0


def coded_body(body not None) -> bytes | None:
    """``body`` (bytes) as it would be sent coded; None: coding would not make it much shorter. For tests."""
    cdef const uint8_t[::1] raw = body
    cdef bytearray coded = bytearray(coded_room(raw.shape[0]))
    cdef size_t size_bytes = code_words(<const char*>&raw[0], raw.shape[0], coded) if raw.shape[0] else 0
    return bytes(coded[:size_bytes]) if size_bytes else None


cdef class FrameParser:
    """The parser of one stream, fed by hand. Not thread-safe."""

    cdef FrameReader reader
    cdef BufferPool pool
    cdef FrameStatus broken

    def __cinit__(self):
        memset(&self.reader, 0, sizeof(FrameReader))
        memset(&self.pool, 0, sizeof(BufferPool))
        self.reader.pool = &self.pool
        self.broken = FRAME_INCOMPLETE

    def __dealloc__(self):
        reader_clear(&self.reader)
        pool_clear(&self.pool)

    def feed(self, const uint8_t[::1] received) -> list:
        """Takes the next bytes of the stream; returns the frames completed: (message id, header bytes, body bytes).

        Raises ValueError naming what is malformed, from then on at every call; frames before it are lost.
        """
        cdef list frames = []
        cdef size_t offset = 0, part
        cdef char* where
        while offset < <size_t>received.shape[0]:
            if self.broken == FRAME_INCOMPLETE:
                part = min(reader_space(&self.reader, &where), <size_t>received.shape[0] - offset)
                memcpy(where, &received[offset], part)
                reader_commit(&self.reader, part)
                offset += part
                self._collect(frames)
            if self.broken < 0:
                raise ValueError(describe_frame_error(self.broken).decode())
        return frames

    cdef int _collect(self, list frames) except -1:
        cdef Frame frame
        cdef FrameStatus status = reader_next(&self.reader, &frame)
        while status == FRAME_COMPLETE:
            if (<size_t>frame.body) % 8:
                raise AssertionError("a body is not 8-byte aligned")
            frames.append((frame.message_id, frame.header[:frame.header_bytes], frame.body[:frame.body_bytes]))
            status = reader_next(&self.reader, &frame)
        self.broken = status
        return 0
