"""Rows between arrays in device memory and the host: what cannot be done on the device.

Guarantees
    * ``fetch`` waits for the rows. ``deliver`` returns when its rows are copied, before they are there.
    * Both are ordered with the caller's streams (``caller_streams``), on a stream of this object's.
Assumptions
    * An array is C-contiguous rows of ``row_bytes``. Positions are rows of it; NULL: all, in order.
Any thread, several at once; without the GIL.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libcpp.mutex cimport mutex

from intentpm.gpu.caller_streams cimport CallerStreams
from intentpm.gpu.device cimport Device, EventHandle, KernelHandle, StreamHandle
from intentpm.gpu.exchanges cimport Exchange, ExchangePool

cdef enum:
    UNITS = 5                            # of 1, 2, 4, 8 and 16 bytes, that a row is moved by


cdef class RowTransfer:
    cdef readonly Device device
    cdef mutex lock                      # guards all below
    cdef StreamHandle stream
    cdef EventHandle event
    cdef ExchangePool exchanges
    cdef KernelHandle gather[UNITS]

    # Rows at ``positions`` of ``array`` into ``out``, one after the other.
    cdef bint fetch(
        self, CallerStreams callers, const char* array, const int32_t* positions, int64_t count, size_t row_bytes,
        char* out) noexcept nogil
    # ``rows``, one after the other, into those at ``positions`` of ``array``, which ascend.
    cdef bint deliver(
        self, CallerStreams callers, char* array, const int32_t* positions, int64_t count, size_t row_bytes,
        const char* rows) noexcept nogil
    # private
    cdef bint _fetch_run(
        self, const char* array, const int32_t* positions, int64_t count, size_t row_bytes, char* out) noexcept nogil
    cdef bint _deliver_run(
        self, char* array, const int32_t* positions, int64_t count, size_t row_bytes, const char* rows) noexcept nogil
    cdef bint _bring(self, Exchange* exchange, size_t begin, size_t end) noexcept nogil
    cdef bint _gather(
        self, const char* slab, char* rows, const int* slots, int64_t count, size_t row_bytes) noexcept nogil
