"""The device interface; ``device.pxd`` is the contract."""

cdef enum:
    BLOCKS_PER_MULTIPROCESSOR = 16


cdef class Device:
    """One GPU. Any thread.

    Attributes: ``name``, of the card; ``multiprocessors``; ``most_lanes``, that work together on a row.
    """

    @property
    def failure(self) -> str:
        """The first thing that went wrong; empty: nothing did."""
        raise NotImplementedError

    def compile(self, names) -> None:
        """Makes kernels ready, by the names under which NVRTC is asked for them: many together are compiled sooner."""

    cdef char* allocate(self, size_t size_bytes) noexcept nogil:
        return NULL

    cdef void release(self, char* memory) noexcept nogil:
        pass

    cdef char* allocate_pinned(self, size_t size_bytes) noexcept nogil:
        return NULL

    cdef void release_pinned(self, char* memory) noexcept nogil:
        pass

    cdef StreamHandle new_stream(self) noexcept nogil:
        return NULL

    cdef EventHandle new_event(self) noexcept nogil:
        return NULL

    cdef void release_stream(self, StreamHandle stream) noexcept nogil:
        pass

    cdef void release_event(self, EventHandle event) noexcept nogil:
        pass

    cdef bint launch(self, StreamHandle stream, KernelHandle kernel, unsigned blocks, const RowBatch* batch) noexcept nogil:
        return False

    cdef bint copy(self, StreamHandle stream, char* to, const char* source, size_t size_bytes) noexcept nogil:
        return False

    cdef bint fill(self, StreamHandle stream, char* to, unsigned char value, size_t size_bytes) noexcept nogil:
        return False

    cdef bint record(self, StreamHandle stream, EventHandle event) noexcept nogil:
        return False

    cdef bint wait(self, StreamHandle stream, EventHandle event) noexcept nogil:
        return False

    cdef bint synchronize(self, EventHandle event) noexcept nogil:
        return False

    cdef bint has_happened(self, EventHandle event) noexcept nogil:
        return False

    cdef void host_reads(self, const void* pinned) noexcept nogil:
        pass

    cdef void host_writes(self, const void* pinned) noexcept nogil:
        pass

    cdef KernelHandle find_kernel(self, str name) except NULL:
        raise KeyError(name)


cdef unsigned blocks_for(Device device, long long rows, unsigned lanes) noexcept nogil:
    cdef long long threads = (rows + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE * lanes
    cdef long long blocks = (threads + BLOCK_THREADS - 1) // BLOCK_THREADS
    return <unsigned>max(<long long>1, min(blocks, <long long>device.multiprocessors * BLOCKS_PER_MULTIPROCESSOR))
