"""DeviceWorker: a worker whose keys and rows lie in the memory of a device.

    keys       on the host, or on the device: known there from an intent, else fetched, which waits
    rows       of tables on the same device: read and written there, by one stream that the caller's are ordered with
    the rest   rows that are on other ranks, that a replica or a checkpoint needs, of tables elsewhere: through the host,
               by the calls of Worker

Guarantees
    * What a call does with arrays on the device comes after what was enqueued on the caller's current streams before it, and
      before what is enqueued there after it.
    * The host waits for the device only for keys that it has to fetch, and for gradients, deltas and values of the rest.
    * Otherwise as Worker.
Assumption: one thread at a time uses a worker (checked).
"""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint64_t

cimport numpy as cnp

import threading

import numpy as np

from intentpm.foundation.errors import DeviceError, DtypeError, ShapeError
from intentpm.gpu.device_arrays import as_device_array
from intentpm.runtime.known_keys import KnownKeys

from intentpm.foundation.primitives cimport store_relaxed_u64
from intentpm.gpu.caller_streams cimport CallerStreams
from intentpm.gpu.device cimport Device
from intentpm.gpu.device_arrays cimport DeviceArray
from intentpm.gpu.row_transfer cimport RowTransfer
from intentpm.runtime._native.batches cimport AccessCounts
from intentpm.runtime._native.coverage cimport sample_coverage
from intentpm.runtime._native.device_tier cimport DeviceTier
from intentpm.runtime._native.dirty_stack cimport is_dirty
from intentpm.runtime._native.engine cimport Engine
from intentpm.runtime._native.messages cimport ACCESS_PULL, ACCESS_PUSH, ACCESS_SET, ACCESS_STEP, is_read
from intentpm.runtime._native.requests cimport Operation
from intentpm.runtime._native.store cimport Table
from intentpm.runtime._native.table_state cimport (
    ACCESS_ROW_PULL, ACCESS_ROW_PUSH, ACCESS_ROW_SET, ACCESS_ROW_STEP, RowAccess,
)
from intentpm.runtime.call_arguments cimport check_step, learning_rate, rate_of_call, steps_of
from intentpm.runtime.worker cimport WORKER_IDLE, Worker
from intentpm.runtime.workers_of_rank cimport WorkersOfRank

cnp.import_array()


