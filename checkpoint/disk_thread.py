"""What is done on a disk, by a thread of its own: of a disk that does not answer is told, where all would wait for it.

A thread that the system holds in a read or write of a disk that hangs (a server of files that is gone, say) cannot be
woken, by nothing. So whoever must not hang has another do it, and gives that up when it has given no sign of life for
so long. The other ends with the process, or when the disk answers again: at its next sign, or where it wants to look
at what is not its own, of which it is kept from then on.

Not an executor of ``concurrent.futures``: the interpreter waits for the threads of those before it ends.

Guarantees: ``do`` returns or raises within its limit after the last sign of life. When it has raised, nobody is within
``shared``, nor will be.
One thread at a time calls ``do``.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from intentpm.foundation.errors import CheckpointError

Result = TypeVar("Result")
LOOK_S = 0.5
"""Time counts in looks of who waits: where all of the process was stopped, the disk had no time either."""


class DiskThread:
    """A thread for each ``do``. ``limit_s``: None waits as long as it takes."""

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._lock = threading.RLock()
        """Held within ``shared``, and to give up."""
        self._signs = 0
        """Of life; written by the thread alone."""
        self._given_up: str | None = None

    def do(self, what: str, function: Callable[[], Result]) -> Result:
        """``function()``, which calls ``live`` if it takes long. Raises what it raises; CheckpointError: it hangs."""
        self._check()
        outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                outcome.put((function(), None))
            except BaseException as error:
                outcome.put((None, error))

        thread = threading.Thread(target=run, name="intentpm-disk", daemon=True)
        thread.start()
        try:
            result, error = self._wait(what, outcome)
        except BaseException as problem:  # a signal, too
            if self._given_up is None:
                with self._lock:
                    self._given_up = str(problem) or repr(problem)
            raise
        thread.join()
        if error is not None:
            raise error
        found: Result = result
        return found

    def live(self) -> None:
        """A sign of life. Raises CheckpointError: nobody waits any more."""
        self._signs += 1
        self._check()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """For what the thread does with what is not its own. Raises CheckpointError: nobody waits any more."""
        with self._lock:
            self.live()
            yield

    def _check(self) -> None:
        if self._given_up is not None:
            raise CheckpointError(self._given_up)

    def _wait(self, what: str, outcome: "queue.SimpleQueue[tuple[Any, BaseException | None]]") -> Any:
        look_s = LOOK_S if self._limit_s is None else min(LOOK_S, self._limit_s)
        waited_s, signs = 0.0, self._signs
        while True:
            try:
                return outcome.get(timeout=look_s)
            except queue.Empty:
                waited_s += look_s
            if self._signs != signs:
                waited_s, signs = 0.0, self._signs
            if self._limit_s is not None and waited_s >= self._limit_s and self._lock.acquire(blocking=False):
                self._given_up = (
                    f"{what}: nothing came of it for {self._limit_s:g} s: the disk, or who serves it, does not answer"
                )
                self._lock.release()
                raise CheckpointError(self._given_up)
