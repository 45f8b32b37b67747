"""Memory, streams and events of a device as Python objects."""

from libc.stddef cimport size_t

from intentpm.gpu.device cimport Device, EventHandle, StreamHandle


cdef class Memory:
    cdef readonly Device device
    cdef readonly size_t size_bytes
    cdef readonly bint pinned
    cdef char* memory


cdef class Event:
    cdef readonly Device device
    cdef EventHandle handle


cdef class Stream:
    cdef readonly Device device
    cdef StreamHandle handle
    cdef bint is_borrowed
