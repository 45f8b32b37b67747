"""Rows from and to arrays in device memory; ``row_transfer.pxd`` is the contract."""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from intentpm.gpu.caller_stream cimport CallerStream
from intentpm.gpu.device cimport Device, RowBatch, blocks_for
from intentpm.gpu.exchanges cimport Exchange, ExchangePool, rows_in, slots_in


@cython.no_gc_clear                      # __dealloc__ needs the device
cdef class RowTransfer:
    """Moves rows from and to arrays on ``device``; for native code. Raises MemoryError."""

    def __init__(self, Device device not None):
        self.device = device
        self.exchanges = ExchangePool(device)
        self.exchanges.waits_for_callers = True
        names = [f"intentpm::gpu::gather_rows<{1 << unit}>" for unit in range(UNITS)]
        device.compile(names)
        for unit in range(UNITS):
            self.gather[unit] = device.find_kernel(names[unit])
        self.stream = device.new_stream()
        if self.stream == NULL:
            raise MemoryError(f"{device.name}: no stream: {device.failure}")

        self.itself = CallerStream(device)
        self.itself.stream = self.stream
        self.itself.is_known = True

    def __dealloc__(self):
        if self.stream == NULL:
            return
        # What it has to do may wait for the caller's stream, that for another rank: it is done all the same.
        self.device.release_stream(self.stream)

    cdef bint fetch(
            self, const char* array, const int32_t* positions, int64_t count, size_t row_bytes, char* out) noexcept nogil:
        cdef int64_t most = rows_in_a_run(row_bytes)
        cdef int64_t first = 0, run
        cdef bint done = True
        while done and first < count:
            run = min(most, count - first)
            done = self._fetch_run(
                array if positions != NULL else array + first * row_bytes,
                positions + first if positions != NULL else NULL, run, row_bytes, out + first * row_bytes)
            first += run
        return done

    cdef bint _fetch_run(
            self, const char* array, const int32_t* positions, int64_t count, size_t row_bytes, char* out) noexcept nogil:
        cdef Exchange* exchange = self.exchanges.open(count, row_bytes)
        cdef char* rows
        cdef const char* source = array
        cdef size_t size_bytes = count * row_bytes
        cdef bint done = True
        if exchange == NULL:
            return False
        if positions != NULL:
            rows = exchange.device + exchange.rows_at
            source = rows
            memcpy(slots_in(exchange), positions, count * sizeof(int32_t))
            done = self._bring(exchange, 0, exchange.rows_at) and self._gather(
                array, rows, <const int*>exchange.device, count, row_bytes)
        done = (done and self.device.copy(self.stream, rows_in(exchange), source, size_bytes)
                and self.device.record(self.stream, exchange.done) and self.exchanges.finish(exchange))
        if done:
            memcpy(out, rows_in(exchange), size_bytes)
        self.exchanges.close(exchange, self.stream)
        return done

    cdef int64_t deliver(
            self, CallerStream caller, char* array, const int32_t* positions, int64_t count, size_t row_bytes,
            const char* rows) noexcept nogil:
        cdef int64_t most = rows_in_a_run(row_bytes)
        cdef int64_t first = 0, run, begin, spread
        cdef bint done = caller.before(self.stream)
        while done and first < count:
            run = min(most, count - first)
            begin = positions[first] if positions != NULL else first
            if positions != NULL:        # those that lie near each other: the list of slots is of all rows in between
                while positions[first + run - 1] - begin >= most:
                    run -= 1
            spread = positions[first + run - 1] - begin + 1 if positions != NULL else run
            if self.exchanges.must_wait(spread, row_bytes):
                break
            done = self._deliver_run(
                array + begin * row_bytes, positions + first if positions != NULL else NULL, run, row_bytes,
                rows + first * row_bytes)
            first += run
        return first if done and caller.after(self.stream) else <int64_t>-1

    cdef bint stage_waits(self, int64_t count, size_t row_bytes) noexcept nogil:
        return self.exchanges.must_wait(count, row_bytes)

    cdef Exchange* stage(self, int64_t count, size_t row_bytes) noexcept nogil:
        return self.exchanges.open(count, row_bytes)

    cdef bint hand_over(self, CallerStream caller, Exchange* exchange, char* array, size_t size_bytes) noexcept nogil:
        cdef bint done = size_bytes == 0 or (
            caller.before(self.stream)
            and self.device.copy(self.stream, array, exchange.device + exchange.rows_at, size_bytes))
        self.exchanges.close(exchange, self.stream)
        return done and (size_bytes == 0 or caller.after(self.stream))

    cdef bint _deliver_run(
            self, char* array, const int32_t* positions, int64_t count, size_t row_bytes, const char* rows) noexcept nogil:
        """``array``: its row at the first of the positions."""
        cdef int64_t spread = positions[count - 1] - positions[0] + 1 if positions != NULL else count
        cdef Exchange* exchange = self.exchanges.open(spread, row_bytes)
        cdef size_t size_bytes = count * row_bytes
        cdef char* arrived
        cdef int64_t i
        cdef bint done
        if exchange == NULL:
            return False
        arrived = exchange.device + exchange.rows_at
        memcpy(rows_in(exchange), rows, size_bytes)
        if spread == count:
            done = (self._bring(exchange, exchange.rows_at, exchange.rows_at + size_bytes)
                    and self.device.copy(self.stream, array, arrived, size_bytes))
        else:                            # the array's row i is the arrived one that is named by slot i
            memset(slots_in(exchange), 0xff, spread * sizeof(int32_t))
            for i in range(count):
                slots_in(exchange)[positions[i] - positions[0]] = <int32_t>i
            done = (self._bring(exchange, 0, exchange.rows_at + size_bytes)
                    and self._gather(arrived, array, <const int*>exchange.device, spread, row_bytes))
        self.exchanges.close(exchange, self.stream)
        return done

    cdef bint _bring(self, Exchange* exchange, size_t begin, size_t end) noexcept nogil:
        return self.device.copy(self.stream, exchange.device + begin, exchange.pinned + begin, end - begin)

    cdef bint _gather(
            self, const char* slab, char* rows, const int* slots, int64_t count, size_t row_bytes) noexcept nogil:
        """rows[i] = slab[slots[i]], by units that both are aligned to."""
        cdef size_t aligned = row_bytes | <size_t>slab | <size_t>rows | 16
        cdef int unit = 0
        cdef RowBatch batch
        while not aligned >> unit & 1:
            unit += 1
        memset(&batch, 0, sizeof(batch))
        batch.slab = <char*>slab
        batch.stride_bytes = row_bytes
        batch.slots = slots
        batch.count = count
        batch.rows = rows
        batch.row_bytes = <unsigned>row_bytes
        batch.lanes = 1
        while batch.lanes < row_bytes >> unit and batch.lanes < self.device.most_lanes:
            batch.lanes *= 2
        return self.device.launch(self.stream, self.gather[unit], blocks_for(self.device, count, batch.lanes), &batch)
