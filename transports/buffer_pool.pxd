"""Receive buffers of power-of-two sizes, kept for the next large message: fresh pages cost more than filling them."""


cdef enum:
    SMALLEST_POOLED_BYTES = 1 << 14
    POOL_CLASSES = 13              # 16 KiB to 64 MiB; larger ones are not kept
    POOL_LIMIT_BYTES = 1 << 26     # what all idle buffers together may hold


cdef struct BufferPool:
    char* idle[POOL_CLASSES]       # per class a list, linked through each buffer's first bytes
    size_t idle_bytes


# 64-byte aligned; NULL: out of memory. ``size_bytes`` must be passed again to give it back.
cdef char* pool_take(BufferPool* pool, size_t size_bytes) noexcept nogil
cdef void pool_give(BufferPool* pool, char* buffer, size_t size_bytes) noexcept nogil
cdef void pool_clear(BufferPool* pool) noexcept nogil
