"""The device interface; ``device.pxd`` is the contract."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from libcpp.vector cimport vector
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport usleep

from intentpm.foundation.system cimport sched_yield

cdef enum:
    BLOCKS_PER_MULTIPROCESSOR = 16
    WAIT_LIMIT_S = 60
    SPIN_NS = 100_000            # of a wait; a batch takes less, and a sleep lasts longer than asked for
    PAUSE_US = 20


cdef int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1_000_000_000 + t.tv_nsec


cdef void rest(int64_t waited_ns) noexcept nogil:
    if waited_ns < SPIN_NS:
        sched_yield()
    else:
        usleep(PAUSE_US)


cdef class Device:
    """One GPU. Any thread.

    Attributes: ``name``, of the card; ``multiprocessors``; ``most_lanes``, that work together on a row; ``wait_limit_s``,
    seconds for which the host waits for anything on it; ``host_waits``, how often it has, for work that was not done.
    """

    def __cinit__(self):
        self.wait_limit_s = WAIT_LIMIT_S

    @property
    def failure(self) -> str:
        """The first thing that went wrong; empty: nothing did."""
        cdef const char* what = self.not_done.load()
        return f"the device has not finished {what.decode()} within {self.wait_limit_s:g} s" if what != NULL else ""

    @property
    def host_waits(self) -> int:
        return self.waits.load()

    cdef bint wait_on(self, int64_t begun_ns, const char* what) noexcept nogil:
        cdef int64_t waited_ns = now_ns() - begun_ns
        if self.not_done.load() != NULL:     # it was waited for in vain: nobody waits for it again
            return False
        if waited_ns >= <int64_t>(self.wait_limit_s * 1e9):
            self.not_done.store(what)
            return False
        rest(waited_ns)
        return True

    def free_memory(self) -> int:
        """Bytes of the device's memory that nobody has now."""
        with nogil:
            self.free_retired()
        return self.free_bytes()

    def stream_of(self, array) -> int:
        """The stream that comes after what its library has to do with it (``libraries``), as the driver knows it; None, of an
        emulated device: the host itself works with it. array: None: of whichever library has arrays on this device.
        """
        raise NotImplementedError

    def new_array(self, shape, dtype):
        """An array in its memory, of the library that is usual on it: CuPy. Raises DtypeError, MemoryError."""
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

    cdef void retire(self, char* memory) noexcept nogil:
        if memory != NULL:
            self.retire_after(memory, NULL, NULL)

    cdef void retire_after(self, char* memory, char* pinned, EventHandle done) noexcept nogil:
        cdef Retired one
        one.memory = memory
        one.pinned = pinned
        one.done = done
        self.retiring.lock()
        self.retired.push_back(one)
        self.retiring.unlock()

    cdef bint has_retired(self, size_t most) noexcept nogil:
        cdef size_t found = 0
        cdef Retired one
        self.retiring.lock()
        for one in self.retired:
            if found <= most and (one.done == NULL or self.has_happened(one.done)):
                found += 1
        self.retiring.unlock()
        return found > most

    cdef bint free_retired(self) noexcept nogil:
        cdef vector[Retired] taken
        cdef vector[Retired] in_use
        cdef Retired one
        self.retiring.lock()
        for one in self.retired:
            if one.done == NULL or self.has_happened(one.done):
                taken.push_back(one)
            else:
                in_use.push_back(one)
        self.retired.swap(in_use)
        self.retiring.unlock()
        for one in taken:
            self.release(one.memory)
            self.release_pinned(one.pinned)
            if one.done != NULL:
                self.release_event(one.done)
        return not taken.empty()

    cdef size_t free_bytes(self) noexcept nogil:
        return 0

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

    cdef bint synchronize(self, EventHandle event, const char* what) noexcept nogil:
        return False

    cdef bint has_happened(self, EventHandle event) noexcept nogil:
        return False

    cdef bint holds(self, const void* address) noexcept nogil:
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