cdef class DeviceWorker(Worker):
    """A worker of a device. Made by ``ParameterManager.worker(device=...)``.

    ``keys`` may lie on the device, as any integers; ``out``, deltas, values and gradients there or on the host. A pull without
    ``out`` returns an array on the device: CuPy's, ``EmulatedArray`` on an emulated one. Arrays there are C-contiguous, and
    anything with DLPack or ``__cuda_array_interface__``: CuPy's, torch's tensors. All calls are ordered with the caller's
    current streams (PyTorch's, CuPy's), and none waits for the device but as ``device_worker.pyx`` says.

    Attribute: ``device``.
    """

    cdef readonly Device device
    cdef CallerStreams callers           # of the call in progress
    cdef RowTransfer transfer
    cdef object known                    # KnownKeys

    def __init__(self, manager, Engine engine not None, WorkersOfRank workers not None, worker_id: int, Device device not None):
        self.device = device
        self.callers = CallerStreams(device)
        self.transfer = RowTransfer(device)
        self.known = KnownKeys()
        Worker.__init__(self, manager, engine, workers, worker_id)

    # -- public: rows ---------------------------------------------------------------------------------------------------------

    def pull(self, Table table not None, keys, out=None):
        """As ``Worker.pull``. Returns ``out``, or an array on the device: rows that the caller's stream may read at once."""
        cdef DeviceArray rows = as_device_array(out, self.device)
        cdef cnp.ndarray wanted
        cdef cnp.ndarray left, host
        on_host = self.keys_on_host(keys)
        if out is not None and rows is None:
            return Worker.pull(self, table, on_host, out)
        wanted = self._begin(table, on_host)
        try:
            result = self._new_rows(table, wanted) if out is None else out
            rows = self._rows_in(table, wanted, result, "out")
            left = self._serve(table, ACCESS_PULL, wanted, rows, result, False)
            if len(left):
                host = self._host_rows(table, left)
                self._access_left(table, ACCESS_PULL, wanted[left], host)
                self._deliver(rows, left, host)
            return result
        finally:
            self.use = WORKER_IDLE

    def pull_async(self, Table table not None, keys, out=None):
        """As ``Worker.pull_async``: rows of other ranks are in ``out`` once the future's ``result`` has been asked for."""
        cdef DeviceArray rows = as_device_array(out, self.device)
        cdef cnp.ndarray wanted
        cdef cnp.ndarray left
        on_host = self.keys_on_host(keys)
        if out is not None and rows is None:
            return Worker.pull_async(self, table, on_host, out)
        wanted = self._begin(table, on_host)
        try:
            result = self._new_rows(table, wanted) if out is None else out
            rows = self._rows_in(table, wanted, result, "out")
            left = self._serve(table, ACCESS_PULL, wanted, rows, result, False)
        finally:
            self.use = WORKER_IDLE
        return RowsToCome(self, rows, left, Worker.pull_async(self, table, wanted[left]), result)

    def push(self, Table table not None, keys, deltas):
        """As ``Worker.push``; what is added on the device shows in what its streams do next."""
        if as_device_array(deltas, self.device) is None:
            Worker.push(self, table, self.keys_on_host(keys), deltas)
        else:
            self._write_from(table, ACCESS_PUSH, keys, deltas, None, False)

    def set(self, Table table not None, keys, values):
        """As ``Worker.set``."""
        if as_device_array(values, self.device) is None:
            Worker.set(self, table, self.keys_on_host(keys), values)
        else:
            self._write_from(table, ACCESS_SET, keys, values, None, False)

    def push_async(self, Table table not None, keys, deltas):
        """As ``Worker.push_async``; waits until deltas that other ranks need have come to the host."""
        if as_device_array(deltas, self.device) is None:
            return Worker.push_async(self, table, self.keys_on_host(keys), deltas)
        return self._write_from(table, ACCESS_PUSH, keys, deltas, None, True)

    def set_async(self, Table table not None, keys, values):
        """As ``Worker.set_async``."""
        if as_device_array(values, self.device) is None:
            return Worker.set_async(self, table, self.keys_on_host(keys), values)
        return self._write_from(table, ACCESS_SET, keys, values, None, True)

    def push_grad(self, Table table not None, keys, gradients, lr=None, duplicates="sum"):
        """As ``Worker.push_grad``; sums of duplicates are made on the device."""
        if self.exact is not None or as_device_array(gradients, self.device) is None:
            Worker.push_grad(self, table, self.keys_on_host(keys), self._on_host(gradients), lr, duplicates)
        else:
            self._step_from(table, keys, gradients, lr, duplicates, False)

    def push_grad_async(self, Table table not None, keys, gradients, lr=None, duplicates="sum"):
        """As ``Worker.push_grad_async``; waits until gradients that other ranks or replicas need have come to the host."""
        if self.exact is not None or as_device_array(gradients, self.device) is None:
            return Worker.push_grad_async(
                self, table, self.keys_on_host(keys), self._on_host(gradients), lr, duplicates)
        return self._step_from(table, keys, gradients, lr, duplicates, True)

    def pull_state(self, Table table not None, keys) -> dict:
        """As ``Worker.pull_state``: arrays on the host."""
        return Worker.pull_state(self, table, self.keys_on_host(keys))

    # -- public: intent and time ----------------------------------------------------------------------------------------------

    def intent(self, Table table not None, keys, start, end=None) -> None:
        """As ``Worker.intent``. Keys on the device are fetched, which waits; until the window ends they are known to the host
        wherever they are passed again, as long as they are not changed (PyTorch's tensors)."""
        array = as_device_array(keys, self.device)
        if array is None:
            Worker.intent(self, table, keys, start, end)
            return
        on_host = self.keys_on_host(keys)
        Worker.intent(self, table, on_host, start, end)
        self.known.note(keys, array, on_host, start + 1 if end is None else end)

    def note_keys(self, keys, on_host, end) -> None:
        """Says what ``keys``, on the device, are, so that nobody has to wait for them: ``on_host``, integers in the same order.

        Holds until the worker's clock is ``end``, for tensors of PyTorch that are not changed meanwhile.
        """
        array = as_device_array(keys, self.device)
        if array is not None:
            self.known.note(keys, array, np.array(on_host, np.int64).reshape(-1), end)

    def advance_clock(self) -> int:
        """As ``Worker.advance_clock``."""
        clock = Worker.advance_clock(self)
        self.known.expire(clock)
        return clock

    # -- arguments ------------------------------------------------------------------------------------------------------------

    def keys_on_host(self, keys):
        """``keys`` as the host can read them: int64 [K] of those on the device, known or fetched; others as they are."""
        cdef DeviceArray array = as_device_array(keys, self.device)
        if array is None:
            return keys
        known = self.known.find(keys, array)
        return self._fetched_keys(keys, array) if known is None else known

    cdef _fetched_keys(self, object keys, DeviceArray array):
        if len(array.shape) != 1 or not array.is_contiguous:
            raise ShapeError(f"keys have shape {array.shape}: pass a one-dimensional array, contiguous")
        if array.dtype.kind not in "iu":
            raise DtypeError(f"keys have dtype {array.dtype}: pass integers (int64)")
        return self._on_host(keys).astype(np.int64, copy=False)

    def _on_host(self, values):
        """A copy of an array on the device; what is on the host, as it is."""
        cdef DeviceArray array = as_device_array(values, self.device)
        cdef cnp.ndarray copied
        if array is None:
            return values
        if not array.is_contiguous:
            raise ShapeError(f"an array of shape {array.shape} on the device is not C-contiguous")
        copied = np.empty(array.shape, array.dtype)
        self.callers.collect((values,))
        self._fetch(array.memory, None, copied.size, array.dtype.itemsize, copied)
        return copied

    cdef DeviceArray _rows_in(self, Table table, cnp.ndarray keys, object given, str what):
        """Rows of ``table`` for each of the keys. Raises ShapeError, DtypeError."""
        cdef DeviceArray rows = as_device_array(given, self.device)
        if what == "out" and getattr(given, "requires_grad", False):
            raise DtypeError(f"out for table {table.name!r} is a tensor that requires grad: pass out=tensor.detach()")
        shape = (cnp.PyArray_DIM(keys, 0), *table.row_shape)
        if rows.dtype != table.dtype:
            raise DtypeError(f"{what} for table {table.name!r}: dtype {rows.dtype}, the table has {table.dtype}")
        if rows.shape != shape:
            raise ShapeError(f"{what} for table {table.name!r}: shape {rows.shape}, expected {shape}")
        if not rows.is_contiguous:
            raise ShapeError(f"{what} for table {table.name!r}: must be C-contiguous")
        return rows

    cdef _new_rows(self, Table table, cnp.ndarray keys):
        return self.device.new_array((cnp.PyArray_DIM(keys, 0), *table.row_shape), table.dtype)

    cdef cnp.ndarray _host_rows(self, Table table, cnp.ndarray positions):
        return np.empty((cnp.PyArray_DIM(positions, 0), *table.row_shape), table.dtype)

    # -- on the device, then through the host ---------------------------------------------------------------------------------

    cdef cnp.ndarray _serve(self, Table table, int kind, cnp.ndarray keys, DeviceArray rows, object given, bint sums):
        """What can be done on the device. Returns the positions that are left: int32, ascending."""
        cdef DeviceTier tier = table.tier
        cdef const int64_t* wanted = <const int64_t*>cnp.PyArray_DATA(keys)
        cdef int64_t count = cnp.PyArray_DIM(keys, 0)
        cdef RowAccess access = _access_of(kind)
        cdef uint64_t served[2]
        cdef AccessCounts* counts = &self.counts[table.table_id]
        cdef double lr = self.lr
        cdef bint done
        self.callers.collect((given,))
        if tier is None or tier.rows.device is not self.device or not _is_aligned(rows, table):
            return np.arange(count, dtype=np.int32)
        self.misses.clear()
        served[0] = served[1] = 0
        with nogil:
            done = tier.serve_on_device(
                access, wanted, count, rows.memory, lr, sums, self.callers, self.misses, served)
        if not done:
            self.engine.look_now()
            tier.check()
        store_relaxed_u64(&counts.local, counts.local + served[0])
        store_relaxed_u64(&counts.replica, counts.replica + served[1])
        if self.managed:
            sample_coverage(
                table.state, wanted, count, self.misses, counts, is_read(kind), self.engine.transport, &self.intents.clock_ns)
        if not is_read(kind) and is_dirty(table.state):
            self._note_dirt()
        return self._positions()

    cdef cnp.ndarray _positions(self):
        cdef cnp.ndarray left = np.empty(self.misses.size(), np.int32)
        cdef int32_t* positions = <int32_t*>cnp.PyArray_DATA(left)
        cdef size_t i
        for i in range(self.misses.size()):
            positions[i] = self.misses[i]
        return left

    cdef _access_left(self, Table table, int kind, cnp.ndarray keys, cnp.ndarray rows):
        """What is left, as a worker of the host does it."""
        cdef Operation operation
        self._access_local(table, kind, keys, <char*>cnp.PyArray_DATA(rows))
        if not self.misses.empty():
            self._access_remote(&operation, table, kind, keys, rows)

    cdef _write_from(self, Table table, int kind, object keys, object values, object lr, bint later):
        """Returns a Future if ``later``."""
        cdef cnp.ndarray wanted = self._begin(table, self.keys_on_host(keys))
        cdef cnp.ndarray left, host
        cdef DeviceArray rows
        try:
            rows = self._rows_in(table, wanted, values, "deltas or values")
            self._pass_gate()
            left = self._serve(table, kind, wanted, rows, values, False)
            host = self._fetch_rows(table, rows, left)
            if later:
                return self._begin_write(table, kind, wanted[left], host)
            if len(left):
                self._access_left(table, kind, wanted[left], host)
        finally:
            self._end_write()

    cdef _step_from(self, Table table, object keys, object gradients, object lr, object duplicates, bint later):
        cdef cnp.ndarray wanted
        cdef cnp.ndarray left, host
        cdef DeviceArray rows
        check_step(table, duplicates)
        wanted = self._begin(table, self.keys_on_host(keys))
        try:
            rows = self._rows_in(table, wanted, gradients, "gradients")
            self._pass_gate()
            self.lr = rate_of_call(table, self.steps, learning_rate(table, lr))
            left = self._serve(table, ACCESS_STEP, wanted, rows, gradients, duplicates == "sum")
            stepped, host = steps_of(
                table, self.duplicates, wanted[left], self._fetch_rows(table, rows, left), duplicates)
            if later:
                return self._begin_write(table, ACCESS_STEP, stepped, host)
            if len(stepped):
                self._access_left(table, ACCESS_STEP, stepped, host)
        finally:
            self._end_write()

    # -- between the device and the host --------------------------------------------------------------------------------------

    cdef cnp.ndarray _fetch_rows(self, Table table, DeviceArray rows, cnp.ndarray positions):
        """Those of the positions; the streams of the call are collected."""
        cdef cnp.ndarray host = self._host_rows(table, positions)
        if len(positions):
            self._fetch(rows.memory, positions, len(positions), table.state.row_bytes, host)
        return host

    cdef _fetch(self, char* array, object positions, int64_t count, size_t row_bytes, cnp.ndarray out):
        cdef cnp.ndarray chosen
        cdef const int32_t* at = NULL
        cdef char* to = <char*>cnp.PyArray_DATA(out)
        cdef bint done
        if positions is not None:
            chosen = positions
            at = <const int32_t*>cnp.PyArray_DATA(chosen)
        with nogil:
            done = self.transfer.fetch(self.callers, array, at, count, row_bytes, to)
        self._check_device(done)

    cdef _deliver(self, DeviceArray rows, cnp.ndarray positions, cnp.ndarray host):
        cdef const int32_t* at = <const int32_t*>cnp.PyArray_DATA(positions)
        cdef const char* source = <const char*>cnp.PyArray_DATA(host)
        cdef int64_t count = cnp.PyArray_DIM(positions, 0)
        cdef size_t row_bytes = host.nbytes // count
        cdef bint done
        with nogil:
            done = self.transfer.deliver(self.callers, rows.memory, at, count, row_bytes, source)
        self._check_device(done)

    def _deliver_late(self, rows, left, host, result):
        """Of a call that was asynchronous; on the streams that are the caller's now."""
        self.callers.collect((result,))
        self._deliver(rows, left, host)

    cdef int _check_device(self, bint done) except -1:
        if not done:
            raise DeviceError(f"{self.device.name}: {self.device.failure or 'no memory is left'}")
        return 0


