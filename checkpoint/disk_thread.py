"""What is done on a disk, by a thread of its own: of a disk that does not answer is told, where all would wait for it.

A thread that the system holds in a read or write of a disk that hangs (a server of files that is gone, say) cannot be
woken, by nothing. So whoever must not hang has another do it, and gives that up when nothing comes of it for so long;
the other ends with the process, or when the disk answers again, and touches nothing by then but its file.

Guarantee: ``do`` returns or raises within its limit after the last sign of life.
One thread at a time calls ``do``.
"""

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from intentpm.foundation.errors import CheckpointError

Result = TypeVar("Result")
LOOK_S = 0.5
"""Time counts in looks of this thread: where all of the process was stopped, the disk had none either."""


class Errand:
    """Something to be done, and what came of it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.is_over = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:
            self.error = error
        self.is_over.set()


class DiskThread:
    """The thread; use it in a with block. ``limit_s``: None waits as long as it takes."""

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._errands: queue.SimpleQueue[Errand | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._signs = 0
        """Of life; written by the thread alone."""
        self._stalled: str | None = None

    def do(self, what: str, function: Callable[[], Result]) -> Result:
        """``function()``, which may call ``live``. Raises what it raises; CheckpointError: nothing came of it."""
        if self._stalled is not None:
            raise CheckpointError(self._stalled)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="intentpm-disk", daemon=True)
            self._thread.start()
        errand = Errand(function)
        self._errands.put(errand)
        try:
            self._wait(what, errand)
        except BaseException as error:  # a signal, too
            self._stalled = str(error) or repr(error)
            raise
        if errand.error is not None:
            raise errand.error
        result: Result = errand.result
        return result

    def do_last(self, function: Callable[[], object]) -> None:
        """As ``do``, of what is to be done in any case, by nobody else: where the thread hangs, when that ends."""
        if self._stalled is None:
            self.do("", function)
        else:
            self._errands.put(Errand(function))

    def live(self) -> None:
        """A sign of life, of something that takes long."""
        self._signs += 1

    def _wait(self, what: str, errand: Errand) -> None:
        waited_s, signs = 0.0, self._signs
        while not errand.is_over.wait(LOOK_S if self._limit_s is None else min(LOOK_S, self._limit_s)):
            waited_s += LOOK_S
            if self._signs != signs:
                waited_s, signs = 0.0, self._signs
            if self._limit_s is not None and waited_s >= self._limit_s:
                raise CheckpointError(
                    f"{what}: nothing came of it for {self._limit_s:g} s: the disk, or who serves it, does not answer"
                )

    def _run(self) -> None:
        while (errand := self._errands.get()) is not None:
            errand.run()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for the thread, unless that may take long."""
        self._errands.put(None)
        if self._thread is not None and self._stalled is None:
            self._thread.join()
