"""Frames of the tcp transport: how a message looks on a byte stream, and the parser that trusts no length.

A frame is ``prefix (16 bytes) | header | zeros to 8 | body | zeros to 8``: every frame and every body starts at a
multiple of 8, so bodies can be read where they arrived. A body may be coded (``word_coding.hpp``); a reader gives it as it was.
"""

from libc.stdint cimport uint8_t, uint16_t, uint64_t

from intentpm.transports.buffer_pool cimport BufferPool


cdef extern from *:
    """
    static const uint16_t FRAME_MAGIC = 0x5049;              // "IP" on the wire
    static const uint64_t MAX_BODY_BYTES = 1ull << 32;
    """
    const uint16_t FRAME_MAGIC
    const uint64_t MAX_BODY_BYTES


cdef enum:
    PROTOCOL_VERSION = 2           # +1 whenever frames or handshake change
    FRAME_PREFIX_BYTES = 16
    RECEIVE_BUFFER_BYTES = 1 << 15
    LARGE_FRAME_BYTES = 1 << 14    # an incomplete frame above this gets a buffer of its own


cdef packed struct FramePrefix:    # little-endian
    uint16_t magic
    uint8_t version
    uint8_t message_id
    uint16_t header_bytes          # <= MAX_HEADER_BYTES
    uint16_t coding                # Coding
    uint64_t body_bytes            # <= MAX_BODY_BYTES; of a coded one as it is sent


cdef struct Frame:
    uint8_t message_id
    size_t header_bytes
    size_t body_bytes
    size_t frame_bytes             # as they came
    const char* header
    const char* body               # 8-byte aligned, also when empty


cdef enum FrameStatus:
    FRAME_INCOMPLETE = 0
    FRAME_COMPLETE = 1
    FRAME_BAD_MAGIC = -1
    FRAME_BAD_VERSION = -2
    FRAME_BAD_CODING = -3
    FRAME_HEADER_TOO_LONG = -4
    FRAME_BODY_TOO_LONG = -5
    FRAME_NO_MEMORY = -6


# Cuts one byte stream into frames. Small frames are read where they arrived; the body of an incomplete large one moves
# to a pooled buffer that the rest is received into. Zeroed memory plus ``pool`` is a valid reader.
cdef struct FrameReader:
    char* buffer                   # RECEIVE_BUFFER_BYTES, made at first use
    size_t begin                   # of the frame being read; a multiple of 8
    size_t end                     # of what was received
    size_t delivered_bytes         # of the frame the last reader_next() returned, still in the buffer
    char* body                     # of a large frame; its prefix and header stay in ``buffer``
    size_t body_bytes              # with padding
    size_t body_received_bytes
    char* decoded                  # of the frame the last reader_next() returned, if it was coded
    size_t decoded_bytes           # with padding
    BufferPool* pool


cdef inline size_t padded(size_t size_bytes) noexcept nogil:
    return (size_bytes + 7) & ~<size_t>7


# What a message takes on the wire.
cdef inline size_t frame_size(size_t header_bytes, size_t body_bytes) noexcept nogil:
    return FRAME_PREFIX_BYTES + padded(header_bytes) + padded(body_bytes)


# Writes prefix, header and padding; returns their length. ``lead`` has room for FRAME_PREFIX_BYTES + MAX_HEADER_BYTES.
cdef size_t write_frame_lead(
    char* lead, uint8_t message_id, const char* header, size_t header_bytes, size_t body_bytes) noexcept nogil
# Changes a lead that was written: its body is coded, and so long.
cdef void note_coded(char* lead, size_t coded_bytes) noexcept nogil
cdef FrameStatus check_prefix(const FramePrefix* prefix) noexcept nogil
cdef const char* describe_frame_error(FrameStatus status) noexcept nogil

# Where the next received bytes go, and how many fit. 0: out of memory.
cdef size_t reader_space(FrameReader* reader, char** where) noexcept nogil
cdef void reader_commit(FrameReader* reader, size_t received_bytes) noexcept nogil
# The next complete frame; it stays valid until the next call on this reader. Negative: the stream is broken for good.
cdef FrameStatus reader_next(FrameReader* reader, Frame* frame) noexcept nogil
cdef void reader_clear(FrameReader* reader) noexcept nogil
