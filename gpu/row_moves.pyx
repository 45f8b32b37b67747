"""Rows that move between the host and their slab; ``row_moves.pxd`` is the contract."""

cimport cython

from intentpm.gpu.device cimport RowBatch
from intentpm.gpu.device_rows cimport DeviceRows
from intentpm.gpu.exchanges cimport Exchange, rows_in


@cython.no_gc_clear                      # __dealloc__ needs the device
cdef class RowMoves:
    """Moves of rows of ``rows``. Raises MemoryError."""

    def __init__(self, DeviceRows rows not None):
        self.rows = rows
        self.device = rows.device
        self.stream = self.device.new_stream()
        self.ended = self.device.new_event()
        if self.stream == NULL or self.ended == NULL:
            raise MemoryError(f"{self.device.name}: no stream: {self.device.failure}")

    def __dealloc__(self):
        if self.stream == NULL:
            return
        if self.ended != NULL:
            self.device.record(self.stream, self.ended)
            self.device.synchronize(self.ended, b"moving rows")
            self.device.release_event(self.ended)
        while not self.under_way.empty():
            self.close(self.under_way.back())
        self.device.release_stream(self.stream)

    cdef bint send(self, Exchange* exchange) noexcept nogil:
        self.under_way.push_back(exchange)
        return self.device.copy(
            self.stream, exchange.device + exchange.rows_at, rows_in(exchange), exchange.count * exchange.row_bytes
        ) and self.device.record(self.stream, exchange.done)

    cdef bint await_arrival(self, Exchange* exchange) noexcept nogil:
        return self.device.wait(self.rows.stream, exchange.done)

    cdef bint put_in_place(self, Exchange* exchange, Exchange* slots) noexcept nogil:
        cdef RowBatch batch = self.rows._batch(
            <const int*>slots.device, exchange.count, exchange.device + exchange.rows_at,
            exchange.row_bytes)
        return self.rows.bring(slots, False) and self.rows._put(&batch, True)

    cdef bint take_out(self, Exchange* exchange) noexcept nogil:
        self.under_way.push_back(exchange)
        return (
            self.rows.bring(exchange, False)
            and self.rows.gather(exchange, True)
            and self.device.record(self.rows.stream, exchange.done)
            and self.device.wait(self.stream, exchange.done)
            and self.device.copy(
                self.stream, rows_in(exchange), exchange.device + exchange.rows_at, exchange.count * exchange.row_bytes)
            and self.device.record(self.stream, exchange.done))

    cdef void close(self, Exchange* exchange) noexcept nogil:
        cdef size_t i
        for i in range(self.under_way.size()):
            if self.under_way[i] == exchange:
                self.under_way.erase(self.under_way.begin() + i)
                break
        self.rows.close(exchange)
