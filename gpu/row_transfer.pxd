"""Rows between arrays in device memory and the host, and between such arrays and memory of ours.

Guarantees
    * ``fetch`` waits for the rows. ``deliver`` and ``hand_over`` return before they are there.
    * Only this stream, and none that others wait for, waits for the caller's.
Assumptions
    * An array is C-contiguous rows of ``row_bytes``. Positions are rows of it; NULL: all, in order.
    * What the caller's stream has to do with an array that is fetched is done.
Guarded by: whoever owns it. Without the GIL.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t

from intentpm.gpu.caller_stream cimport CallerStream
from intentpm.gpu.device cimport Device, KernelHandle, StreamHandle
from intentpm.gpu.exchanges cimport Exchange, ExchangePool

cdef enum:
    RUN_BYTES = 16 << 20                 # that memory is taken for at once
    UNITS = 5                            # of 1, 2, 4, 8 and 16 bytes, that a row is moved by


cdef class RowTransfer:
    cdef readonly Device device
    cdef CallerStream itself             # its stream, to whom it is the caller's
    # private
    cdef StreamHandle stream
    cdef ExchangePool exchanges
    cdef KernelHandle gather[UNITS]

    # Rows at ``positions`` of ``array`` into ``out``, one after the other.
    cdef bint fetch(
        self, const char* array, const int32_t* positions, int64_t count, size_t row_bytes, char* out) noexcept nogil
    # ``rows``, one after the other, into those at ``positions`` of ``array``, which ascend. Returns how many of them are on
    # their way: fewer than ``count`` where there is memory for more only once the caller's stream has done what it has to;
    # below 0: the device has failed.
    cdef int64_t deliver(
        self, CallerStream caller, char* array, const int32_t* positions, int64_t count, size_t row_bytes,
        const char* rows) noexcept nogil
    # Whether ``stage`` waits until the caller's stream has done what it has to.
    cdef bint stage_waits(self, int64_t count, size_t row_bytes) noexcept nogil
    # Memory on the device for rows on their way to an array: ``exchange.device + exchange.rows_at``. NULL: there is none.
    cdef Exchange* stage(self, int64_t count, size_t row_bytes) noexcept nogil
    # Its first ``size_bytes`` into ``array``, once what ``itself`` has been made to wait for is done. The last call for it.
    cdef bint hand_over(self, CallerStream caller, Exchange* exchange, char* array, size_t size_bytes) noexcept nogil
    # private
    cdef bint _fetch_run(
        self, const char* array, const int32_t* positions, int64_t count, size_t row_bytes, char* out) noexcept nogil
    cdef bint _deliver_run(
        self, char* array, const int32_t* positions, int64_t count, size_t row_bytes, const char* rows) noexcept nogil
    cdef bint _bring(self, Exchange* exchange, size_t begin, size_t end) noexcept nogil
    cdef bint _gather(
        self, const char* slab, char* rows, const int* slots, int64_t count, size_t row_bytes) noexcept nogil


cdef inline int64_t rows_in_a_run(size_t row_bytes) noexcept nogil:
    return max(<int64_t>1, RUN_BYTES // <int64_t>max(row_bytes, <size_t>1))
