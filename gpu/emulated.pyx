"""A device that is not there; ``emulated.pxd`` is the contract."""

import itertools
import threading
from contextlib import contextmanager

cimport cython
from cython.operator cimport dereference, postdecrement
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp.string cimport string
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE, mmap, mprotect, munmap,
)

from intentpm.gpu.libraries import is_ordered_by_streams, stream_of_other

from intentpm.gpu.device cimport Device, EventHandle, KernelHandle, RowBatch, StreamHandle, WARP_LANES, now_ns

cdef enum:
    PAGE_BYTES = 4096
    MEMORY_BYTES = 256 << 20     # that it says it has; no more is kept from being allocated
    DL_EXTENSION = 12

_numbers = itertools.count()             # of the emulated devices of this process


@cython.no_gc_clear                      # rows, and what else is on it, are released after it was found to be garbage
cdef class EmulatedDevice(Device):
    """A device that the host emulates, in the order of a seed.

    Parameters: ``seed``, an integer; ``lanes``, that share a row: 1, or 32 as on a real device, which is slower; ``guarded``:
    the host that touches the device's memory is ended by the system; ``multiprocessors``: more of them make larger grids.
    Attributes: ``stands_still``: set it, and no work is done until it is taken back; ``held``, the address of a stream, or 0:
    the same of that one, as if it waited for another rank; ``copied_bytes``, by all copies enqueued so far. Any thread.
    """

    def __init__(self, seed: int = 0, *, lanes: int = 1, guarded: bool = False, multiprocessors: int = 2):
        if not 1 <= lanes <= WARP_LANES or lanes & (lanes - 1):
            raise ValueError(f"lanes={lanes}: a power of two up to {WARP_LANES} is meant")
        self.name = f"emulated (seed {seed})"
        self.multiprocessors = multiprocessors
        self.most_lanes = lanes
        self.guarded = guarded
        self.most_bytes = <size_t>-1
        self.random = <uint64_t>(seed & 0xffffffffffffffff)
        self.order = HappensBefore()
        self.dlpack_kind = DL_EXTENSION
        self.dlpack_number = next(_numbers)
        self.memory_is_hosts = True
        self.current = threading.local()
        self.new_stream()                # the legacy one: its handle is 1 (``libraries``)

    def __dealloc__(self):
        for entry in self.blocks:
            munmap(entry.second.memory, entry.second.mapped_bytes)

    @property
    def defects(self) -> list:
        """What was used wrongly so far, a line each."""
        return [bytes(line).decode() for line in self.found]

    @property
    def failure(self) -> str:
        return bytes(self.found[0]).decode() if self.found.size() else Device.failure.__get__(self)

    @property
    def stands_still(self) -> bool:
        return self.is_still

    @stands_still.setter
    def stands_still(self, value: bool) -> None:
        self.lock.lock()
        self.is_still = value
        self.lock.unlock()

    @property
    def held(self) -> int:
        return self.held_stream

    @held.setter
    def held(self, size_t address) -> None:
        self.lock.lock()
        self.held_stream = address
        self.lock.unlock()

    def holds_address(self, size_t address) -> bool:
        """Whether it is in the device's memory."""
        return self.holds(<const void*>address)

    @property
    def allocated_bytes(self) -> int:
        """Of the device's memory that is in use."""
        cdef size_t size_bytes = 0
        for entry in self.blocks:
            if not entry.second.pinned:
                size_bytes += entry.second.size_bytes
        return size_bytes

    @contextmanager
    def using(self, stream):
        """In the with block the calling thread works on ``stream``: what a library's current stream is on a GPU."""
        before = self.current_stream
        self.current.stream = stream
        try:
            yield stream
        finally:
            self.current.stream = before

    @property
    def current_stream(self):
        """The one that the calling thread works on; None: the host does the work itself."""
        return getattr(self.current, "stream", None)

    def stream_of(self, array):
        stream = self.current_stream
        if not is_ordered_by_streams(array):
            return stream_of_other(array)
        return None if stream is None else stream.address

    def new_array(self, shape, dtype):
        from intentpm.gpu.device_arrays import EmulatedArray
        return EmulatedArray(self, shape, dtype)

    @staticmethod
    def kernel_names() -> list:
        """Of every kernel that is compiled in."""
        return emulated_kernel_names().decode().splitlines()

    # -- memory ------------------------------------------------------------------------------------------------------------

    cdef char* allocate(self, size_t size_bytes) noexcept nogil:
        return self._allocate(size_bytes, False)

    cdef void release(self, char* memory) noexcept nogil:
        self._release(memory, False)

    cdef char* allocate_pinned(self, size_t size_bytes) noexcept nogil:
        return self._allocate(size_bytes, True)

    cdef void release_pinned(self, char* memory) noexcept nogil:
        self._release(memory, True)

    cdef char* _allocate(self, size_t size_bytes, bint pinned) noexcept nogil:
        cdef size_t mapped_bytes = (max(size_bytes, <size_t>1) + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES
        cdef char* memory = <char*>mmap(
            NULL, mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        cdef Block* block
        cdef size_t taken = size_bytes
        if memory == <char*>MAP_FAILED:
            return NULL
        self.lock.lock()
        for entry in self.blocks:
            taken += entry.second.size_bytes
        if taken > self.most_bytes:
            self.lock.unlock()
            munmap(memory, mapped_bytes)
            return NULL
        memset(memory, <int>(0x80 | self._draw(128)), mapped_bytes)
        block = &self.blocks[<size_t>memory]
        block.memory = memory
        block.size_bytes = size_bytes
        block.mapped_bytes = mapped_bytes
        block.pinned = pinned
        if self.guarded and not pinned:
            mprotect(memory, mapped_bytes, PROT_NONE)
        self.lock.unlock()
        return memory

    cdef void _release(self, char* memory, bint pinned) noexcept nogil:
        cdef Block* block
        if memory == NULL:
            return
        self.lock.lock()
        block = self._block_of(memory)
        if block == NULL or block.memory != memory or block.pinned != pinned:
            self._note(string(b"memory is released that was not allocated so"))
        else:
            if not self.order.host_may_write(&block.uses):
                self._note(string(b"memory is released before the event that says it is no longer used"))
            self._run_all()              # of a real device, too, releasing waits
            munmap(block.memory, block.mapped_bytes)
            self.blocks.erase(<size_t>memory)
        self.lock.unlock()

    cdef void _run_all(self) noexcept nogil:
        cdef int64_t begun_ns = now_ns()
        cdef bint goes_on = True
        while self._run_one():
            pass
        if self.held_stream and self._has_work():
            self.waits.fetch_add(1)
        while goes_on and self.held_stream and self._has_work():
            self.lock.unlock()
            goes_on = self.wait_on(begun_ns, b"all that it has to do, before memory is given back")
            self.lock.lock()
        while self._run_one():
            pass

    cdef bint _has_work(self) noexcept nogil:
        cdef size_t stream
        for stream in range(self.streams.size()):
            if not self.streams[stream].empty():
                return True
        return False

    cdef size_t free_bytes(self) noexcept nogil:
        cdef size_t taken = 0
        self.lock.lock()
        for entry in self.blocks:
            taken += 0 if entry.second.pinned else entry.second.size_bytes
        self.lock.unlock()
        return MEMORY_BYTES - min(taken, <size_t>MEMORY_BYTES)

    cdef Block* _block_of(self, const void* address) noexcept nogil:
        cdef Block* block
        found = self.blocks.upper_bound(<size_t>address)
        if found == self.blocks.begin():
            return NULL
        postdecrement(found)
        block = &dereference(found).second
        return block if <const char*>address < block.memory + max(block.size_bytes, <size_t>1) else NULL

    # -- streams and events --------------------------------------------------------------------------------------------------

    cdef StreamHandle new_stream(self) noexcept nogil:
        cdef unsigned stream
        self.lock.lock()
        stream = self.order.add_stream()
        self.streams.resize(stream + 1)
        self.lock.unlock()
        return <StreamHandle><size_t>(stream + 1)

    cdef EventHandle new_event(self) noexcept nogil:
        cdef size_t event
        self.lock.lock()
        event = self.events.size()
        self.events.resize(event + 1)
        self.lock.unlock()
        return <EventHandle>(event + 1)

    cdef bint launch(self, StreamHandle stream, KernelHandle kernel, unsigned blocks, const RowBatch* batch) noexcept nogil:
        cdef Work work
        work.kind = WORK_LAUNCH
        work.kernel = <const EmulatedKernel*>kernel
        work.blocks = blocks
        work.batch = batch[0]
        return self._submit(stream, work)

    cdef bint copy(self, StreamHandle stream, char* to, const char* source, size_t size_bytes) noexcept nogil:
        cdef Work work
        work.kind = WORK_COPY
        work.to = to
        work.source = source
        work.size_bytes = size_bytes
        return self._submit(stream, work)

    cdef bint fill(self, StreamHandle stream, char* to, unsigned char value, size_t size_bytes) noexcept nogil:
        cdef Work work
        work.kind = WORK_FILL
        work.to = to
        work.value = value
        work.size_bytes = size_bytes
        return self._submit(stream, work)

    cdef bint record(self, StreamHandle stream, EventHandle event) noexcept nogil:
        cdef Work work
        work.kind = WORK_RECORD
        work.event = <size_t>event - 1
        return self._submit(stream, work)

    cdef bint wait(self, StreamHandle stream, EventHandle event) noexcept nogil:
        cdef Work work
        work.kind = WORK_WAIT
        work.event = <size_t>event - 1
        return self._submit(stream, work)

    cdef bint synchronize(self, EventHandle event, const char* what) noexcept nogil:
        cdef size_t number = <size_t>event - 1
        cdef int64_t begun_ns = now_ns()
        cdef bint happened = True
        self.lock.lock()
        if self.events[number].happened < self.events[number].recorded:
            self.waits.fetch_add(1)
        if self.events[number].recorded == 0:
            self._note(string(b"the host waits for an event that nobody recorded"))
        while happened and self.events[number].happened < self.events[number].recorded:
            if self._run_one():
                continue
            if self.is_still or self.held_stream:
                self.lock.unlock()
                happened = self.wait_on(begun_ns, what)
                self.lock.lock()
            else:
                happened = False
                self._note(string(b"streams wait for each other"))
        if happened:
            self.order.host_after(self.events[number].moment)
        self.lock.unlock()
        return happened

    cdef bint has_happened(self, EventHandle event) noexcept nogil:
        cdef size_t number = <size_t>event - 1
        cdef bint happened
        self.lock.lock()
        self._run_one()
        happened = self.events[number].happened == self.events[number].recorded
        if happened:
            self.order.host_after(self.events[number].moment)
        self.lock.unlock()
        return happened

    cdef bint holds(self, const void* address) noexcept nogil:
        cdef Block* block
        self.lock.lock()
        block = self._block_of(address)
        self.lock.unlock()
        return block != NULL and not block.pinned

    cdef void host_reads(self, const void* pinned) noexcept nogil:
        cdef Block* block
        self.lock.lock()
        block = self._block_of(pinned)
        if block == NULL or not block.pinned:
            self._note(string(b"the host reads memory that is not pinned"))
        elif not self.order.host_may_read(&block.uses):
            self._note(string(b"the host reads memory before the event that says it is there"))
        self.lock.unlock()

    cdef void host_writes(self, const void* pinned) noexcept nogil:
        cdef Block* block
        self.lock.lock()
        block = self._block_of(pinned)
        if block == NULL or not block.pinned:
            self._note(string(b"the host writes memory that is not pinned"))
        elif not self.order.host_may_write(&block.uses):
            self._note(string(b"the host writes memory before the event that says it is no longer used"))
        self.lock.unlock()

    cdef KernelHandle find_kernel(self, str name) except NULL:
        cdef const EmulatedKernel* kernel = find_emulated_kernel(name.encode())
        if kernel == NULL:
            raise KeyError(name)
        return <KernelHandle>kernel

    # -- the queues ------------------------------------------------------------------------------------------------------------

    cdef uint64_t _draw(self, uint64_t below) noexcept nogil:
        """splitmix64: Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014."""
        self.random += <uint64_t>0x9e3779b97f4a7c15
        cdef uint64_t z = self.random
        z = (z ^ z >> 30) * <uint64_t>0xbf58476d1ce4e5b9
        z = (z ^ z >> 27) * <uint64_t>0x94d049bb133111eb
        return (z ^ z >> 31) % below

    cdef void _note(self, const string& defect) noexcept nogil:
        self.found.push_back(defect)

    cdef void _use(
            self, unsigned stream, const void* address, size_t size_bytes, bint writes, const char* what) noexcept nogil:
        cdef Block* block = self._block_of(address)
        cdef string defect = string(what)
        if size_bytes == 0:
            return
        if block == NULL or <const char*>address + size_bytes > block.memory + block.size_bytes:
            self._note(defect.append(string(b" touches memory that is not allocated")))
        elif writes and not self.order.writes(stream, &block.uses):
            self._note(defect.append(string(b" writes memory before the event that says it is no longer used")))
        elif not writes and not self.order.reads(stream, &block.uses):
            self._note(defect.append(string(b" reads memory before the event that says it is there")))

    cdef bint _submit(self, StreamHandle handle, Work& work) noexcept nogil:
        """Enqueues it, and sees to it that what it uses is ordered before it."""
        cdef unsigned stream = <unsigned>(<size_t>handle - 1)
        self.lock.lock()
        if stream >= self.streams.size():
            self.lock.unlock()
            return False
        if work.kind != WORK_WAIT:
            self.order.begin(stream)
        if work.kind == WORK_LAUNCH:
            self._use_arrays(stream, work)
        elif work.kind == WORK_COPY:
            self.copied_bytes += work.size_bytes
            self._use(stream, work.source, work.size_bytes, False, b"a copy")
            self._use(stream, work.to, work.size_bytes, True, b"a copy")
        elif work.kind == WORK_FILL:
            self._use(stream, work.to, work.size_bytes, True, b"a fill")
        elif work.kind == WORK_RECORD:
            self.events[work.event].recorded += 1
            self.events[work.event].moment = self.order.streams[stream]
            work.recording = self.events[work.event].recorded
        else:
            self._order_after(stream, work)
        self.streams[stream].push_back(work)
        # Mostly late; now and then the device is as fast as the host.
        if self._draw(4) == 0:
            self._run_one()
        self.lock.unlock()
        return True

    cdef void _use_arrays(self, unsigned stream, const Work& work) noexcept nogil:
        cdef int n
        cdef bint written
        for n in range(ARRAYS):
            written = work.kernel.writes >> n & 1
            if written or work.kernel.reads >> n & 1:
                self._use(stream, array_of(work.batch, n), 1, written, b"a kernel")

    cdef void _order_after(self, unsigned stream, Work& work) noexcept nogil:
        work.recording = self.events[work.event].recorded
        if work.recording == 0:
            self._note(string(b"a stream waits for an event that nobody recorded"))
        self.order.after(stream, self.events[work.event].moment)

    cdef bint _can_run(self, const Work& work) noexcept nogil:
        return work.kind != WORK_WAIT or self.events[work.event].happened >= work.recording

    cdef bint _run_one(self) noexcept nogil:
        """Does the first work of some stream that has any. False: no stream can go on."""
        cdef size_t count = self.streams.size()
        cdef size_t first, n, stream
        cdef Work work
        if count == 0 or self.is_still:
            return False
        first = self._draw(count)
        for n in range(count):
            stream = (first + n) % count
            if stream + 1 == self.held_stream or self.streams[stream].empty() or (
                    not self._can_run(self.streams[stream].front())):
                continue
            work = self.streams[stream].front()
            self.streams[stream].pop_front()
            self._run(work)
            return True
        return False

    cdef void _run(self, Work& work) noexcept nogil:
        if work.kind == WORK_RECORD:
            self.events[work.event].happened = work.recording
            return
        if work.kind == WORK_WAIT:
            return
        self._touch(work, PROT_READ | PROT_WRITE)
        if work.kind == WORK_COPY:
            memcpy(work.to, work.source, work.size_bytes)
        elif work.kind == WORK_FILL:
            memset(work.to, work.value, work.size_bytes)
        elif not run_kernel(work.kernel[0], work.batch, work.blocks, self._draw(<uint64_t>1 << 32)):
            self._note(string(b"a lane left while others of its warp waited for it"))
        self._touch(work, PROT_NONE)

    cdef void _touch(self, const Work& work, int protection) noexcept nogil:
        cdef int n
        if not self.guarded:
            return
        if work.kind == WORK_COPY:
            self._protect(work.source, protection)
        if work.kind != WORK_LAUNCH:
            self._protect(work.to, protection)
            return
        for n in range(ARRAYS):
            if (work.kernel.reads | work.kernel.writes) >> n & 1:
                self._protect(array_of(work.batch, n), protection)

    cdef void _protect(self, const void* address, int protection) noexcept nogil:
        cdef Block* block = self._block_of(address)
        if block != NULL and not block.pinned:
            mprotect(block.memory, block.mapped_bytes, protection)