class RowsToCome:
    """What ``DeviceWorker.pull_async`` returns: a future as ``Future``, for the worker's thread."""

    def __init__(self, worker, rows, left, future, result):
        self._worker, self._rows, self._left = worker, rows, left
        self._future, self._result = future, result
        self._delivering = threading.Lock()
        self._delivered = len(left) == 0         # guarded by: _delivering

    def done(self) -> bool:
        """Whether ``wait`` waits for no other rank."""
        return self._future.done()

    def wait(self, timeout=None) -> None:
        """As ``Future.wait``."""
        self._future.wait(timeout)
        with self._delivering:
            if not self._delivered:
                self._worker._deliver_late(self._rows, self._left, self._future.result(), self._result)
                self._delivered = True

    def result(self, timeout=None):
        """As ``Future.result``: the array on the device."""
        self.wait(timeout)
        return self._result


cdef RowAccess _access_of(int kind) noexcept:
    if kind == ACCESS_PULL:
        return ACCESS_ROW_PULL
    if kind == ACCESS_PUSH:
        return ACCESS_ROW_PUSH
    if kind == ACCESS_STEP:
        return ACCESS_ROW_STEP
    return ACCESS_ROW_SET


cdef bint _is_aligned(DeviceArray rows, Table table) noexcept:
    """To the largest unit that kernels move rows by."""
    cdef size_t row_bytes = table.state.row_bytes | 16
    return (<size_t>rows.memory) % (row_bytes & (~row_bytes + 1)) == 0
