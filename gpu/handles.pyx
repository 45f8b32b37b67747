"""Memory, streams and events of a device as Python objects, each released with its object. Any thread."""

cimport cython
from libc.stddef cimport size_t
from libc.string cimport memcpy, memset

from intentpm.gpu.device cimport Device, KernelHandle, RowBatch, StreamHandle, blocks_for


@cython.no_gc_clear                      # __dealloc__ needs the device
cdef class Memory:
    """``size_bytes`` of a device's memory, or with ``pinned`` of the host's. Raises MemoryError.

    Attributes: ``device``, ``size_bytes``, ``pinned``, ``address``. The host touches pinned memory by ``read`` and ``write``,
    which tell the device so.
    """

    def __init__(self, Device device not None, size_t size_bytes, *, pinned: bool = False):
        self.device = device
        self.size_bytes = size_bytes
        self.pinned = pinned
        self.memory = device.allocate_pinned(size_bytes) if pinned else device.allocate(size_bytes)
        if self.memory == NULL:
            raise MemoryError(f"{device.name}: {size_bytes} bytes are not to be had")

    def __dealloc__(self):
        if self.memory != NULL and self.pinned:
            self.device.release_pinned(self.memory)
        elif self.memory != NULL:
            self.device.release(self.memory)

    @property
    def address(self) -> int:
        return <size_t>self.memory

    def read(self) -> bytes:
        """What is in pinned memory."""
        self.device.host_reads(self.memory)
        return self.memory[:self.size_bytes]

    def write(self, const unsigned char[::1] data) -> None:
        """Fills pinned memory, from its beginning."""
        if <size_t>data.shape[0] > self.size_bytes or not self.pinned:
            raise ValueError(f"{data.shape[0]} bytes into {self.size_bytes}, pinned: {self.pinned}")
        self.device.host_writes(self.memory)
        if data.shape[0] > 0:
            memcpy(self.memory, &data[0], data.shape[0])


@cython.no_gc_clear                      # __dealloc__ needs the device
cdef class Event:
    """A moment of a stream, once it is recorded. Raises MemoryError."""

    def __init__(self, Device device not None):
        self.device = device
        self.handle = device.new_event()
        if self.handle == NULL:
            raise MemoryError(f"{device.name}: {device.failure}")

    def __dealloc__(self):
        if self.handle != NULL:
            self.device.release_event(self.handle)

    def synchronize(self) -> None:
        """Waits until it has happened, without the GIL. Raises RuntimeError when the device failed, or takes too long."""
        cdef bint happened
        with nogil:
            happened = self.device.synchronize(self.handle, b"the work before an event")
        _check(self.device, happened)

    def has_happened(self) -> bool:
        return self.device.has_happened(self.handle)


@cython.no_gc_clear                      # __dealloc__ needs the device
cdef class Stream:
    """Work in order. Its methods return before the work is done; they raise RuntimeError when the device refused it."""

    def __init__(self, Device device not None):
        self.device = device
        self.handle = device.new_stream()
        if self.handle == NULL:
            raise MemoryError(f"{device.name}: {device.failure}")

    def __dealloc__(self):
        if self.handle != NULL and not self.is_borrowed:
            self.device.release_stream(self.handle)

    @staticmethod
    def at(Device device not None, size_t address):
        """The one that the driver knows by that address: somebody else's, or the legacy one (1)."""
        cdef Stream found = Stream.__new__(Stream)
        found.device = device
        found.handle = <StreamHandle>address
        found.is_borrowed = True
        return found

    @property
    def address(self) -> int:
        """As the driver knows it."""
        return <size_t>self.handle

    def synchronize(self) -> None:
        """Waits until all that was enqueued is done."""
        done = Event(self.device)
        self.record(done)
        done.synchronize()

    def copy(self, Memory to not None, Memory source not None, size_t size_bytes) -> None:
        """The first ``size_bytes`` of ``source`` into ``to``."""
        if size_bytes > to.size_bytes or size_bytes > source.size_bytes:
            raise ValueError(f"{size_bytes} bytes from {source.size_bytes} into {to.size_bytes}")
        _check(self.device, self.device.copy(self.handle, to.memory, source.memory, size_bytes))

    def fill(self, Memory to not None, unsigned char value) -> None:
        _check(self.device, self.device.fill(self.handle, to.memory, value, to.size_bytes))

    def launch(self, str kernel, **arguments) -> None:
        """A kernel by name; ``arguments`` are fields of RowBatch, those that are not given are 0. Arrays are Memory."""
        cdef RowBatch batch
        cdef KernelHandle handle = self.device.find_kernel(kernel)
        memset(&batch, 0, sizeof(batch))
        for name, value in arguments.items():
            _set(&batch, name, value)
        batch.lanes = max(batch.lanes, <unsigned>1)
        _check(self.device, self.device.launch(
            self.handle, handle, blocks_for(self.device, batch.count, batch.lanes), &batch))

    def record(self, Event event not None) -> None:
        _check(self.device, self.device.record(self.handle, event.handle))

    def wait(self, Event event not None) -> None:
        """What is enqueued from now on comes after ``event``."""
        _check(self.device, self.device.wait(self.handle, event.handle))


cdef _set(RowBatch* batch, str name, value):
    cdef char* address = (<Memory>value).memory if isinstance(value, Memory) else NULL
    if name == "slab":
        batch.slab = address
    elif name == "slots":
        batch.slots = <const int*>address
    elif name == "rows":
        batch.rows = address
    elif name == "claims":
        batch.claims = <int*>address
    elif name == "marks":
        batch.marks = <int*>address
    elif name == "keys":
        batch.keys = <const long long*>address
    elif name == "directory":
        batch.directory = <int*>address
    elif name == "stride_bytes":
        batch.stride_bytes = value
    elif name == "count":
        batch.count = value
    elif name == "row_bytes":
        batch.row_bytes = value
    elif name == "lanes":
        batch.lanes = value
    else:
        raise TypeError(f"launch() got an unexpected argument {name!r}")


cdef _check(Device device, bint done):
    if not done:
        raise RuntimeError(f"{device.name}: {device.failure}")
