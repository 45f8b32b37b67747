"""Blocks of memory for rows on their way; ``exchanges.pxd`` is the contract."""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free

from intentpm.gpu.device cimport Device, StreamHandle

cdef enum:
    MOST_EXCHANGES = 64
    MOST_HELD_BYTES = 256 << 20
    ALIGNED_BYTES = 256


cdef inline size_t _rows_at(int64_t count) noexcept nogil:
    return (count * sizeof(int32_t) + ALIGNED_BYTES - 1) // ALIGNED_BYTES * ALIGNED_BYTES


@cython.no_gc_clear                      # __dealloc__ needs the device
cdef class ExchangePool:
    def __init__(self, Device device not None):
        self.device = device

    def __dealloc__(self):
        self.clear()                     # all are closed

    cdef bint must_wait(self, int64_t count, size_t row_bytes) noexcept nogil:
        cdef size_t size_bytes = _rows_at(count) + count * row_bytes
        cdef bint all_done = True
        cdef Exchange* exchange
        if self.held < MOST_EXCHANGES and self.held_bytes + size_bytes <= MOST_HELD_BYTES:
            return False
        for exchange in self.idle:
            if exchange.recorded and not self.device.has_happened(exchange.done):
                all_done = False
            elif exchange.size_bytes >= size_bytes:
                return False
        return not all_done

    cdef Exchange* open(self, int64_t count, size_t row_bytes) noexcept nogil:
        cdef size_t rows_at = _rows_at(count)
        cdef size_t size_bytes = rows_at + count * row_bytes
        cdef Exchange* exchange = self._take_idle(size_bytes)
        while exchange == NULL and self.idle.size() > 0 and (
                self.held >= MOST_EXCHANGES or self.held_bytes + size_bytes > MOST_HELD_BYTES):
            if not self._drop_first():
                return NULL
        if exchange == NULL:
            exchange = self._make(size_bytes)
        if exchange == NULL and not self.waits_for_callers:
            exchange = self._await_idle(size_bytes)
        if exchange == NULL:
            return NULL
        self.device.host_writes(exchange.pinned)
        exchange.rows_at = rows_at
        exchange.count = count
        exchange.row_bytes = row_bytes
        exchange.recorded = False
        return exchange

    cdef void close(self, Exchange* exchange, StreamHandle stream) noexcept nogil:
        exchange.recorded = self.device.record(stream, exchange.done)
        self.idle.push_back(exchange)

    cdef bint finish(self, Exchange* exchange) noexcept nogil:
        if not self.device.synchronize(exchange.done, b"sending rows to the host"):
            return False
        self.device.host_reads(exchange.pinned)
        return True

    cdef void clear(self) noexcept nogil:
        while self.idle.size() > 0:
            self._release(self.idle.back())
            self.idle.pop_back()

    cdef Exchange* _take_idle(self, size_t size_bytes) noexcept nogil:
        cdef Exchange* exchange
        cdef size_t i
        for i in range(self.idle.size()):
            exchange = self.idle[i]
            if exchange.size_bytes < size_bytes:
                continue
            if exchange.recorded and not self.device.has_happened(exchange.done):
                return NULL              # those behind it were closed later
            self.idle.erase(self.idle.begin() + i)
            return exchange
        return NULL

    cdef Exchange* _await_idle(self, size_t size_bytes) noexcept nogil:
        """There is no memory for another."""
        cdef Exchange* exchange
        cdef size_t i
        for i in range(self.idle.size()):
            exchange = self.idle[i]
            if exchange.size_bytes >= size_bytes:
                if exchange.recorded and not self.device.synchronize(exchange.done, b"using rows that it was sent"):
                    return NULL
                self.idle.erase(self.idle.begin() + i)
                return exchange
        return NULL

    cdef Exchange* _make(self, size_t size_bytes) noexcept nogil:
        """With room for half as much again: batches differ a little in length."""
        cdef Exchange* exchange = <Exchange*>calloc(1, sizeof(Exchange))
        if exchange == NULL:
            return NULL
        exchange.size_bytes = size_bytes + size_bytes // 2
        exchange.pinned = self.device.allocate_pinned(exchange.size_bytes)
        exchange.device = self.device.allocate(exchange.size_bytes)
        exchange.done = self.device.new_event()
        self.held_bytes += exchange.size_bytes
        self.held += 1
        if exchange.pinned == NULL or exchange.device == NULL or exchange.done == NULL:
            self._release(exchange)
            return NULL
        return exchange

    cdef bint _drop_first(self) noexcept nogil:
        """Releases the least recently used. False: its work is not done in time; nobody can tell when its memory is free."""
        cdef Exchange* exchange = self.idle.front()
        cdef bint done = not exchange.recorded or self.device.synchronize(exchange.done, b"using rows that it was sent")
        self.idle.erase(self.idle.begin())
        if done:
            self._release(exchange)
        return done

    cdef void _release(self, Exchange* exchange) noexcept nogil:
        self.held_bytes -= exchange.size_bytes
        self.held -= 1
        self.device.retire_after(exchange.device, exchange.pinned, exchange.done)
        free(exchange)
