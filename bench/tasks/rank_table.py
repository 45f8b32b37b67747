"""Small vectors gathered from all ranks, through the parameter manager itself: one row of a table per rank."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

PHASES = 2
"""Rows per rank, used in turn. A rank can be one gather ahead of another, never two: the barrier stops it."""


class RankTable:
    """Collective gathers of float64 vectors. All ranks construct it, and call it, in the same order.

    Parameters:
        pm: the parameter manager.
        worker: a worker of this rank; used by the calling thread only.
        length: number of values in a vector.
        name: of the table, unique in the job.
    """

    def __init__(self, pm: Any, worker: Any, length: int, name: str = "rank_values") -> None:
        self.pm = pm
        self.worker = worker
        self.length = length
        self.table = pm.create_table(name, num_keys=PHASES * pm.size, row_shape=(length,), dtype="float64", init=0.0)
        self.phase = 0

    def gather(self, values: ArrayLike) -> NDArray[np.float64]:
        """Every rank's values, in rank order: float64 (N, length), the same on every rank."""
        first = self.phase * self.pm.size
        self.phase = (self.phase + 1) % PHASES
        mine = np.asarray(values, np.float64).reshape(1, self.length)
        self.worker.set(self.table, np.array([first + self.pm.rank]), mine)
        settle(self.pm, self.worker)
        rows: NDArray[np.float64] = self.worker.pull(self.table, np.arange(first, first + self.pm.size))
        return rows


def settle(pm: Any, worker: Any) -> None:
    """Collective: returns when every rank's earlier writes are visible to this one, in replicas too."""
    worker.wait_sync()
    pm.barrier()
    worker.wait_sync()
