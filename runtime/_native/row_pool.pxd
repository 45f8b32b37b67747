"""Rows that replicas have for a while: taken when one is first written to, given back when its owner has been told.

Guarantees
    * A row that was given back is taken again before memory is touched that never was.
    * Taking one needs no system call and no memory but the row's.
Any thread, under the pool's own lock, which is held for a few instructions. Whoever has a row's name has the row.
"""

from libc.stdint cimport uint32_t

from intentpm.foundation.primitives cimport prefetch_write, store_relaxed
from intentpm.runtime._native.state cimport lock_word, unlock_unchanged


cdef struct RowPool:
    char* rows
    size_t stride                # at least 4
    uint32_t lock                # atomic: guards the two below
    uint32_t free                # names a free row, which holds the name of the next; 0: none
    uint32_t touched             # atomic relaxed, stored under the lock: rows with a higher name were never taken


cdef inline char* pool_row(const RowPool* pool, uint32_t name) noexcept nogil:
    """The row of that name, which is not 0."""
    return pool.rows + <size_t>(name - 1) * pool.stride


cdef inline uint32_t take_pool_row(RowPool* pool) noexcept nogil:
    """The name of a row that nobody has; what is in it is left over."""
    cdef uint32_t seen = lock_word(&pool.lock)
    cdef uint32_t name = pool.free
    cdef size_t offset = 0
    if name:
        pool.free = (<uint32_t*>pool_row(pool, name))[0]
        while pool.free and offset < min(pool.stride, <size_t>512):
            prefetch_write(pool_row(pool, pool.free) + offset)
            offset += 64
    else:
        name = pool.touched + 1
        store_relaxed(&pool.touched, name)
    unlock_unchanged(&pool.lock, seen)
    return name


cdef inline void give_pool_row(RowPool* pool, uint32_t name) noexcept nogil:
    cdef uint32_t seen = lock_word(&pool.lock)
    (<uint32_t*>pool_row(pool, name))[0] = pool.free
    pool.free = name
    unlock_unchanged(&pool.lock, seen)
