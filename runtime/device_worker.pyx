"""DeviceWorker: a worker whose keys and rows lie in the memory of a device.

    keys       on the host, or on the device: known there from an intent, else fetched, which waits
    rows       of tables on the same device: read and written there, by the table's one stream
    the rest   rows that are on other ranks, that a replica or a checkpoint needs, of tables elsewhere: through the host,
               by the calls of Worker

Who waits for whom, so that nobody waits in a circle. A caller's stream may wait for other ranks (a sum over all of them), these
for rows of this one, and who serves them for the table's stream, with its lock. So that stream waits for no caller's:

    the caller's stream    ->  the worker's, the table's
    the worker's           ->  the caller's, the table's
    this call              ->  the caller's stream, with nothing held but the worker: before a write
    the engine, any call   ->  the table's stream, with the lock of its rows
    the table's            ->  nobody's (tiered: that which moves its rows)

What is read is gathered into memory of the worker's; its stream copies it to the caller's array. What is written has been
waited for, before the gate and the lock. A rank that is alone, and has one worker of a device, has nobody to wait for it in a
circle: there the table's stream waits for the caller's, both ways without a copy, and the host for nobody.

Guarantees
    * What a call does with arrays on the device comes after what was enqueued on the caller's current stream before it, and
      before what is enqueued there after it.
    * The host waits for the device only for keys that it has to fetch, for what is written (but for the rank that is alone),
      for gradients, deltas and values of the rest, and where it is 64 reads or 256 MB ahead. (Of a rank that is alone, and of
      one worker under two streams of the caller's, docs/gpu.md says more.)
    * It does so as long as the job lives, CALLER_LIMIT_S at most. Otherwise as Worker.
Assumption: one thread at a time uses a worker (checked, before anything of the worker's is touched).
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint64_t
from libcpp.vector cimport vector

cimport numpy as cnp

import numpy as np

from intentpm.foundation.errors import DeviceError, DtypeError, ShapeError, WaitTimeoutError
from intentpm.gpu.device_arrays import as_device_array
from intentpm.gpu.libraries import count_change
from intentpm.runtime.known_keys import KnownKeys
from intentpm.runtime.rows_to_come import RowsToCome

from intentpm.foundation.primitives cimport store_relaxed_u64
from intentpm.gpu.caller_stream cimport CallerStream, rows_always_wait
from intentpm.gpu.device cimport Device, now_ns
from intentpm.gpu.device_arrays cimport DeviceArray
from intentpm.gpu.exchanges cimport Exchange
from intentpm.gpu.row_transfer cimport RowTransfer, rows_in_a_run
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
from intentpm.runtime.worker cimport WORKER_BUSY, WORKER_CLOSED, WORKER_IDLE, Worker, WorkerUse
from intentpm.runtime.workers_of_rank cimport WorkersOfRank

cnp.import_array()

cdef enum:
    CALLER_LIMIT_S = 1800        # that a call waits for the caller's stream: as long as torch.distributed does for other ranks


cdef class DeviceWorker(Worker):
    """A worker of a device. Made by ``ParameterManager.worker(device=...)``.

    ``keys`` may lie on the device, as any integers; ``out``, deltas, values and gradients there or on the host. A pull without
    ``out`` returns an array on the device: CuPy's, ``EmulatedArray`` on an emulated one. Arrays there are C-contiguous (keys
    that have ``contiguous()``, as tensors of PyTorch, may have strides), and anything with DLPack or
    ``__cuda_array_interface__``. All calls are ordered with the caller's current stream: PyTorch's, CuPy's; of other libraries
    as ``gpu/libraries.py`` says. What waits for the device: docs/gpu.md.
    Raises, besides what Worker does, DeviceError: the device failed. What of a write was applied is not known then.

    Attribute: ``device``.
    """

    cdef readonly Device device
    # Of the call in progress; guarded by: ``use``
    cdef CallerStream caller
    cdef bint caller_is_done             # with what it had enqueued: the host has waited for it
    cdef RowTransfer transfer
    cdef object known                    # KnownKeys

    def __init__(self, manager, Engine engine not None, WorkersOfRank workers not None, worker_id: int, Device device not None):
        self.device = device
        self.caller = CallerStream(device)
        self.transfer = RowTransfer(device)
        self.known = KnownKeys()
        workers.of_devices += 1
        Worker.__init__(self, manager, engine, workers, worker_id)
        device.open_workers += 1

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
            rows = self._rows_to_fill(table, wanted, rows)
            left = self._read(table, wanted, rows)
            if len(left):
                host = self._host_rows(table, left)
                self._access_left(table, ACCESS_PULL, wanted[left], host)
                self._deliver(rows, left, host)
            return rows.given
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
            rows = self._rows_to_fill(table, wanted, rows)
            left = self._read(table, wanted, rows)
        finally:
            self.use = WORKER_IDLE
        return RowsToCome(self, rows, left, Worker.pull_async(self, table, wanted[left]))

    def push(self, Table table not None, keys, deltas):
        """As ``Worker.push``; what is added on the device shows in what its streams do next."""
        cdef DeviceArray rows = as_device_array(deltas, self.device)
        if rows is None:
            Worker.push(self, table, self.keys_on_host(keys), deltas)
        else:
            self._write_from(table, ACCESS_PUSH, keys, rows, False)

    def set(self, Table table not None, keys, values):
        """As ``Worker.set``."""
        cdef DeviceArray rows = as_device_array(values, self.device)
        if rows is None:
            Worker.set(self, table, self.keys_on_host(keys), values)
        else:
            self._write_from(table, ACCESS_SET, keys, rows, False)

    def push_async(self, Table table not None, keys, deltas):
        """As ``Worker.push_async``; does not wait for other ranks."""
        cdef DeviceArray rows = as_device_array(deltas, self.device)
        if rows is None:
            return Worker.push_async(self, table, self.keys_on_host(keys), deltas)
        return self._write_from(table, ACCESS_PUSH, keys, rows, True)

    def set_async(self, Table table not None, keys, values):
        """As ``Worker.set_async``; does not wait for other ranks."""
        cdef DeviceArray rows = as_device_array(values, self.device)
        if rows is None:
            return Worker.set_async(self, table, self.keys_on_host(keys), values)
        return self._write_from(table, ACCESS_SET, keys, rows, True)

    def push_grad(self, Table table not None, keys, gradients, lr=None, duplicates="sum"):
        """As ``Worker.push_grad``; sums of duplicates are made on the device."""
        cdef DeviceArray rows = as_device_array(gradients, self.device)
        if self.exact is not None or rows is None:
            Worker.push_grad(self, table, self.keys_on_host(keys), self._on_host(gradients, rows), lr, duplicates)
        else:
            self._step_from(table, keys, rows, lr, duplicates, False)

    def push_grad_async(self, Table table not None, keys, gradients, lr=None, duplicates="sum"):
        """As ``Worker.push_grad_async``; does not wait for other ranks."""
        cdef DeviceArray rows = as_device_array(gradients, self.device)
        if self.exact is not None or rows is None:
            return Worker.push_grad_async(
                self, table, self.keys_on_host(keys), self._on_host(gradients, rows), lr, duplicates)
        return self._step_from(table, keys, rows, lr, duplicates, True)

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
        on_host = self._keys_of(array)
        Worker.intent(self, table, on_host, start, end)
        self.known.note(array, on_host, start + 1 if end is None else end)

    def note_keys(self, keys, on_host, end) -> None:
        """Says what ``keys``, on the device, are, so that nobody has to wait for them: ``on_host``, integers in the same order.

        Holds until the worker's clock is ``end``, for tensors of PyTorch that are not changed meanwhile. Raises ShapeError.
        """
        array = as_device_array(keys, self.device)
        if self.use != WORKER_IDLE:
            self._refuse()
        if array is not None:
            said = np.array(on_host, np.int64).reshape(-1)
            if array.shape != said.shape:
                raise ShapeError(
                    f"keys have shape {array.shape}, on_host has {len(said)}: pass a one-dimensional array of as many")
            self.known.note(array, said, end)

    def advance_clock(self) -> int:
        """As ``Worker.advance_clock``."""
        clock = Worker.advance_clock(self)
        self.known.expire(clock)
        return clock

    def close(self) -> None:
        """As ``Worker.close``. Memory that the device still uses is given back by a later call of some worker."""
        cdef bint done
        Worker.close(self)
        self.caller.collect(None)
        done = self.caller.mark() and self.caller.has_done()
        with nogil:
            if done and self.device.has_retired(0):
                self.device.free_retired()

    cdef _end(self):
        cdef bint was_open = self.use != WORKER_CLOSED
        Worker._end(self)
        if was_open and self.transfer is not None:
            self.known.clear()
            self.transfer.exchanges.clear()
            self.device.open_workers -= 1

    # -- arguments ------------------------------------------------------------------------------------------------------------

    def keys_on_host(self, keys):
        """``keys`` as the host can read them: int64 [K] of those on the device, known or fetched; others as they are."""
        array = as_device_array(keys, self.device)
        return keys if array is None else self._keys_of(array)

    cdef _keys_of(self, DeviceArray array):
        if self.use != WORKER_IDLE:
            self._refuse()
        known = self.known.find(array)
        if known is not None:
            return known
        if len(array.shape) != 1:
            raise ShapeError(f"keys have shape {array.shape}: pass a one-dimensional array")
        if array.dtype.kind not in "iu":
            raise DtypeError(f"keys have dtype {array.dtype}: pass integers (int64)")
        if not array.is_contiguous and hasattr(array.given, "contiguous"):
            copied = array.given.contiguous()
            array = as_device_array(copied, self.device)
            if array is None:            # of an emulated device: PyTorch has made the copy on the host
                return np.asarray(copied, np.int64)
        return self._copy_on_host(array).astype(np.int64, copy=False)

    def _on_host(self, values, array):
        """What is on the host as it is; else a copy."""
        return values if array is None else self._copy_on_host(array)

    cdef cnp.ndarray _copy_on_host(self, DeviceArray array):
        """Waits. The worker is in use meanwhile: what it keeps of a call is one call's."""
        cdef cnp.ndarray copied
        if not array.is_contiguous:
            raise ShapeError(f"an array of shape {array.shape} on the device is not C-contiguous")
        copied = np.empty(array.shape, array.dtype)
        if self.use != WORKER_IDLE:
            self._refuse()
        self.use = WORKER_BUSY
        try:
            self._collect(array)
            self._fetch(array.memory, None, copied.size, array.dtype.itemsize, copied)
        finally:
            self.use = WORKER_IDLE
        return copied

    cdef DeviceArray _rows_to_fill(self, Table table, cnp.ndarray keys, DeviceArray rows):
        """Those given, or new ones."""
        if rows is None:
            rows = as_device_array(
                self.device.new_array((cnp.PyArray_DIM(keys, 0), *table.row_shape), table.dtype), self.device)
        elif getattr(rows.given, "requires_grad", False):
            raise DtypeError(f"out for table {table.name!r} is a tensor that requires grad: pass out=tensor.detach()")
        self._check_rows(table, keys, rows, "out")
        count_change(rows.given)         # before: a call that fails half way has changed it too
        return rows

    cdef _check_rows(self, Table table, cnp.ndarray keys, DeviceArray rows, str what):
        """Rows of ``table`` for each of the keys. Raises ShapeError, DtypeError."""
        shape = (cnp.PyArray_DIM(keys, 0), *table.row_shape)
        if rows.dtype != table.dtype:
            raise DtypeError(f"{what} for table {table.name!r}: dtype {rows.dtype}, the table has {table.dtype}")
        if rows.shape != shape:
            raise ShapeError(f"{what} for table {table.name!r}: shape {rows.shape}, expected {shape}")
        if not rows.is_contiguous:
            raise ShapeError(f"{what} for table {table.name!r}: must be C-contiguous")

    cdef cnp.ndarray _host_rows(self, Table table, cnp.ndarray positions):
        return np.empty((cnp.PyArray_DIM(positions, 0), *table.row_shape), table.dtype)

    # -- the caller's stream --------------------------------------------------------------------------------------------------

    cdef _collect(self, DeviceArray array):
        """The first of what a call does; holding nothing but the worker."""
        self.caller.collect(array.given)
        self.caller_is_done = False
        if self.device.has_retired(0):
            self._give_back(False)

    cdef bint _give_back(self, bint with_blocks) except -1:
        """What is no longer needed; ``with_blocks``: with those that wait to be used again: there is no memory left. Once the
        caller's stream is done: the driver would wait for it with no limit. Returns whether there was any."""
        cdef bint was_any
        self._check_device(not self.device.failure)
        self._await_caller()
        with nogil:
            if with_blocks:
                self.transfer.exchanges.clear()
            was_any = self.device.free_retired()
        return was_any

    cdef bint _is_alone(self) noexcept:
        """Nobody else may wait for rows of this rank."""
        return (self.engine.transport.size == 1 and self.workers.of_devices == 1) or rows_always_wait()

    cdef _await_caller(self):
        """Until what the caller has enqueued by now is done. Raises PeerLostError, WaitTimeoutError, DeviceError."""
        cdef int64_t until_ns = now_ns() + <int64_t>CALLER_LIMIT_S * 1_000_000_000
        cdef bint done
        self._check_stream(self.caller.mark())
        done = self.caller.has_done()
        if not done:
            self.device.waits.fetch_add(1)
        while not done:
            with nogil:
                done = self.caller.has_done_soon()
            PyErr_CheckSignals()
            self.engine.calls.raise_state()
            if not done and now_ns() >= until_ns:
                raise WaitTimeoutError(
                    f"{self.device.name}: what was enqueued before a call has not been done within {CALLER_LIMIT_S} s")
        self.caller_is_done = True

    # -- on the device, then through the host ---------------------------------------------------------------------------------

    cdef bint _is_served_on_device(self, Table table, DeviceArray rows) noexcept:
        cdef DeviceTier tier = table.tier
        return tier is not None and tier.rows.device is self.device and _is_aligned(rows, table)

    cdef cnp.ndarray _read(self, Table table, cnp.ndarray keys, DeviceArray rows):
        """What can be read on the device. Returns the positions that are left: int32, ascending."""
        self._collect(rows)
        if self.caller.host_waits_after:
            self._await_caller()
        if not self._is_served_on_device(table, rows):
            return np.arange(cnp.PyArray_DIM(keys, 0), dtype=np.int32)
        if self._is_alone():
            return self._serve(table, ACCESS_PULL, keys, rows.memory, False, self.caller)
        return self._read_by_copies(table, keys, rows)

    cdef cnp.ndarray _read_by_copies(self, Table table, cnp.ndarray keys, DeviceArray rows):
        """So that the stream of the table's rows need not wait for the caller's."""
        cdef size_t row_bytes = table.state.row_bytes
        cdef int64_t count = cnp.PyArray_DIM(keys, 0)
        cdef int64_t most = rows_in_a_run(row_bytes)
        cdef int64_t first = 0
        parts = []
        while first < count:
            parts.append(self._read_run(
                table, keys[first:first + most], rows.memory + first * row_bytes) + np.int32(first))
            first += most
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    cdef cnp.ndarray _read_run(self, Table table, cnp.ndarray keys, char* to):
        cdef size_t row_bytes = table.state.row_bytes
        cdef int64_t count = cnp.PyArray_DIM(keys, 0)
        cdef size_t size_bytes = count * row_bytes
        cdef Exchange* exchange
        cdef cnp.ndarray left
        cdef bint done
        if self.transfer.stage_waits(count, row_bytes):
            self._await_caller()
        with nogil:
            exchange = self.transfer.stage(count, row_bytes)
        if exchange == NULL and self._give_back(True):
            exchange = self.transfer.stage(count, row_bytes)
        self._check_device(exchange != NULL)
        try:
            left = self._serve(
                table, ACCESS_PULL, keys, exchange.device + exchange.rows_at, False, self.transfer.itself)
        except BaseException:
            self.transfer.hand_over(self.caller, exchange, NULL, 0)
            raise
        if len(left) == count:
            size_bytes = 0
        with nogil:
            done = self.transfer.hand_over(self.caller, exchange, to, size_bytes)
        self._check_device(done)
        return left

    cdef cnp.ndarray _serve(
            self, Table table, int kind, cnp.ndarray keys, char* memory, bint sums, CallerStream caller):
        """What can be done with rows at ``memory``; then ``caller`` goes on. Returns the positions that are left."""
        cdef DeviceTier tier = table.tier
        cdef const int64_t* wanted = <const int64_t*>cnp.PyArray_DATA(keys)
        cdef int64_t count = cnp.PyArray_DIM(keys, 0)
        cdef RowAccess access = _access_of(kind)
        cdef uint64_t served[2]
        cdef AccessCounts* counts = &self.counts[table.table_id]
        cdef double lr = self.lr
        cdef bint rows_wait = caller is self.caller and not self.caller_is_done
        cdef bint done
        cdef cnp.ndarray left
        self.misses.clear()
        served[0] = served[1] = 0
        with nogil:
            done = tier.serve_on_device(
                access, wanted, count, memory, lr, sums, caller, rows_wait, self.misses, served)
        if not done:
            self.engine.look_now()
            tier.check()
            self._check_stream(False)
        store_relaxed_u64(&counts.local, counts.local + served[0])
        store_relaxed_u64(&counts.replica, counts.replica + served[1])
        if not is_read(kind) and is_dirty(table.state):
            self._note_dirt()
        left = self._positions()
        if self.managed:
            self._sample(table, kind, np.delete(keys, left) if len(left) else keys)
        return left

    cdef _sample(self, Table table, int kind, cnp.ndarray served):
        """Coverage, of what was served; what is left is sampled when it is."""
        cdef vector[int32_t] none
        sample_coverage(
            table.state, <const int64_t*>cnp.PyArray_DATA(served), cnp.PyArray_DIM(served, 0), none,
            &self.counts[table.table_id], is_read(kind), self.engine.transport, &self.intents.clocks.clock_ns)

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

    cdef _take_in(self, Table table, DeviceArray rows):
        """What a write from ``rows`` waits for, then the gate, which a cut waits for."""
        self._collect(rows)
        if self.caller.host_waits_after or not self._is_alone() or not self._is_served_on_device(table, rows):
            self._await_caller()
        self._pass_gate()

    cdef cnp.ndarray _write_there(self, Table table, int kind, cnp.ndarray keys, DeviceArray rows, bint sums):
        """What can be written on the device. Returns the positions that are left."""
        if self._is_served_on_device(table, rows):
            return self._serve(table, kind, keys, rows.memory, sums, self.caller)
        return np.arange(cnp.PyArray_DIM(keys, 0), dtype=np.int32)

    cdef _write_from(self, Table table, int kind, object keys, DeviceArray rows, bint later):
        """Returns a Future if ``later``."""
        cdef cnp.ndarray wanted = self._begin(table, self.keys_on_host(keys))
        cdef cnp.ndarray left, host
        try:
            self._check_rows(table, wanted, rows, "deltas or values")
            self._take_in(table, rows)
            left = self._write_there(table, kind, wanted, rows, False)
            host = self._fetch_rows(table, rows, left)
            if later:
                return self._begin_write(table, kind, wanted[left], host)
            if len(left):
                self._access_left(table, kind, wanted[left], host)
        finally:
            self._end_write()

    cdef _step_from(self, Table table, object keys, DeviceArray rows, object lr, object duplicates, bint later):
        cdef cnp.ndarray wanted
        cdef cnp.ndarray left, host
        check_step(table, duplicates)
        wanted = self._begin(table, self.keys_on_host(keys))
        try:
            self._check_rows(table, wanted, rows, "gradients")
            self._take_in(table, rows)
            self.lr = rate_of_call(table, self.steps, learning_rate(table, lr))
            left = self._write_there(table, ACCESS_STEP, wanted, rows, duplicates == "sum")
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
        """Those of the positions; the stream of the call is collected."""
        cdef cnp.ndarray host = self._host_rows(table, positions)
        if len(positions):
            self._fetch(rows.memory, positions, len(positions), table.state.row_bytes, host)
        return host

    cdef _fetch(self, char* array, object positions, int64_t count, size_t row_bytes, cnp.ndarray out):
        cdef cnp.ndarray chosen
        cdef const int32_t* at = NULL
        cdef char* to = <char*>cnp.PyArray_DATA(out)
        cdef bint done
        if not self.caller_is_done:
            self._await_caller()
        if positions is not None:
            chosen = positions
            at = <const int32_t*>cnp.PyArray_DATA(chosen)
        with nogil:
            done = self.transfer.fetch(array, at, count, row_bytes, to)
        if not done and self._give_back(True):
            with nogil:
                done = self.transfer.fetch(array, at, count, row_bytes, to)
        self._check_device(done)

    cdef _deliver(self, DeviceArray rows, cnp.ndarray positions, cnp.ndarray host):
        cdef const int32_t* at = <const int32_t*>cnp.PyArray_DATA(positions)
        cdef const char* source = <const char*>cnp.PyArray_DATA(host)
        cdef int64_t count = cnp.PyArray_DIM(positions, 0)
        cdef size_t row_bytes = host.nbytes // count
        cdef int64_t sent
        cdef bint again = False
        while count > 0:
            with nogil:
                sent = self.transfer.deliver(self.caller, rows.memory, at, count, row_bytes, source)
            if sent < 0 and not again and self._give_back(True):
                again = True             # from the first of these
                continue
            self._check_device(sent >= 0)
            at += sent
            source += sent * row_bytes
            count -= sent
            if count > 0:
                self._await_caller()

    def _deliver_late(self, rows, left, host):
        """Of a call that was asynchronous; on the stream that is the caller's now. The worker may be closed."""
        cdef WorkerUse before = self.use
        if before == WORKER_BUSY:
            self._refuse()
        self.use = WORKER_BUSY
        count_change(rows.given)
        try:
            self._collect(rows)
            if self.caller.host_waits_after:
                self._await_caller()
            self._deliver(rows, left, host)
        finally:
            self.use = before

    cdef int _check_stream(self, bint taken) except -1:
        if not taken:
            raise DeviceError(
                f"{self.device.name}: the stream that the arrays are used on was refused: "
                f"{self.device.failure or 'it is gone'}")
        return 0

    cdef int _check_device(self, bint done) except -1:
        if not done:
            raise DeviceError(f"{self.device.name}: {self.device.failure or 'no memory is left'}")
        return 0


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
