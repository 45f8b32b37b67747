"""Look-ahead loading: batches are prepared some clocks before use, and the PM is told what they will access."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray


class Batch(Protocol):
    """One batch of work, used during one clock of the worker."""

    def accesses(self) -> Iterable[tuple[Any, NDArray[np.int64]]]:
        """Pairs of (table, keys) that the batch will pull or push."""
        ...


B = TypeVar("B", bound=Batch)


def look_ahead(
    worker: Any, batches: Iterable[B], depth: int, prepare: Callable[[B, int], None] | None = None
) -> Iterator[B]:
    """Yields ``batches`` in order, each during its own clock of ``worker``.

    Up to ``depth`` batches are prepared beyond the current one, and each one's intent is signalled when it is prepared:
    ``depth`` clocks ahead. Before the first batch it waits once for the intents that are due already, because nothing
    could be signalled ahead of them. With ``depth`` 0 no intent is signalled.

    ``prepare(batch, clock)`` is called for each batch when it is prepared, whatever the depth, with the clock at which
    it will be used.

    The clock advances when the next batch is asked for, so finish a batch's accesses before that.
    """
    source = iter(batches)
    prepared: deque[B] = deque()
    started = False
    while True:
        while len(prepared) <= depth and (batch := next(source, None)) is not None:
            clock = worker.clock + len(prepared)
            if depth:
                _signal(worker, batch, clock)
            if prepare is not None:
                prepare(batch, clock)
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
