"""A thread's side: accesses, intents, samples and barriers, as AdaPM's bindings have them."""

import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from intentpm.adapm.buffers import Floats, Layout, Target, flat_keys, flat_values, plain
from intentpm.adapm.freshness import FOR_EVER_CLOCKS, Freshness
from intentpm.adapm.key_space import Integers
from intentpm.adapm.server import Server
from intentpm.adapm.timestamps import HERE, Call, Timestamps
from intentpm.foundation.errors import ClosedError, KeyRangeError, SampleError, ShapeError
from intentpm.runtime.arguments import whole_number

_Access = Callable[[Any, Integers, Floats], Any]
_KEY, _VALUE = np.dtype(np.int64), np.dtype(np.float32)
_REMOTE = 2
"""Of ``access_counts``."""


class Worker:
    """Worker ``worker_id``, from 0 to num_threads - 1, of this process; ``current_clock()`` starts at 0.

    In all calls: ``keys`` are integers of any shape, ``vals`` float32 of any shape with as many elements as the values
    of the keys have together, in the order of the keys; torch tensors in host memory or numpy arrays. What returns a
    timestamp returns -1 where no other process had to be asked.
    Raises, everywhere: KeyRangeError, ShapeError, DtypeError, and nothing was done then; PeerLostError; ClosedError
    after ``finalize``.
    Threads: one at a time uses a worker; any may make it.
    """

    def __init__(self, worker_id: int, server: Server) -> None:
        self._is_finalized = False
        self._thread: threading.Thread | None = None  # that used it last
        self._server = server
        self._space = server.space
        self._worker = server.manager.worker()
        self._worker_id = server.add_worker(worker_id, self)  # known to other threads from here on
        self._timestamps = Timestamps()
        self._freshness = Freshness(self._worker)
        self._lengths = self._space.lengths.tolist()
        self._is_alone = server.manager.size == 1
        self._samples: dict[int, Any] = {}
        self._next_sample = 1

    # -- values --------------------------------------------------------------------------------------------------------

    def pull(self, keys: Any, vals: Any, asynchronous: bool = False) -> int:
        """Reads the values of ``keys`` into ``vals``; asynchronously: filled once the timestamp was waited for."""
        access = self._straight(keys, vals)
        if access is None:
            return self._pull(flat_keys(keys), Target(vals, np.float32, "vals"), asynchronous)
        self._freshness.before_pull(access[0].table_id)
        return self._run_straight(self._worker.pull, self._worker.pull_async, access, keys, asynchronous)

    def push(self, keys: Any, vals: Any, asynchronous: bool = False) -> int:
        """Adds ``vals`` to the values of ``keys``; those of keys that come twice add up. Asynchronously: at some time
        soon; later calls of this worker see it. ``keys`` and ``vals`` may be changed at once in any case.
        """
        return self._write(self._worker.push, self._worker.push_async, keys, vals, asynchronous)

    def set(self, keys: Any, vals: Any, asynchronous: bool = False) -> int:
        """Replaces the values of ``keys``, wherever they are, replicated or not. Otherwise as ``push``.

        It takes effect where the value's main copy is: what other workers pushed is gone if it came there before, is
        added if it comes later.
        """
        return self._write(self._worker.set, self._worker.set_async, keys, vals, asynchronous)

    def wait(self, timestamp: int) -> None:
        """Waits until the call that returned ``timestamp`` is through. Raises Error for a number that none returned."""
        self._timestamps.wait(timestamp)

    def waitall(self) -> None:
        """Waits for all calls of this worker."""
        self._timestamps.wait_all()

    # -- intent and time -----------------------------------------------------------------------------------------------

    def intent(self, keys: Any, start: int, end: int = 0) -> int:
        """Says that this worker will access ``keys`` while its clock is in [start, end); returns -1, at once.

        end: 0: start + 1. ``sys.maxsize`` is never; such keys' copies stay fresh (``freshness``), and a pull may wait
            for that. A window that is empty, or over, says nothing.
        """
        start, end = whole_number(start, "start"), whole_number(end, "end")
        end = end or start + 1
        wanted = self._checked(flat_keys(keys))
        if end > start:
            for part in self._space.parts(wanted):
                table = self._server.tables[part.table]
                self._worker.intent(table, part.rows, start, end)
                if end - start >= FOR_EVER_CLOCKS and not self._is_alone:
                    self._freshness.keep(table.table_id)
        return HERE

    def advance_clock(self) -> None:
        """Adds one to this worker's clock."""
        self._worker.advance_clock()
        self._freshness.advance()

    def current_clock(self) -> int:
        return self._worker.clock

    # -- samples -------------------------------------------------------------------------------------------------------

    def prepare_sample(self, K: int, start: int, end: int = 0) -> int:  # noqa: N803  theirs
        """Announces that ``K`` keys will be pulled while the clock is in [start, end), end 0: start + 1.

        Returns the number of the sample. How keys are drawn: ``Server.enable_sampling_support``. Raises SampleError.
        """
        start, end = whole_number(start, "start"), whole_number(end, "end")
        samples = self._server.samples()
        sample = samples.prepare(self._worker, K, start, end or start + 1)
        self._samples[self._next_sample] = (samples, sample)
        self._next_sample += 1
        return self._next_sample - 1

    def pull_sample(self, id: int, keys: Any, vals: Any, asynchronous: bool = False) -> int:
        """Draws as many keys of a prepared sample as ``keys`` has elements into it, and their values into ``vals``.

        keys: int64. Raises SampleError for a number that is none, or was used up, and when fewer keys are left.
        """
        number = whole_number(id, "id")
        if number not in self._samples:
            raise SampleError(f"sample {number}: this worker prepared none of that number that is not used up")
        samples, sample = self._samples[number]
        names = Target(keys, np.int64, "keys")
        count = names.flat.size
        length = samples.length
        target = Target(vals, np.float32, "vals")
        if target.flat.size != count * length:
            raise ShapeError(f"vals has {target.flat.size} values: {count} keys of the sample have {count * length}")
        names.flat[:] = samples.take(sample, self._worker, count)
        names.finish()
        if not sample.left:
            del self._samples[number]
        return self._pull(names.flat, target, asynchronous)

    # -- all workers ---------------------------------------------------------------------------------------------------

    def wait_sync(self) -> None:
        """Waits until what this worker wrote is at the main copies, its intents that are due are acted on, and the
        replicas of this process hold what their main copies did when it was called.
        """
        self._note_thread()
        self._worker.wait_sync()

    def wait_replica_sync(self) -> None:
        """The former name of ``wait_sync``."""
        warnings.warn("wait_replica_sync is called wait_sync now", DeprecationWarning, stacklevel=2)
        self.wait_sync()

    def barrier(self) -> None:
        """Waits until every worker of every process has called it. What they wrote, and waited for with ``wait_sync``,
        is in every replica then.

        Raises Error when a worker of this process ended before, or was not made; PeerLostError.
        """
        self._note_thread()
        self._server.thread_barrier.wait()

    def begin_setup(self) -> None:
        """Before the workers set the first values; a barrier."""
        self.wait_sync()
        self.barrier()

    def end_setup(self) -> None:
        """After it: every copy of a value is as it was set; a barrier."""
        self.wait_sync()
        self.barrier()

    def finalize(self) -> None:
        """The end of this worker: all its calls are through, its intents are over; a barrier. Idempotent."""
        if self._is_finalized:
            return
        self.waitall()
        self.wait_sync()
        self.barrier()
        self._is_finalized = True
        self._worker.close()

    # -- the key space -------------------------------------------------------------------------------------------------

    def get_key_size(self, key_id: int = 0) -> int:
        """Floats in the value of a key."""
        key = flat_keys([key_id])
        self._space.check(key)
        return int(self._space.lengths_of(key)[0])

    @property
    def num_keys(self) -> int:
        """Keys are 0 to num_keys - 1."""
        return self._space.num_keys

    # -- inside --------------------------------------------------------------------------------------------------------

    def was_left(self) -> bool:
        """The thread that used it has ended, and did not finalize it. For the server."""
        return not self._is_finalized and self._thread is not None and not self._thread.is_alive()

    def _note_thread(self) -> None:
        self._thread = threading.current_thread()

    def _checked(self, keys: Integers) -> Integers:
        if self._is_finalized:
            raise ClosedError(f"worker {self._worker_id} was finalized")
        self._space.check(keys)
        return keys

    def _pull(self, keys: Integers, target: Target, asynchronous: bool) -> int:
        wanted = self._checked(keys)
        layout = Layout(self._space, wanted, target.flat.size)
        accesses: list[tuple[Any, Integers, Floats]] = []
        finish: list[Callable[[], None]] = []
        for part in layout.parts:
            table = self._server.tables[part.table]
            self._freshness.before_pull(table.table_id)
            rows = layout.rows(part, target.flat)
            if rows is None:
                rows = np.empty((len(part.rows), self._space.lengths[part.table]), np.float32)
                finish.append(partial(_scatter, target.flat, layout.indices(part), rows))
            accesses.append((table, part.rows, rows))
        if not target.is_direct:
            finish.append(target.finish)
        return self._run(self._worker.pull, self._worker.pull_async, accesses, finish, asynchronous)

    def _straight(self, keys: Any, vals: Any) -> tuple[Any, Integers, Floats] | None:
        """The access to keys of one run of the key space, in memory that the parameter manager can use as it is.

        None where it is not so simple, or something is wrong: the longer way finds out what.
        """
        names, values = plain(keys), plain(vals)
        if names is None or values is None or names.dtype != _KEY or values.dtype != _VALUE:
            return None
        if names.ndim != 1 or not values.flags.carray or self._is_finalized:
            return None
        found = self._space.whole_part(names)
        if found is None:
            return None
        table, rows = found
        length = self._lengths[table]
        if values.size != len(rows) * length:
            return None
        return self._server.tables[table], rows, values.reshape(len(rows), length)

    def _run_straight(
        self, access: _Access, begin: _Access, what: tuple[Any, Integers, Floats], keys: Any, asynchronous: bool
    ) -> int:
        try:
            return self._run(access, begin, [what], [], asynchronous)
        except KeyRangeError:  # which speaks of a row
            self._space.check(flat_keys(keys))
            raise

    def _write(self, write: _Access, begin: _Access, keys: Any, vals: Any, asynchronous: bool) -> int:
        access = self._straight(keys, vals)
        if access is not None:
            return self._run_straight(write, begin, access, keys, asynchronous)
        wanted, values = self._checked(flat_keys(keys)), flat_values(vals)
        layout = Layout(self._space, wanted, values.size)
        accesses = []
        for part in layout.parts:
            rows = layout.rows(part, values)
            if rows is None:
                rows = values[layout.indices(part)]
            accesses.append((self._server.tables[part.table], part.rows, rows))
        return self._run(write, begin, accesses, [], asynchronous)

    def _run(
        self,
        access: _Access,
        begin: _Access,
        accesses: list[tuple[Any, Integers, Floats]],
        finish: list[Callable[[], None]],
        asynchronous: bool,
    ) -> int:
        """Makes the accesses of one call, with ``access`` or, to wait for them later, ``begin``. Its timestamp."""
        self._note_thread()
        if len(accesses) == 1 and not asynchronous:
            asked_before = self._keys_asked_for(accesses[0][0])
            access(*accesses[0])
            for step in finish:
                step()
            return HERE if self._keys_asked_for(accesses[0][0]) == asked_before else self._timestamps.number()
        call = Call([begin(*each) for each in accesses], finish)
        if call.is_done():
            call.end()
            return HERE
        if asynchronous:
            return self._timestamps.keep(call)
        call.end()
        return self._timestamps.number()

    def _keys_asked_for(self, table: Any) -> int:
        """Of other processes, by this worker until now."""
        return 0 if self._is_alone else int(self._worker.access_counts(table.table_id)[_REMOTE])


def _scatter(flat: Floats, indices: Integers, rows: Floats) -> None:
    flat[indices] = rows
