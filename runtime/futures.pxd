"""What asynchronous calls return."""

from intentpm.runtime._native.engine cimport Engine
from intentpm.runtime._native.requests cimport Operation


cdef class Future:
    cdef Engine engine
    cdef Operation operation
    cdef object rows             # pull: the array being filled; else None
    cdef object answer           # pull: what the caller gets: ``rows``, or the ``out`` whose memory they are
    cdef object table
    cdef bint ended
