"""Blocks of memory for rows on their way between the host and a device: pinned ones, each with its equal on the device.

Guarantees
    * A block is used again only when all that was enqueued with it is done. The host waits for that only when
      MOST_EXCHANGES, or MOST_HELD_BYTES, are under way: so it may run that far ahead of the device.
    * What is kept is bounded by the same; the least recently used goes first.
Assumptions
    * Guarded by: whoever owns the pool, for all but ``finish``. The stream that ``close`` is given is always the same. It comes
      after all that was done with a block, or the host has waited for it.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libcpp.vector cimport vector

from intentpm.gpu.device cimport Device, EventHandle, StreamHandle


# Laid out alike in both memories: ``count`` slots, then rows.
cdef struct Exchange:
    char* pinned
    char* device
    size_t size_bytes
    size_t rows_at               # offset of the rows
    int64_t count
    size_t row_bytes
    EventHandle done
    bint recorded                # ``done`` stands for the last use


cdef class ExchangePool:
    cdef Device device
    cdef bint waits_for_callers          # its stream does: where there is no memory ``open`` does not wait for blocks in use
    # private
    cdef vector[Exchange*] idle          # the least recently used first
    cdef size_t held_bytes               # of all there are
    cdef int64_t held

    # Whether ``open`` waits until work that is under way is done.
    cdef bint must_wait(self, int64_t count, size_t row_bytes) noexcept nogil
    # NULL: no memory, or the device does not finish. The caller fills the slots, and the rows where it is a write.
    cdef Exchange* open(self, int64_t count, size_t row_bytes) noexcept nogil
    # The last call for this exchange, after what ``stream`` does with it was enqueued.
    cdef void close(self, Exchange* exchange, StreamHandle stream) noexcept nogil
    # Any thread: waits until the rows have come to the host; then the exchange is to be closed.
    cdef bint finish(self, Exchange* exchange) noexcept nogil
    # Gives back all that are closed, now or when their work is done; waits for nothing.
    cdef void clear(self) noexcept nogil
    # private
    cdef Exchange* _take_idle(self, size_t size_bytes) noexcept nogil
    cdef Exchange* _await_idle(self, size_t size_bytes) noexcept nogil
    cdef Exchange* _make(self, size_t size_bytes) noexcept nogil
    cdef bint _drop_first(self) noexcept nogil
    cdef void _release(self, Exchange* exchange) noexcept nogil


cdef inline void shorten(Exchange* exchange, int64_t count) noexcept nogil:
    """One without rows, to as many slots."""
    exchange.count = count
    exchange.rows_at = count * sizeof(int32_t)


cdef inline int32_t* slots_in(Exchange* exchange) noexcept nogil:
    """Of the pinned block: ``count`` slots."""
    return <int32_t*>exchange.pinned


cdef inline char* rows_in(Exchange* exchange) noexcept nogil:
    return exchange.pinned + exchange.rows_at
