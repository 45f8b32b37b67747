"""Look-ahead loading: batches are prepared some clocks before use, and the PM is told what they will access."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from intentpm.runtime.ahead import Ahead


class Batch(Protocol):
    """One batch of work, used during one clock of the worker."""

    def accesses(self) -> Iterable[tuple[Any, NDArray[np.int64]]]:
        """Pairs of (table, keys) that the batch will pull or push."""
        ...


B = TypeVar("B", bound=Batch)


def look_ahead(
    worker: Any, batches: Iterable[B], depth: int | str = "auto", prepare: Callable[[B, int], None] | None = None
) -> Iterator[B]:
    """Yields ``batches`` in order, each during its own clock of ``worker``.

    Up to ``depth`` batches are prepared beyond the current one, and each one's intent is signalled when it is prepared:
    ``depth`` clocks ahead. "auto": as far ahead as management needs to act in time, as long as the keys of all of them
    fit in 256 MB. Before the first batch it waits once for the intents that are due already, because nothing could be
    signalled ahead of them. With ``depth`` 0 no intent is signalled.

    ``prepare(batch, clock)`` is called for each batch when it is prepared, whatever the depth, with the clock at which
    it will be used.

    The clock advances when the next batch is asked for, so finish a batch's accesses before that.
    """
    source, ahead = iter(batches), Ahead(depth, getattr(worker, "manager", None))
    prepared: deque[B] = deque()
    started = False
    while True:
        while len(prepared) <= ahead.batches() and (batch := next(source, None)) is not None:
            clock = worker.clock + len(prepared)
            if ahead.announces:
                ahead.prepared(_signal(worker, batch, clock))
            if prepare is not None:
                prepare(batch, clock)
            prepared.append(batch)
        if not prepared:
            return
        if ahead.announces and not started:
            worker.wait_intents()
            started = True
        yield prepared.popleft()
        worker.advance_clock()


def _signal(worker: Any, batch: Batch, clock: int) -> int:
    """Returns how many bytes of keys these are."""
    nbytes = 0
    for table, keys in batch.accesses():
        worker.intent(table, keys, clock, clock + 1)
        nbytes += keys.nbytes
    return nbytes
