"""Pool of large receive buffers; ``buffer_pool.pxd`` is the contract. Not thread-safe: one pool per transport."""

from libc.stdlib cimport free

from intentpm.foundation.system cimport aligned_alloc


cdef inline int _class_of(size_t size_bytes) noexcept nogil:
    cdef int index = 0
    while index < POOL_CLASSES and (<size_t>SMALLEST_POOLED_BYTES << index) < size_bytes:
        index += 1
    return index


cdef char* pool_take(BufferPool* pool, size_t size_bytes) noexcept nogil:
    cdef int index = _class_of(size_bytes)
    if index == POOL_CLASSES:
        return <char*>aligned_alloc(64, (size_bytes + 63) & ~<size_t>63)
    cdef size_t capacity = <size_t>SMALLEST_POOLED_BYTES << index
    cdef char* buffer = pool.idle[index]
    if buffer == NULL:
        return <char*>aligned_alloc(64, capacity)
    pool.idle[index] = (<char**>buffer)[0]
    pool.idle_bytes -= capacity
    return buffer


cdef void pool_give(BufferPool* pool, char* buffer, size_t size_bytes) noexcept nogil:
    cdef int index = _class_of(size_bytes)
    cdef size_t capacity = <size_t>SMALLEST_POOLED_BYTES << index
    if index == POOL_CLASSES or pool.idle_bytes + capacity > POOL_LIMIT_BYTES:
        free(buffer)
        return
    (<char**>buffer)[0] = pool.idle[index]
    pool.idle[index] = buffer
    pool.idle_bytes += capacity


cdef void pool_clear(BufferPool* pool) noexcept nogil:
    cdef int index
    cdef char* buffer
    for index in range(POOL_CLASSES):
        while pool.idle[index] != NULL:
            buffer = pool.idle[index]
            pool.idle[index] = (<char**>buffer)[0]
            free(buffer)
    pool.idle_bytes = 0
