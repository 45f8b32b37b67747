"""Look-ahead loading: batches are prepared some clocks before use, and the PM is told what they will access."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray


class Batch(Protocol):
    """One batch of work, used during one clock of the worker."""

    def accesses(self) -> Iterable[tuple[Any, NDArray[np.int64]]]:
        """Pairs of (table, keys) that the batch will pull or push."""
        ...


B = TypeVar("B", bound=Batch)


def look_ahead(worker: Any, batches: Iterable[B], depth: int) -> Iterator[B]:
    """Yields ``batches`` in order, each during its own clock of ``worker``.

    Up to ``depth`` batches are prepared beyond the current one, and each one's intent is signalled when it is prepared:
    ``depth`` clocks ahead. Before the first batch it waits once for the intents that are due already, because nothing
    could be signalled ahead of them. With ``depth`` 0 no intent is signalled.

    The clock advances when the next batch is asked for, so finish a batch's accesses before that.
    """
    source = iter(batches)
    prepared: deque[B] = deque()
    started = False
    while True:
        while len(prepared) <= depth and (batch := next(source, None)) is not None:
            if depth:
                _signal(worker, batch, worker.clock + len(prepared))
            prepared.append(batch)
        if not prepared:
            return
        if depth and not started:
            worker.wait_sync()
            started = True
        yield prepared.popleft()
        worker.advance_clock()


def _signal(worker: Any, batch: Batch, clock: int) -> None:
    for table, keys in batch.accesses():
        worker.intent(table, keys, clock, clock + 1)
