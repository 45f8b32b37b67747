"""Arrays in the memory of a device, whoever made them: where they lie, and what in them.

Any thread, holding the GIL. No state.
"""

from libc.stddef cimport size_t

from intentpm.gpu.device cimport Device


cdef class DeviceArray:
    cdef readonly object given           # as the caller has it
    cdef readonly object owner           # keeps the memory
    cdef char* memory
    cdef readonly tuple shape
    cdef readonly object dtype           # numpy.dtype
    cdef readonly tuple strides          # in bytes
    cdef readonly bint is_contiguous

    cdef _set_strides(self, tuple strides)
