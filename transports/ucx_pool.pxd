"""Staging memory for message bodies: few large slabs, each registered with UCX once, cut into blocks of powers of two.

Guarantees: blocks are 64-byte aligned; memory stays readable and writable until the pool is deleted, also after
``unregister()``.
Assumptions: calls are serialised by the caller (the engine's lock). ``release`` gets the size that ``allocate`` got.
"""

cimport cython
from libc.stddef cimport size_t
from libcpp.vector cimport vector

from intentpm.transports.ucp cimport UcpFunctions, ucp_context_h, ucp_mem_h


cdef enum:
    SMALLEST_BLOCK_SHIFT = 8               # 256 B
    SHARED_BLOCK_SHIFT = 20                # blocks up to 1 MiB share slabs; larger ones have a slab each
    SLAB_BYTES = 16 << 20
    BLOCK_CLASSES = 48

cdef struct FreeBlock:
    FreeBlock* next

cdef struct Slab:
    char* base
    size_t size_bytes
    ucp_mem_h registration                 # NULL: plain memory (registration failed, or was undone by unregister())


@cython.final
cdef class RegisteredPool:
    cdef const UcpFunctions* _ucp
    cdef ucp_context_h _context            # NULL: slabs are not registered (any more)
    cdef vector[Slab] _slabs
    cdef FreeBlock* _free[BLOCK_CLASSES]   # per block size: the blocks not in use
    cdef char* _cursor                     # unused rest of the newest shared slab
    cdef size_t _cursor_bytes
    cdef size_t _kept_bytes                # large blocks not in use, kept for reuse
    cdef size_t _kept_limit_bytes
    cdef readonly size_t slab_bytes        # memory held from the system
    cdef readonly size_t registered_bytes  # of that: registered with UCX
    cdef readonly int failed_registrations

    cdef void attach(self, const UcpFunctions* ucp, ucp_context_h context) noexcept
    cdef char* allocate(self, size_t size_bytes) noexcept nogil
    cdef void release(self, char* data, size_t size_bytes) noexcept nogil
    cdef void unregister(self) noexcept nogil

    cdef char* _cut(self, size_t block_bytes) noexcept nogil
    cdef char* _add_slab(self, size_t size_bytes) noexcept nogil
    cdef void _free_slab(self, char* base) noexcept nogil
    cdef ucp_mem_h _register(self, char* base, size_t size_bytes) noexcept nogil
