"""Arrays in the memory of a device; ``device_arrays.pxd`` is the contract.

Read by DLPack (github.com/dmlc/dlpack), which PyTorch, CuPy, JAX and NumPy speak; what only has
``__cuda_array_interface__`` (Numba's arrays) by that.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport calloc, free

import sys

import numpy as np

from intentpm.foundation.errors import DeviceError, DtypeError
from intentpm.gpu.libraries import producer_stream

from intentpm.gpu.device cimport Device
from intentpm.gpu.handles cimport Memory

# -- DLPack ------------------------------------------------------------------------------------------------------------------

cdef enum:
    GARBAGE = 0x9d               # floats of it are small, integers far from any key
    DL_CPU = 1
    DL_CUDA_HOST = 3             # pinned
    DL_INT = 0
    DL_UINT = 1
    DL_FLOAT = 2
    DL_BFLOAT = 4

cdef struct DLDevice:
    int32_t device_type
    int32_t device_id

cdef struct DLDataType:
    uint8_t code
    uint8_t bits
    uint16_t lanes

cdef struct DLTensor:
    void* data
    DLDevice device
    int32_t ndim
    DLDataType dtype
    int64_t* shape
    int64_t* strides             # in items; NULL: C-contiguous
    uint64_t byte_offset

cdef struct DLManagedTensor:
    DLTensor tensor
    void* context
    void (*deleter)(DLManagedTensor*) noexcept


cdef object _dtype_of(const DLDataType* given):
    kinds = {DL_INT: "i", DL_UINT: "u", DL_FLOAT: "f"}
    if given.lanes == 1 and given.code == DL_BFLOAT and given.bits == 16:
        import ml_dtypes
        return np.dtype(ml_dtypes.bfloat16)
    if given.lanes != 1 or given.code not in kinds or given.bits % 8:
        raise DtypeError("an array on a device has a dtype that no table has: pass float32, int64 or their like")
    return np.dtype(f"{kinds[given.code]}{given.bits // 8}")


cdef tuple _strides_of(tuple shape, size_t item_bytes):
    """In bytes, of a C-contiguous array."""
    strides = []
    for length in shape[::-1]:
        strides.append(item_bytes)
        item_bytes *= max(1, length)
    return tuple(strides[::-1])


cdef class DeviceArray:
    """What is known of an array in the memory of a device. Made by ``as_device_array``.

    Attributes: ``given``, the array itself; ``owner``, what keeps the memory; ``shape``; ``dtype``; ``strides`` in bytes;
    ``is_contiguous``, in C's order; ``address``.
    """

    cdef _set_strides(self, tuple strides):
        """None: C-contiguous. Those of axes that are not walked along are as in a contiguous array."""
        contiguous = _strides_of(self.shape, self.dtype.itemsize)
        if strides is None or 0 in self.shape:
            strides = contiguous
        self.strides = tuple([
            stride if length > 1 else usual
            for length, stride, usual in zip(self.shape, strides, contiguous, strict=True)])
        self.is_contiguous = self.strides == contiguous

    @property
    def address(self) -> int:
        return <size_t>self.memory


def as_device_array(array, Device device not None):
    """``array`` as one on ``device``; None: it does not lie there. The host does not wait; streams as ``libraries`` says.

    Raises DeviceError for memory of another device; DtypeError.
    """
    if array is None or isinstance(array, (np.ndarray, list, tuple, int)):
        return None
    if hasattr(array, "__dlpack_device__"):
        return _from_dlpack(array, device)
    if hasattr(array, "__cuda_array_interface__"):
        return _from_interface(array, device)
    return None


cdef DeviceArray _from_dlpack(object array, Device device):
    cdef DeviceArray found
    cdef const DLTensor* tensor
    kind, number = (int(part) for part in array.__dlpack_device__())
    kind = DL_CPU if kind == DL_CUDA_HOST else kind
    if kind != device.dlpack_kind and kind != DL_CPU:
        raise DeviceError(f"an array of {type(array).__name__} lies on another kind of device than {device.name}")
    if kind == device.dlpack_kind and number != device.dlpack_number:
        raise DeviceError(
            f"an array of {type(array).__name__} lies on device {number}, the worker is of {device.name}, device "
            f"{device.dlpack_number}: move it there first")
    if kind == DL_CPU and not device.memory_is_hosts:
        return None
    capsule = _capsule_of(array, kind)
    if not PyCapsule_IsValid(capsule, "dltensor"):
        raise DeviceError(f"{type(array).__name__}.__dlpack__ gives no tensor of DLPack")
    tensor = &(<DLManagedTensor*>PyCapsule_GetPointer(capsule, "dltensor")).tensor
    found = DeviceArray.__new__(DeviceArray)
    found.given = array
    found.owner = (array, capsule)
    found.memory = <char*>tensor.data + tensor.byte_offset
    found.shape = tuple([tensor.shape[axis] for axis in range(tensor.ndim)])
    found.dtype = _dtype_of(&tensor.dtype)
    found._set_strides(None if tensor.strides == NULL else tuple(
        [tensor.strides[axis] * found.dtype.itemsize for axis in range(tensor.ndim)]))
    # An emulated device's memory is the host's: PyTorch on the CPU may have made a tensor of it.
    return found if kind == device.dlpack_kind or device.holds(found.memory) else None


cdef object _capsule_of(object array, int kind):
    stream = producer_stream(array)
    if hasattr(array, "detach"):
        array = array.detach()
    if kind == DL_CPU:
        return array.__dlpack__()
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):    # refuses those that are not on its current device
        with torch.cuda.device(array.device):
            return array.__dlpack__(stream=stream)
    return array.__dlpack__(stream=stream)


cdef DeviceArray _from_interface(object array, Device device):
    """One that only has ``__cuda_array_interface__``, which does not say on which device it lies."""
    cdef DeviceArray found = DeviceArray.__new__(DeviceArray)
    interface = array.__cuda_array_interface__
    found.given = found.owner = array
    found.memory = <char*><size_t>interface["data"][0]
    found.shape = tuple(interface["shape"])
    found.dtype = np.dtype(interface["typestr"])
    found._set_strides(interface.get("strides"))
    if 0 not in found.shape and not device.holds(found.memory):
        raise DeviceError(f"an array of {type(array).__name__} does not lie on {device.name}: move it there first")
    return found


# -- arrays of an emulated device ----------------------------------------------------------------------------------------------

cdef void _delete(DLManagedTensor* managed) noexcept:
    Py_DECREF(<object>managed.context)
    free(managed.tensor.shape)
    free(managed)


cdef void _drop_capsule(object capsule) noexcept:
    cdef DLManagedTensor* managed
    if PyCapsule_IsValid(capsule, "dltensor"):
        managed = <DLManagedTensor*>PyCapsule_GetPointer(capsule, "dltensor")
        managed.deleter(managed)


class EmulatedArray:
    """An array in the memory of an emulated device, C-contiguous; fresh, it holds garbage. What CuPy's are on a GPU.

    Its memory is used again in the order of the stream that the thread worked on when it was made, as is that of pools: who
    still uses it then is reported. ``set`` and ``get`` are work of the stream they are given; ``get`` waits for it.
    """

    def __init__(self, device, shape, dtype):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.memory = Memory(device, max(1, self.nbytes))
        self.device = device
        self.stream = device.current_stream
        self._version = 0                # of what is in it, as torch's tensors have

    def __del__(self):
        if getattr(self, "stream", None) is not None:
            self.stream.fill(self.memory, GARBAGE)
            self.stream.synchronize()

    @property
    def nbytes(self):
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def address(self):
        return self.memory.address

    def __len__(self):
        return self.shape[0]

    def set(self, values, stream):
        values = np.ascontiguousarray(values, self.dtype)
        if values.shape != self.shape:
            raise ValueError(f"values have shape {values.shape}, the array {self.shape}")
        pinned = Memory(self.device, max(1, self.nbytes), pinned=True)
        pinned.write(values.reshape(-1).view(np.uint8))
        self._version += 1
        stream.copy(self.memory, pinned, self.nbytes)
        stream.synchronize()             # ``pinned`` goes

    def get(self, stream):
        pinned = Memory(self.device, max(1, self.nbytes), pinned=True)
        stream.copy(pinned, self.memory, self.nbytes)
        stream.synchronize()
        return np.frombuffer(pinned.read()[: self.nbytes], self.dtype).reshape(self.shape).copy()

    def __dlpack_device__(self):
        return (self.device.dlpack_kind, self.device.dlpack_number)

    def __dlpack__(self, *, stream=None, **more):
        return _new_capsule(self)


cdef object _new_capsule(object array):
    cdef DLManagedTensor* managed = <DLManagedTensor*>calloc(1, sizeof(DLManagedTensor))
    cdef Memory memory = array.memory
    cdef int axis
    codes = {"i": DL_INT, "u": DL_UINT, "f": DL_FLOAT, "V": DL_BFLOAT}
    if managed == NULL:
        raise MemoryError()
    managed.tensor.shape = <int64_t*>calloc(max(1, len(array.shape)), sizeof(int64_t))
    if managed.tensor.shape == NULL:
        free(managed)
        raise MemoryError()
    for axis in range(len(array.shape)):
        managed.tensor.shape[axis] = array.shape[axis]
    managed.tensor.data = memory.memory
    managed.tensor.device.device_type = array.device.dlpack_kind
    managed.tensor.device.device_id = array.device.dlpack_number
    managed.tensor.ndim = len(array.shape)
    managed.tensor.dtype.code = codes[array.dtype.kind]
    managed.tensor.dtype.bits = 8 * array.dtype.itemsize
    managed.tensor.dtype.lanes = 1
    managed.context = <void*>array
    managed.deleter = _delete
    Py_INCREF(array)
    return PyCapsule_New(managed, "dltensor", _drop_capsule)
