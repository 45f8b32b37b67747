"""What asynchronous calls return."""

from libc.stdint cimport uint32_t

from intentpm.runtime._native.engine cimport Engine
from intentpm.runtime._native.requests cimport Operation


cdef class OpenWrites:
    """Of one worker; its futures keep it as long as the engine may count it down."""

    cdef uint32_t count          # atomic: the worker adds / the engine subtracts


cdef class Future:
    cdef Engine engine
    cdef Operation operation
    cdef object rows             # pull: the array being filled; else None
    cdef object answer           # pull: what the caller gets: ``rows``, or the ``out`` whose memory they are
    cdef object table
    cdef OpenWrites open_writes  # of a write
    cdef bint ended
