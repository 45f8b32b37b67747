"""Registered staging memory; ``ucx_pool.pxd`` states what it guarantees."""

from libc.stdlib cimport free

from intentpm.foundation.system cimport aligned_alloc
from intentpm.transports.ucp cimport (
    UCP_MEM_MAP_PARAM_FIELD_ADDRESS,
    UCP_MEM_MAP_PARAM_FIELD_LENGTH,
    UCS_OK,
    UcpFunctions,
    ucp_context_h,
    ucp_mem_h,
    ucp_mem_map_params_t,
)

cdef enum:
    PAGE_BYTES = 4096


cdef inline int _class_of(size_t size_bytes) noexcept nogil:
    cdef int shift = SMALLEST_BLOCK_SHIFT
    while (<size_t>1 << shift) < size_bytes:
        shift += 1
    return shift


cdef class RegisteredPool:
    """Blocks for messages in flight.

    Large freed blocks are kept up to ``kept_limit_bytes``: fresh pages cost more than the copy into them.
    """

    def __cinit__(self, size_t kept_limit_bytes=<size_t>256 << 20):
        self._kept_limit_bytes = kept_limit_bytes

    def __dealloc__(self):
        for slab in self._slabs:
            free(slab.base)

    cdef void attach(self, const UcpFunctions* ucp, ucp_context_h context) noexcept:
        self._ucp = ucp
        self._context = context

    cdef char* allocate(self, size_t size_bytes) noexcept nogil:
        if size_bytes >= <size_t>1 << (BLOCK_CLASSES - 1):
            return NULL
        cdef int shift = _class_of(size_bytes)
        cdef FreeBlock* block = self._free[shift]
        if block == NULL:
            return self._cut(<size_t>1 << shift)
        self._free[shift] = block.next
        if shift > SHARED_BLOCK_SHIFT:
            self._kept_bytes -= <size_t>1 << shift
        return <char*>block

    cdef void release(self, char* data, size_t size_bytes) noexcept nogil:
        cdef int shift = _class_of(size_bytes)
        cdef FreeBlock* block = <FreeBlock*>data
        if data == NULL:
            return
        if shift > SHARED_BLOCK_SHIFT:
            if self._kept_bytes + (<size_t>1 << shift) > self._kept_limit_bytes:
                self._free_slab(data)
                return
            self._kept_bytes += <size_t>1 << shift
        block.next = self._free[shift]
        self._free[shift] = block

    cdef void unregister(self) noexcept nogil:
        cdef size_t i
        for i in range(self._slabs.size()):
            if self._slabs[i].registration != NULL:
                self._ucp.mem_unmap(self._context, self._slabs[i].registration)
                self._slabs[i].registration = NULL
        self.registered_bytes = 0
        self._context = NULL

    cdef char* _cut(self, size_t block_bytes) noexcept nogil:
        cdef char* block
        if block_bytes > <size_t>1 << SHARED_BLOCK_SHIFT:
            return self._add_slab(block_bytes)
        if self._cursor_bytes < block_bytes:
            # The rest of the old slab (below 1 MiB) is given up: at most 1 / 16 of a slab.
            self._cursor = self._add_slab(SLAB_BYTES)
            self._cursor_bytes = SLAB_BYTES if self._cursor != NULL else 0
        if self._cursor == NULL:
            return NULL
        block = self._cursor
        self._cursor += block_bytes
        self._cursor_bytes -= block_bytes
        return block

    cdef char* _add_slab(self, size_t size_bytes) noexcept nogil:
        cdef Slab slab
        slab.base = <char*>aligned_alloc(PAGE_BYTES, size_bytes)
        if slab.base == NULL:
            return NULL
        slab.size_bytes = size_bytes
        slab.registration = self._register(slab.base, size_bytes)
        self._slabs.push_back(slab)
        self.slab_bytes += size_bytes
        return slab.base

    cdef void _free_slab(self, char* base) noexcept nogil:
        cdef size_t i
        for i in range(self._slabs.size()):
            if self._slabs[i].base == base:
                if self._slabs[i].registration != NULL:
                    self._ucp.mem_unmap(self._context, self._slabs[i].registration)
                    self.registered_bytes -= self._slabs[i].size_bytes
                self.slab_bytes -= self._slabs[i].size_bytes
                self._slabs[i] = self._slabs.back()
                self._slabs.pop_back()
                break
        free(base)

    cdef ucp_mem_h _register(self, char* base, size_t size_bytes) noexcept nogil:
        cdef ucp_mem_map_params_t params
        cdef ucp_mem_h registration = NULL
        # A failure (the limit of locked memory, most often) is kept in mind, not repeated: plain memory works too.
        if self._context == NULL or self.failed_registrations:
            return NULL
        params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH
        params.address = base
        params.length = size_bytes
        if self._ucp.mem_map(self._context, &params, &registration) != UCS_OK:
            self.failed_registrations += 1
            return NULL
        self.registered_bytes += size_bytes
        return registration
