"""A device that is not there: kernels compiled for the host, streams as queues that run late, in an order of the seed.

Guarantees
    * Work is done as late, and as interleaved between streams, as events and the host's waits allow; the same seed and the same
      calls do the same. Fresh memory holds garbage.
    * What a real device would do wrong only sometimes is noted as a defect when it is enqueued: memory used before the event
      that says it is there, or is free; memory that is not the device's; an event that nobody recorded.
    * With ``guarded``, the host cannot touch the device's memory at all, and a kernel none but what it is known to touch.
Assumption: the threads of the host synchronise with each other. Guarded by ``mutex``: all below.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint64_t
from libcpp.deque cimport deque
from libcpp.map cimport map as ordered_map
from libcpp.mutex cimport mutex
from libcpp.string cimport string
from libcpp.vector cimport vector

from intentpm.gpu.device cimport Device, EventHandle, RowBatch, StreamHandle
from intentpm.gpu.happens_before cimport HappensBefore, Moment, Uses

cdef extern from "gpu/emulated_kernels.hpp" namespace "intentpm::gpu" nogil:
    enum:
        ARRAYS

    cdef struct EmulatedKernel "intentpm::gpu::EmulatedKernel":
        unsigned reads
        unsigned writes

    const EmulatedKernel* find_emulated_kernel(const string& name)
    string emulated_kernel_names()
    const void* array_of(const RowBatch& batch, int n)
    bint run_kernel(const EmulatedKernel& kernel, const RowBatch& batch, unsigned blocks, uint64_t seed)


cdef enum WorkKind:
    WORK_LAUNCH
    WORK_COPY
    WORK_FILL
    WORK_RECORD
    WORK_WAIT

cdef struct Work:
    WorkKind kind
    const EmulatedKernel* kernel
    unsigned blocks
    RowBatch batch
    char* to
    const char* source
    size_t size_bytes
    unsigned char value
    size_t event
    uint64_t recording           # of the event, that the work makes or waits for

cdef struct Block:
    char* memory
    size_t size_bytes
    size_t mapped_bytes
    bint pinned
    Uses uses

cdef struct Event:
    uint64_t recorded            # how often it was enqueued
    uint64_t happened            # the last recording that is done
    Moment moment                # of the last recording


cdef class EmulatedDevice(Device):
    cdef readonly bint guarded
    cdef readonly size_t copied_bytes    # guarded by: lock
    cdef public size_t most_bytes        # of all its memory, pinned too; more is refused
    cdef bint is_still
    cdef size_t held_stream              # a handle: none of its work is done meanwhile; 0: of all
    cdef object current                  # threading.local: the stream that a thread works on
    cdef mutex lock
    cdef uint64_t random
    cdef HappensBefore order
    cdef vector[deque[Work]] streams     # a handle is the number of it + 1; of events too
    cdef vector[Event] events
    cdef ordered_map[size_t, Block] blocks  # by address
    cdef vector[string] found            # defects
    # private, the lock held
    cdef uint64_t _draw(self, uint64_t below) noexcept nogil
    cdef void _note(self, const string& defect) noexcept nogil
    cdef Block* _block_of(self, const void* address) noexcept nogil
    cdef char* _allocate(self, size_t size_bytes, bint pinned) noexcept nogil
    cdef void _release(self, char* memory, bint pinned) noexcept nogil
    cdef void _use(self, unsigned stream, const void* address, size_t size_bytes, bint writes, const char* what) noexcept nogil
    cdef bint _submit(self, StreamHandle handle, Work& work) noexcept nogil
    cdef void _use_arrays(self, unsigned stream, const Work& work) noexcept nogil
    cdef void _order_after(self, unsigned stream, Work& work) noexcept nogil
    cdef bint _can_run(self, const Work& work) noexcept nogil
    cdef bint _run_one(self) noexcept nogil
    cdef void _run_all(self) noexcept nogil
    cdef bint _has_work(self) noexcept nogil
    cdef void _run(self, Work& work) noexcept nogil
    cdef void _touch(self, const Work& work, int protection) noexcept nogil
    cdef void _protect(self, const void* address, int protection) noexcept nogil
