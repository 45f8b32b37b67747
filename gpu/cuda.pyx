"""A CUDA device, by the driver's functions; ``cuda.pxd`` says how."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from posix.dlfcn cimport RTLD_NOW, dlerror, dlopen, dlsym

from intentpm.foundation.errors import DeviceError
from intentpm.gpu.compiler import compile_with_cupy
from intentpm.gpu.libraries import new_array, stream_of

from intentpm.gpu.device cimport (
    BLOCK_THREADS, WARP_LANES, Device, EventHandle, KernelHandle, RowBatch, StreamHandle, now_ns,
)

cdef enum:
    DL_CUDA = 2
    CU_STREAM_NON_BLOCKING = 1
    CU_EVENT_DISABLE_TIMING = 2
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9
    CUDA_ERROR_NOT_READY = 600
    MOST_NAME_BYTES = 100

# Names in libcuda in the order of Driver's fields: those that cuda.h's macros lead to.
_FUNCTIONS = (
    "cuGetErrorString", "cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain",
    "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuMemGetInfo_v2", "cuMemAlloc_v2", "cuMemFree_v2", "cuMemHostAlloc",
    "cuMemFreeHost", "cuStreamCreate", "cuStreamDestroy_v2", "cuEventCreate", "cuEventDestroy_v2", "cuLaunchKernel",
    "cuMemcpyAsync", "cuMemsetD8Async", "cuEventRecord", "cuStreamWaitEvent", "cuEventQuery", "cuPointerGetAttribute",
)


def count_devices(library: str = "libcuda.so.1") -> int:
    """How many the driver shows this process; 0 without a driver."""
    cdef int count = 0
    cdef int (*init)(unsigned) noexcept nogil
    cdef int (*count_them)(int*) noexcept nogil
    cdef void* loaded = dlopen(library.encode(), RTLD_NOW)
    if loaded == NULL:
        return 0
    init = <int (*)(unsigned) noexcept nogil>dlsym(loaded, b"cuInit")
    count_them = <int (*)(int*) noexcept nogil>dlsym(loaded, b"cuDeviceGetCount")
    if init == NULL or count_them == NULL or init(0) or count_them(&count):
        return 0
    return count


cdef class CudaDevice(Device):
    """The CUDA device of that number, as CUDA_VISIBLE_DEVICES counts them. Any thread.

    Parameters: ``library``, the driver's; ``compile_kernels(ordinal, names) -> {name: handle}``.
    Raises DeviceError when there is no driver or no such device.
    """

    def __init__(self, ordinal: int = 0, *, library: str = "libcuda.so.1", compile_kernels=compile_with_cupy):
        cdef int device = 0, count = 0
        cdef char name[MOST_NAME_BYTES]
        self.ordinal = ordinal
        self.dlpack_kind = DL_CUDA
        self.dlpack_number = ordinal
        self.compile_kernels = compile_kernels
        self.kernels = {}
        self._resolve(library)
        self._expect(self.driver.init(0))
        self._expect(self.driver.get_device(&device, ordinal))
        self._expect(self.driver.get_name(name, MOST_NAME_BYTES, device))
        self._expect(self.driver.get_attribute(&count, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device))
        self._expect(self.driver.retain_context(&self.context, device))
        self.name = name.decode()
        self.multiprocessors = count
        self.most_lanes = WARP_LANES

    def _resolve(self, str library):
        cdef void* loaded = dlopen(library.encode(), RTLD_NOW)
        cdef void** functions = <void**>&self.driver
        if loaded == NULL:
            raise DeviceError(f"there is no CUDA driver: {dlerror().decode()}")
        for i, name in enumerate(_FUNCTIONS):
            functions[i] = dlsym(loaded, name.encode())
            if functions[i] == NULL:
                raise DeviceError(f"{library} has no {name}: its driver is too old")

    def _expect(self, result: int):
        if result:
            raise DeviceError(f"CUDA device {self.ordinal} cannot be used: {self._text_of(result)}")

    cdef _text_of(self, int result):
        cdef const char* text = NULL
        self.driver.get_error_string(result, &text)
        return f"{text.decode() if text != NULL else 'unknown'} (CUDA error {result})"

    @property
    def failure(self) -> str:
        cdef int result = self.failed.load()
        return self._text_of(result) if result else Device.failure.__get__(self)

    cdef inline bint _enter(self) noexcept nogil:
        return self._check(self.driver.push_context(self.context))

    cdef inline bint _leave(self, int result) noexcept nogil:
        """After a call of the driver; whether it succeeded."""
        cdef void* context
        self.driver.pop_context(&context)
        return self._check(result)

    cdef inline bint _check(self, int result) noexcept nogil:
        if result and self.failed.load() == 0:
            self.failed.store(result)
        return result == 0

    # -- memory ------------------------------------------------------------------------------------------------------------

    cdef char* allocate(self, size_t size_bytes) noexcept nogil:
        cdef DevicePointer memory = 0
        if not self._enter() or not self._leave(self.driver.allocate(&memory, max(size_bytes, <size_t>1))):
            return NULL
        return <char*>memory

    cdef void release(self, char* memory) noexcept nogil:
        if memory != NULL and self._enter():
            self._leave(self.driver.release(<DevicePointer>memory))

    cdef char* allocate_pinned(self, size_t size_bytes) noexcept nogil:
        cdef void* memory = NULL
        if not self._enter() or not self._leave(self.driver.allocate_pinned(&memory, max(size_bytes, <size_t>1), 0)):
            return NULL
        return <char*>memory

    cdef void release_pinned(self, char* memory) noexcept nogil:
        if memory != NULL and self._enter():
            self._leave(self.driver.release_pinned(memory))

    cdef size_t free_bytes(self) noexcept nogil:
        cdef size_t free_bytes = 0, all_bytes = 0
        if not self._enter() or not self._leave(self.driver.get_memory(&free_bytes, &all_bytes)):
            return 0
        return free_bytes

    # -- streams and events --------------------------------------------------------------------------------------------------

    cdef StreamHandle new_stream(self) noexcept nogil:
        cdef void* stream = NULL
        # Not ordered with the legacy default stream, which would make every caller's stream wait for this one.
        if not self._enter() or not self._leave(self.driver.new_stream(&stream, CU_STREAM_NON_BLOCKING)):
            return NULL
        return stream

    cdef EventHandle new_event(self) noexcept nogil:
        cdef void* event = NULL
        if not self._enter() or not self._leave(self.driver.new_event(&event, CU_EVENT_DISABLE_TIMING)):
            return NULL
        return event

    cdef void release_stream(self, StreamHandle stream) noexcept nogil:
        if self._enter():
            self._leave(self.driver.release_stream(stream))

    cdef void release_event(self, EventHandle event) noexcept nogil:
        if self._enter():
            self._leave(self.driver.release_event(event))

    cdef bint launch(self, StreamHandle stream, KernelHandle kernel, unsigned blocks, const RowBatch* batch) noexcept nogil:
        cdef void* arguments[1]
        arguments[0] = <void*>batch
        return self._enter() and self._leave(
            self.driver.launch(kernel, blocks, 1, 1, BLOCK_THREADS, 1, 1, 0, stream, arguments, NULL))

    cdef bint copy(self, StreamHandle stream, char* to, const char* source, size_t size_bytes) noexcept nogil:
        return size_bytes == 0 or (self._enter() and self._leave(
            self.driver.copy(<DevicePointer>to, <DevicePointer>source, size_bytes, stream)))

    cdef bint fill(self, StreamHandle stream, char* to, unsigned char value, size_t size_bytes) noexcept nogil:
        return size_bytes == 0 or (
            self._enter() and self._leave(self.driver.fill(<DevicePointer>to, value, size_bytes, stream)))

    cdef bint record(self, StreamHandle stream, EventHandle event) noexcept nogil:
        return self._enter() and self._leave(self.driver.record(event, stream))

    cdef bint wait(self, StreamHandle stream, EventHandle event) noexcept nogil:
        return self._enter() and self._leave(self.driver.wait(stream, event, 0))

    cdef bint synchronize(self, EventHandle event, const char* what) noexcept nogil:
        # The driver's own wait has no deadline.
        cdef int64_t begun_ns = now_ns()
        cdef int result = self._query(event)
        if result == CUDA_ERROR_NOT_READY:
            self.waits.fetch_add(1)
        while result == CUDA_ERROR_NOT_READY and self.wait_on(begun_ns, what):
            result = self._query(event)
        return result == 0

    cdef bint has_happened(self, EventHandle event) noexcept nogil:
        return self._query(event) != CUDA_ERROR_NOT_READY

    cdef int _query(self, EventHandle event) noexcept nogil:
        """0: it has happened; CUDA_ERROR_NOT_READY: not yet. Any other result is a failure."""
        cdef int result
        if not self._enter():
            return self.failed.load()
        result = self.driver.query(event)
        self._leave(0 if result == CUDA_ERROR_NOT_READY else result)
        return result

    cdef bint holds(self, const void* address) noexcept nogil:
        cdef int ordinal = -1
        if not self._enter():
            return False
        # Of memory that the driver does not know it fails, which says nothing of the device.
        if self.driver.get_pointer_attribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, <DevicePointer>address):
            ordinal = -1
        self._leave(0)
        return ordinal == self.ordinal

    def stream_of(self, array):
        return stream_of(array, self.ordinal)

    def new_array(self, shape, dtype):
        return new_array(self.ordinal, shape, dtype)

    def compile(self, names) -> None:
        missing = [name for name in names if name not in self.kernels]
        if missing:
            self.kernels.update(self.compile_kernels(self.ordinal, missing))

    cdef KernelHandle find_kernel(self, str name) except NULL:
        self.compile([name])
        return <KernelHandle><size_t>self.kernels[name]
