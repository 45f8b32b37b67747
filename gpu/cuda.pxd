"""A CUDA device, by the driver's functions: resolved at run time, so that nothing here needs CUDA to be built or loaded.

The driver's functions are thread-safe and take no GIL. Each needs the device's context to be the calling thread's: ``_enter``
pushes it, ``_leave`` takes it off again, for the thread may be another library's, at work on another device.
Handles of kernels come from outside: CuPy compiles them (``compiler.py``). The context is the device's primary one, which
CuPy and PyTorch use too.
"""

from libc.stddef cimport size_t
from libcpp.atomic cimport atomic

from intentpm.gpu.device cimport Device, EventHandle

ctypedef unsigned long long DevicePointer

# Of the driver's C interface (cuda.h): results are 0 for success.
cdef struct Driver:
    int (*get_error_string)(int, const char**) noexcept nogil
    int (*init)(unsigned) noexcept nogil
    int (*get_device)(int*, int) noexcept nogil
    int (*get_name)(char*, int, int) noexcept nogil
    int (*get_attribute)(int*, int, int) noexcept nogil
    int (*retain_context)(void**, int) noexcept nogil
    int (*push_context)(void*) noexcept nogil
    int (*pop_context)(void**) noexcept nogil
    int (*get_memory)(size_t*, size_t*) noexcept nogil   # free, all
    int (*allocate)(DevicePointer*, size_t) noexcept nogil
    int (*release)(DevicePointer) noexcept nogil
    int (*allocate_pinned)(void**, size_t, unsigned) noexcept nogil
    int (*release_pinned)(void*) noexcept nogil
    int (*new_stream)(void**, unsigned) noexcept nogil
    int (*release_stream)(void*) noexcept nogil
    int (*new_event)(void**, unsigned) noexcept nogil
    int (*release_event)(void*) noexcept nogil
    int (*launch)(
        void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**) noexcept nogil
    int (*copy)(DevicePointer, DevicePointer, size_t, void*) noexcept nogil
    int (*fill)(DevicePointer, unsigned char, size_t, void*) noexcept nogil
    int (*record)(void*, void*) noexcept nogil
    int (*wait)(void*, void*, unsigned) noexcept nogil
    int (*query)(void*) noexcept nogil
    int (*get_pointer_attribute)(void*, int, DevicePointer) noexcept nogil


cdef class CudaDevice(Device):
    cdef readonly int ordinal
    cdef Driver driver
    cdef void* context           # NULL: the device could not be opened
    cdef atomic[int] failed      # the first result that was not success; 0: none
    cdef object compile_kernels
    cdef dict kernels            # name -> handle
    # private
    cdef bint _enter(self) noexcept nogil
    cdef bint _leave(self, int result) noexcept nogil
    cdef bint _check(self, int result) noexcept nogil
    cdef int _query(self, EventHandle event) noexcept nogil
    cdef _text_of(self, int result)
