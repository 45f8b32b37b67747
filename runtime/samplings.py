"""The samplings of a rank: the last of each table, and where the random streams of all of them are.

When a checkpoint is loaded all streams branch off by what it is: a job that goes on from it draws other keys than the
one before it has, whose streams began with the same seed, and the same ones each time that it goes on from there.
"""

import threading
import weakref

from intentpm.runtime._native.store import Table
from intentpm.runtime.sampling import Sampling


class Samplings:
    """Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[int, Sampling] = {}  # guarded by: the lock, as all below. By table
        self._all: weakref.WeakSet[Sampling] = weakref.WeakSet()
        self._branch: tuple[int, ...] = ()

    def declare(self, sampling: Sampling) -> Sampling:
        """It is its table's last one from now on."""
        with self._lock:
            if self._branch:
                sampling.branch_off(self._branch)
            self._last[sampling.table.table_id] = sampling
            self._all.add(sampling)
        return sampling

    def last(self, table: Table) -> Sampling | None:
        with self._lock:
            return self._last.get(table.table_id)

    def branch_off(self, branch: tuple[int, ...]) -> None:
        """What is drawn from now on follows from the seed and these numbers, >= 0; the same on all ranks."""
        with self._lock:
            self._branch = branch
            for sampling in list(self._all):
                sampling.branch_off(branch)
