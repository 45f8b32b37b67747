"""The process's side: its part of the values, its workers, and the barriers of processes."""

import threading
import weakref
from typing import Any

from intentpm.adapm.job import current_setup, find_processes
from intentpm.adapm.key_space import KeySpace
from intentpm.adapm.range_sampling import RangeSampling
from intentpm.adapm.thread_barrier import ThreadBarrier
from intentpm.foundation.deadlines import LONGEST_S
from intentpm.foundation.errors import Error, SampleError, ShapeError
from intentpm.launch.bootstrap import join
from intentpm.runtime.arguments import whole_number
from intentpm.runtime.manager import ParameterManager


class Server:
    """This process's part of the job: one per process, after ``setup``. Collective: every process makes one.

    value_lengths: floats per value, the same for all keys, or one for each key (tensor or array [num_keys]).
    All values begin as zeros.
    Attribute: ``manager``, the parameter manager underneath; its tables are "values of length L".
    Raises ConfigError, ShapeError, DtypeError, MemoryBudgetError, and what ``intentpm.init`` does.
    Threads: the main thread makes it and shuts it down; workers of any threads share it.
    """

    def __init__(self, value_lengths: Any) -> None:
        setup = current_setup()
        self._num_threads = setup.num_threads
        self.space = KeySpace(setup.num_keys, value_lengths)
        world = find_processes(setup.config)
        self.manager: ParameterManager = join(setup.config, world)
        self._world = world
        self._exchanging = threading.Lock()  # whoever uses _world
        self._samples: RangeSampling | None = None
        self._workers: dict[int, Any] = {}  # by worker_id, weakly; guarded by the GIL
        self.thread_barrier = ThreadBarrier(self._num_threads, self.manager.barrier, self._why_hopeless)
        try:
            self.tables = [
                self.manager.create_table(f"values of length {length}", int(rows), int(length))
                for length, rows in zip(self.space.lengths, self.space.rows, strict=True)
            ]
        except BaseException as error:
            self.manager.abort(f"failed with {error!r}")
            raise

    def enable_sampling_support(
        self, scheme: str, with_replacement: bool, distribution: str, min: int, max: int
    ) -> None:
        """Says how ``Worker.prepare_sample`` draws on this process; the last call counts.

        scheme: "naive", "preloc", "pool" or "local" (``intentpm.ParameterManager.create_sampling`` explains them).
        distribution: "uniform" or "log-uniform" over the keys from ``min`` to ``max`` - 1. Where these have values of
            several lengths: over those of the most common length.
        Raises SampleError, KeyRangeError, DtypeError.
        """
        self._samples = RangeSampling(
            self.manager, self.tables, self.space, scheme, with_replacement, distribution, min, max
        )

    def barrier(self) -> None:
        """Waits until every process has called it. Beside the barriers of workers, which are others.

        Raises PeerLostError, TransportError.
        """
        with self._exchanging:
            self._world.allgather(b"barrier", LONGEST_S)

    def my_rank(self) -> int:
        """The number of this process, from 0 on, as the scheduler gave it."""
        return self.manager.rank

    def shutdown(self) -> None:
        """Collective end: waits until every process has called it. Idempotent; ends the workers that are left.

        Raises PeerLostError.
        """
        self.manager.close()

    # -- for its workers -----------------------------------------------------------------------------------------------

    def samples(self) -> RangeSampling:
        if self._samples is None:
            raise SampleError("call server.enable_sampling_support(...) before a worker prepares samples")
        return self._samples

    def add_worker(self, worker_id: Any, worker: Any) -> int:
        """Raises ShapeError, DtypeError for what is no number of a worker; Error when there is one of that number."""
        number = whole_number(worker_id, "worker_id")
        if not 0 <= number < self._num_threads:
            raise ShapeError(f"worker_id={number}: setup() said num_threads={self._num_threads}, numbered from 0")
        if number in self._workers:
            raise Error(f"worker_id={number}: this process has that worker already")
        self._workers[number] = weakref.ref(worker)
        return number

    def _why_hopeless(self, waited_s: float) -> str:
        """Why a barrier of workers can not end; "" as far as can be told."""
        for number in range(self._num_threads):
            if number not in self._workers:
                if waited_s > self.manager.config.start_timeout:
                    return f"worker {number}, of {self._num_threads} by setup(), was not made within {waited_s:.0f} s"
                continue
            worker = self._workers[number]()
            if worker is None or worker.was_left():
                return f"worker {number} of this process ended before it came to this barrier"
        return ""
