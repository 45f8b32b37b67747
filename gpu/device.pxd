"""The device interface: memory, streams and events of one GPU, and nothing of rows.

Guarantees (every device)
    * What is enqueued on a stream happens in that order. Between streams, and to the host, only events order: ``wait`` makes a
      stream wait for one, ``synchronize`` the host.
    * ``launch`` and ``copy`` return before the work is done; a launch has taken its arguments with it.
    * Nothing here takes the GIL. A call that fails says so (False, NULL), and ``failure`` says why.
    * The host waits for ``wait_limit_s`` at most: then ``synchronize`` fails, and ``failure`` says what was not done by then.
    * The calling thread's own CUDA context is as before.
Assumptions
    * Memory that the device uses is not released, nor pinned memory touched by the host, before an event says that the use is
      over. The host says what it does with pinned memory by ``host_reads`` and ``host_writes``: the emulated device checks it.
    * An event is recorded before it is waited for.
Any thread.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from libcpp.atomic cimport atomic
from libcpp.mutex cimport mutex
from libcpp.vector cimport vector

cdef extern from "gpu/kernel_arguments.hpp" namespace "intentpm::gpu" nogil:
    enum:
        BLOCK_THREADS
        WARP_LANES
        ROWS_AT_ONCE

    cdef struct StepNumbers "intentpm::gpu::StepNumbers":
        unsigned long long state_offset
        double lr
        double eps
        double beta1
        double beta2
        double log_beta1
        double log_beta2
        double weight_decay
        double max_norm
        double clip_value
        double clip_norm
        int decay

    cdef struct RowBatch "intentpm::gpu::RowBatch":
        char* slab
        long long stride_bytes
        const int* slots
        long long count
        char* rows
        unsigned row_bytes
        unsigned items
        unsigned lanes
        int* claims
        int* marks
        char* sums
        const long long* keys
        int* directory
        StepNumbers step

ctypedef void* StreamHandle
ctypedef void* EventHandle
ctypedef void* KernelHandle
ctypedef const char* Text

cdef struct Retired:
    char* memory
    char* pinned
    EventHandle done                     # what the device still does with them; NULL: nothing


cdef class Device:
    cdef readonly str name
    cdef readonly unsigned multiprocessors
    cdef readonly unsigned most_lanes    # of a group that shares a row: at most WARP_LANES
    cdef readonly int dlpack_kind        # of its arrays, as DLPack numbers devices; and which of them
    cdef readonly int dlpack_number
    cdef readonly bint memory_is_hosts   # the host can use its memory as its own: it is emulated
    cdef public double wait_limit_s
    cdef atomic[Text] not_done           # what the host has waited for in vain; NULL: nothing. Set once
    cdef atomic[int64_t] waits           # of the host, for work that was not done
    cdef mutex retiring
    cdef vector[Retired] retired         # guarded by: retiring
    # Guarded by: the GIL. They give back what was retired: only who drives the device may wait for all of it
    cdef int open_workers

    # NULL: no memory is left. Aligned to 256 bytes.
    cdef char* allocate(self, size_t size_bytes) noexcept nogil
    cdef void release(self, char* memory) noexcept nogil
    # Of the host, where the device reads and writes it as fast as the bus allows.
    cdef char* allocate_pinned(self, size_t size_bytes) noexcept nogil
    cdef void release_pinned(self, char* memory) noexcept nogil
    # ``release``, later. The driver gives memory back when all that the device has to do is done, callers' work too, which
    # may wait for other ranks: so whoever holds what these may need leaves it to ``free_retired``, which is called with nothing
    # held.
    cdef void retire(self, char* memory) noexcept nogil
    # Of both kinds, once the event has happened, which is released with them. It has been recorded, or nothing uses them.
    cdef void retire_after(self, char* memory, char* pinned, EventHandle done) noexcept nogil
    # Whether there is any that the device has done with; ``most``: more than so many.
    cdef bint has_retired(self, size_t most) noexcept nogil
    cdef bint free_retired(self) noexcept nogil     # whether there was any
    # Of the device's memory: nobody has it now, in this process or another.
    cdef size_t free_bytes(self) noexcept nogil
    # NULL: refused.
    cdef StreamHandle new_stream(self) noexcept nogil
    cdef EventHandle new_event(self) noexcept nogil
    cdef void release_stream(self, StreamHandle stream) noexcept nogil
    cdef void release_event(self, EventHandle event) noexcept nogil
    # ``blocks`` of BLOCK_THREADS threads.
    cdef bint launch(self, StreamHandle stream, KernelHandle kernel, unsigned blocks, const RowBatch* batch) noexcept nogil
    # Between any two of the device's memories and pinned ones.
    cdef bint copy(self, StreamHandle stream, char* to, const char* source, size_t size_bytes) noexcept nogil
    cdef bint fill(self, StreamHandle stream, char* to, unsigned char value, size_t size_bytes) noexcept nogil
    # The event happens when all that was enqueued before has been done. Recorded again, it stands for the later moment.
    cdef bint record(self, StreamHandle stream, EventHandle event) noexcept nogil
    cdef bint wait(self, StreamHandle stream, EventHandle event) noexcept nogil
    # ``what`` is waited for: a constant text that goes on from "the device has not finished".
    cdef bint synchronize(self, EventHandle event, const char* what) noexcept nogil
    cdef bint has_happened(self, EventHandle event) noexcept nogil
    # Whether it is in the device's memory.
    cdef bint holds(self, const void* address) noexcept nogil
    cdef void host_reads(self, const void* pinned) noexcept nogil
    cdef void host_writes(self, const void* pinned) noexcept nogil
    # Of a kernel by the name under which NVRTC is asked for it. With the GIL; raises KeyError.
    cdef KernelHandle find_kernel(self, str name) except NULL
    # Of a wait since ``begun_ns`` that is not over: lets a moment pass. False: it has taken too long.
    cdef bint wait_on(self, int64_t begun_ns, const char* what) noexcept nogil


cdef int64_t now_ns() noexcept nogil
# Between two looks at what is waited for, since ``waited_ns``.
cdef void rest(int64_t waited_ns) noexcept nogil

# Blocks that give each group of lanes work for ``rows`` rows, and no more than fill the device.
cdef unsigned blocks_for(Device device, long long rows, unsigned lanes) noexcept nogil
