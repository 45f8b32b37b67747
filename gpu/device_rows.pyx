"""Rows in the memory of a device; ``device_rows.pxd`` is the contract."""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

import numpy as np

from intentpm.gpu.kernel_names import RowLayout, kernel_names

from intentpm.gpu.device cimport Device, KernelHandle, RowBatch, blocks_for
from intentpm.gpu.exchanges cimport Exchange, ExchangePool, rows_in
from intentpm.gpu.handles cimport Memory

cdef enum:
    FEWEST_ROWS = 64             # that a slab has room for


cdef inline unsigned _lanes_for(Device device, size_t units) noexcept nogil:
    """Lanes that share a row of so many units."""
    cdef unsigned lanes = 1
    while lanes < units and lanes < device.most_lanes:
        lanes *= 2
    return lanes


cdef inline int64_t _room_for(int64_t has, int64_t rows) noexcept nogil:
    """As many as are asked for the first time; later half as many again, since what is there is copied."""
    return max(<int64_t>FEWEST_ROWS, rows + rows // 2 if has > 0 else rows)


@cython.no_gc_clear                      # __dealloc__ needs the device
cdef class DeviceRows:
    """Rows of one layout in the memory of ``device``; see ``device_rows.pxd`` for what native code calls.

    Parameters: ``device``; ``layout``, a RowLayout; ``numbers``, with a rule: those of StepNumbers by name.
    The methods below copy from and to arrays of the host, and wait. Any thread. They raise MemoryError.
    """

    def __init__(self, Device device not None, layout: RowLayout, **numbers):
        self.device = device
        self.layout = layout
        self.row_bytes = layout.row_bytes
        self.stored_bytes = layout.stored_bytes
        self.stride_bytes = layout.stride_bytes
        self.items = layout.items
        self.sum_bytes = layout.sum_bytes
        self.added_by_memory = layout.added_by_memory
        names = kernel_names(layout)
        device.compile(names.values())
        self.kernels.gather = device.find_kernel(names["gather"])
        self.kernels.gather_stored = device.find_kernel(names["gather_stored"])
        self.kernels.put = device.find_kernel(names["set"])
        self.kernels.put_stored = device.find_kernel(names["set_stored"])
        self.kernels.claim = device.find_kernel(names["claim"])
        self.kernels.release = device.find_kernel(names["release"])
        self.kernels.add = device.find_kernel(names["add"])
        if layout.is_float:
            self.kernels.open_sums = device.find_kernel(names["open_sums"])
            self.kernels.add_to_sums = device.find_kernel(names["add_to_sums"])
        if layout.rule is not None:
            self.kernels.step = device.find_kernel(names["step"])
            self.step_numbers = dict(numbers, state_offset=layout.state_offset)
        self.exchanges = ExchangePool(device)
        self.stream = device.new_stream()
        self.moved = device.new_event()
        if self.stream == NULL or self.moved == NULL:
            raise MemoryError(f"{device.name}: no stream: {device.failure}")

    def __dealloc__(self):
        if self.stream == NULL:
            return
        with nogil:                      # for as long as the device has anything to do
            self._settle_moves()
            self._retire(&self.rows)
            self.device.retire(<char*>self.marks)
            self.device.retire(self.sums)
            self.exchanges.clear()
            self.device.free_retired()
        self.device.release_event(self.moved)
        self.device.release_stream(self.stream)

    # -- memory ----------------------------------------------------------------------------------------------------------------

    cdef bint _settle_moves(self) noexcept nogil:
        """All that was enqueued is done."""
        return self.device.record(self.stream, self.moved) and self.device.synchronize(self.moved, b"the work on its rows")

    cdef void _retire(self, Slab* slab) noexcept nogil:
        self.device.retire(slab.memory)
        self.device.retire(<char*>slab.claims)

    cdef bint reserve(self, int64_t end) noexcept nogil:
        cdef Slab slab
        if end <= self.rows.rows:
            return True
        if not self._make_slab(&slab, _room_for(self.rows.rows, end)) and not self._make_slab(&slab, end):
            return False
        # Copied by the stream, so that rows written before are in it; the old memory is free when that is done.
        if ((self.rows.rows > 0 and not self.device.copy(
                self.stream, slab.memory, self.rows.memory, self.rows.rows * self.stride_bytes)) or not self._settle_moves()):
            self._retire(&slab)
            return False
        self._retire(&self.rows)
        self.rows = slab
        return True

    cdef bint reserve_exactly(self, int64_t end) noexcept nogil:
        cdef Slab slab
        if not self._make_slab(&slab, end):
            return False
        self.rows = slab
        return True

    cdef bint _make_slab(self, Slab* slab, int64_t rows) noexcept nogil:
        slab.rows = rows
        slab.memory = self.device.allocate(rows * self.stride_bytes)
        slab.claims = <int*>self.device.allocate(rows * sizeof(int))
        if (slab.memory != NULL and slab.claims != NULL
                and self.device.fill(self.stream, <char*>slab.claims, 0xff, rows * sizeof(int))):
            return True
        self._retire(slab)
        return False

    cdef bint _reserve_scratch(self, int64_t count) noexcept nogil:
        cdef int64_t rows = _room_for(self.scratch_rows, count)
        cdef int* marks
        cdef char* sums = NULL
        if count <= self.scratch_rows:
            return True
        marks = <int*>self.device.allocate(rows * sizeof(int))
        sums = self.device.allocate(rows * self.sum_bytes)
        if (marks == NULL or sums == NULL or not self.device.fill(self.stream, <char*>marks, 0, rows * sizeof(int))
                or not self._settle_moves()):
            self.device.retire(<char*>marks)
            self.device.retire(sums)
            return False
        self.device.retire(<char*>self.marks)
        self.device.retire(self.sums)
        self.marks = marks
        self.sums = sums
        self.scratch_rows = rows
        return True

    # -- exchanges -------------------------------------------------------------------------------------------------------------

    cdef Exchange* open(self, int64_t count, size_t row_bytes) noexcept nogil:
        return self.exchanges.open(count, row_bytes)

    cdef void close(self, Exchange* exchange) noexcept nogil:
        self.exchanges.close(exchange, self.stream)

    cdef bint bring(self, Exchange* exchange, bint with_rows) noexcept nogil:
        cdef size_t size_bytes = exchange.rows_at
        if with_rows:
            size_bytes += exchange.count * exchange.row_bytes
        return self.device.copy(self.stream, exchange.device, exchange.pinned, size_bytes)

    cdef bint fetch(self, Exchange* exchange) noexcept nogil:
        return self.device.copy(
            self.stream, rows_in(exchange), exchange.device + exchange.rows_at, exchange.count * exchange.row_bytes
        ) and self.device.record(self.stream, exchange.done)

    cdef bint finish(self, Exchange* exchange) noexcept nogil:
        return self.exchanges.finish(exchange)

    cdef bint gather(self, Exchange* exchange, bint stored) noexcept nogil:
        cdef RowBatch batch = self._batch_of(exchange)
        return self._gather(&batch, stored)

    cdef bint put(self, Exchange* exchange, bint stored) noexcept nogil:
        cdef RowBatch batch = self._batch_of(exchange)
        return self._put(&batch, stored)

    cdef bint add(self, Exchange* exchange) noexcept nogil:
        cdef RowBatch batch = self._batch_of(exchange)
        return self._add(&batch)

    cdef bint step(self, Exchange* exchange, double lr) noexcept nogil:
        cdef RowBatch batch = self._batch_of(exchange)
        return self._step(&batch, lr)

    # -- kernels ---------------------------------------------------------------------------------------------------------------

    cdef RowBatch _batch_of(self, Exchange* exchange) noexcept nogil:
        return self._batch(
            <const int*>exchange.device, exchange.count, exchange.device + exchange.rows_at, exchange.row_bytes)

    cdef RowBatch _batch(self, const int* slots, int64_t count, char* rows, size_t row_bytes) noexcept nogil:
        cdef RowBatch batch
        memset(&batch, 0, sizeof(batch))
        batch.slab = self.rows.memory
        batch.stride_bytes = self.stride_bytes
        batch.slots = slots
        batch.count = count
        batch.rows = rows
        batch.row_bytes = <unsigned>row_bytes
        batch.items = self.items
        batch.lanes = 1
        batch.claims = self.rows.claims
        batch.step = self.step_numbers
        return batch

    cdef bint _launch(self, KernelHandle kernel, const RowBatch* batch, unsigned lanes) noexcept nogil:
        cdef RowBatch laid_out = batch[0]
        laid_out.lanes = lanes
        return batch.count == 0 or self.device.launch(
            self.stream, kernel, blocks_for(self.device, batch.count, lanes), &laid_out)

    cdef bint _gather(self, RowBatch* batch, bint stored) noexcept nogil:
        return self._launch(
            self.kernels.gather_stored if stored else self.kernels.gather, batch,
            _lanes_for(self.device, batch.row_bytes // 16))

    cdef bint _put(self, RowBatch* batch, bint stored) noexcept nogil:
        if not self._reserve_scratch(batch.count):
            return False
        batch.marks = self.marks
        return (self._launch(self.kernels.claim, batch, 1)
                and self._launch(
                    self.kernels.put_stored if stored else self.kernels.put, batch,
                    _lanes_for(self.device, batch.row_bytes // 16))
                and self._launch(self.kernels.release, batch, 1))

    cdef bint _sum_duplicates(self, RowBatch* batch) noexcept nogil:
        cdef unsigned lanes = _lanes_for(self.device, self.row_bytes // 16)
        if not self._reserve_scratch(batch.count):
            return False
        batch.marks = self.marks
        batch.sums = self.sums
        return (self._launch(self.kernels.claim, batch, 1) and self._launch(self.kernels.open_sums, batch, lanes)
                and self._launch(self.kernels.add_to_sums, batch, lanes))

    cdef bint _add(self, RowBatch* batch) noexcept nogil:
        cdef unsigned lanes = _lanes_for(self.device, self.row_bytes // 16)
        if self.added_by_memory:
            return self._launch(self.kernels.add, batch, lanes)
        return (self._sum_duplicates(batch) and self._launch(self.kernels.add, batch, lanes)
                and self._launch(self.kernels.release, batch, 1))

    cdef bint _step(self, RowBatch* batch, double lr) noexcept nogil:
        batch.step.lr = lr
        return (self._sum_duplicates(batch)
                and self._launch(self.kernels.step, batch, _lanes_for(self.device, self.row_bytes // 16))
                and self._launch(self.kernels.release, batch, 1))

    # -- for Python ------------------------------------------------------------------------------------------------------------

    def read(self, const int32_t[::1] slots, out, stored: bool = False) -> None:
        """Copies the rows of ``slots`` (int32 [K]) into ``out``: C-contiguous, K times the bytes of the weights, or with
        ``stored`` of whole rows. Rows of slots below 0 hold anything.
        """
        cdef unsigned char[::1] target = out.reshape(-1).view(np.uint8)
        cdef size_t row_bytes = self.stored_bytes if stored else self.row_bytes
        cdef Exchange* exchange
        cdef bint done
        if target.shape[0] != slots.shape[0] * row_bytes:
            raise ValueError(f"{target.shape[0]} bytes for {slots.shape[0]} rows of {row_bytes}")
        if slots.shape[0] == 0:
            return
        with nogil:
            self.lock.lock()
            exchange = self._fill(slots, NULL, row_bytes)
            done = (exchange != NULL and self.bring(exchange, False) and self.gather(exchange, stored)
                    and self.fetch(exchange))
            self.lock.unlock()
            done = done and self.finish(exchange)
            if done:
                memcpy(&target[0], rows_in(exchange), target.shape[0])
            if exchange != NULL:
                self.lock.lock()
                self.close(exchange)
                self.lock.unlock()
        self._check(done)

    def write(self, const int32_t[::1] slots, values, how: str = "set", lr: float = 0.0) -> None:
        """``how``: "set", "add" or "step" (values are gradients), each row of the weights; "set_stored", whole rows.

        slots: int32 [K]. values: C-contiguous [K, ...] of the rows' dtype. Makes room for the largest slot.
        """
        cdef const unsigned char[::1] source = values.reshape(-1).view(np.uint8)
        cdef size_t row_bytes = self.stored_bytes if how == "set_stored" else self.row_bytes
        cdef int code = ("set", "set_stored", "add", "step").index(how)
        cdef int64_t end = int(np.max(slots)) + 1 if slots.shape[0] else 0
        cdef double rate = lr
        cdef Exchange* exchange
        cdef bint done
        if code == 3 and self.kernels.step == NULL:
            raise ValueError("rows without an optimiser take no steps")
        if source.shape[0] != slots.shape[0] * row_bytes:
            raise ValueError(f"{source.shape[0]} bytes for {slots.shape[0]} rows of {row_bytes}")
        if slots.shape[0] == 0:
            return
        with nogil:
            self.lock.lock()
            exchange = self._fill(slots, &source[0], row_bytes) if self.reserve(end) else NULL
            done = exchange != NULL and self.bring(exchange, True)
            if done and code == 2:
                done = self.add(exchange)
            elif done and code == 3:
                done = self.step(exchange, rate)
            elif done:
                done = self.put(exchange, code == 1)
            if exchange != NULL:
                self.close(exchange)
            self.lock.unlock()
        self._check(done)

    @property
    def stream_address(self) -> int:
        """Of the stream that has all of it, as the driver knows it."""
        return <size_t>self.stream

    def synchronize(self) -> None:
        """Waits until all that was enqueued is done."""
        cdef bint done
        with nogil:
            self.lock.lock()
            done = self._settle_moves()
            self.lock.unlock()
        self._check(done)

    def gather_on_device(self, Memory slots not None, int64_t count, Memory out not None) -> None:
        """``read`` of weights, where slots (int32) and rows are in the device's memory; returns before it is done."""
        cdef RowBatch batch = self._batch(<const int*>slots.memory, count, out.memory, self.row_bytes)
        self._check_sizes(slots, count, out)
        self._check(self._gather(&batch, False))

    def write_on_device(
            self, Memory slots not None, int64_t count, Memory values not None, how: str = "set", lr: float = 0.0) -> None:
        """``write`` of weights or gradients that are in the device's memory; there is room for their slots."""
        cdef RowBatch batch = self._batch(<const int*>slots.memory, count, values.memory, self.row_bytes)
        self._check_sizes(slots, count, values)
        if how == "step":
            self._check(self._step(&batch, lr))
        elif how == "add":
            self._check(self._add(&batch))
        else:
            self._check(self._put(&batch, False))

    def copy_on_device(self, Memory to not None, Memory source not None, size_t size_bytes) -> None:
        """As ``Stream.copy``, on the stream of the rows."""
        self._check(self.device.copy(self.stream, to.memory, source.memory, min(size_bytes, to.size_bytes, source.size_bytes)))

    def repeat(self, Memory pattern not None, int64_t rows) -> None:
        """Fills slots [0, rows) with what is in ``pattern``, whole rows of ``stride_bytes``, again and again."""
        cdef int64_t each = pattern.size_bytes // self.stride_bytes
        cdef int64_t first = 0
        cdef bint done
        if each == 0:
            raise ValueError(f"{pattern.size_bytes} bytes are no row of {self.stride_bytes}")
        done = self.reserve(rows)
        while done and first < rows:
            done = self.device.copy(
                self.stream, self.rows.memory + first * self.stride_bytes, pattern.memory,
                min(each, rows - first) * self.stride_bytes)
            first += each
        self._check(done and self._settle_moves())

    def _check_sizes(self, Memory slots, int64_t count, Memory rows):
        if slots.size_bytes < count * sizeof(int32_t) or rows.size_bytes < count * self.row_bytes or self.rows.rows == 0:
            raise ValueError(f"{count} slots and rows of {self.row_bytes} bytes do not fit what was given")

    cdef Exchange* _fill(self, const int32_t[::1] slots, const unsigned char* rows, size_t row_bytes) noexcept nogil:
        """An exchange with these slots, and with rows where there are any."""
        cdef Exchange* exchange = self.open(slots.shape[0], row_bytes)
        if exchange == NULL:
            return NULL
        memcpy(exchange.pinned, &slots[0], slots.shape[0] * sizeof(int32_t))
        if rows != NULL:
            memcpy(rows_in(exchange), rows, slots.shape[0] * row_bytes)
        return exchange

    def _check(self, done: bool):
        if not done:
            raise MemoryError(f"{self.device.name}: {self.device.failure or 'no memory is left'}")
