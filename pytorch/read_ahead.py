"""ReadAhead: reads a loader some batches ahead of whoever uses them, in a thread or when these are taken (WhoReads).

Guarantees
    * Items come in the loader's order, each once. What the loader raises comes after the items read before it, but for
      a KeyboardInterrupt.
    * One thread is in the loader at a time: whoever finds ``_reading`` unset sets it, under ``_changed``.
    * Beyond what was taken there are at most as many items as the last ``take`` had room for, or one. The first item is
      read in the caller's thread: what a loader draws from torch's global random numbers to shuffle, it draws where a
      plain loop would.
    * After ``stop`` no further item is taken, and the thread ends as soon as the loader has returned the one it is at.
Assumptions
    * One thread takes items. The loader does not care which thread reads it.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from intentpm.foundation.errors import WaitTimeoutError

STOP_S = 30.0
READ_AT_ONCE = 2
"""By a ``take``: more than are used between two, so that room fills up, and few, so that none takes long."""


class ReadAhead:
    """Reads ``loader`` and passes each item through ``prepare``, which runs in the reading thread."""

    def __init__(self, loader: Iterable[Any], prepare: Callable[[Any], Any]) -> None:
        self._prepare = prepare
        self._changed = threading.Condition()
        self._ready: deque[Any] = deque()  # guarded by: _changed, as all below
        self._limit = 1
        self._reading = self._ended = self._stopped = False
        self._problem: BaseException | None = None
        self._items = iter(loader)
        self._read_next()
        self._thread = threading.Thread(target=self._run, name="intentpm-loader", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether nothing is left to be read; items may be left to be taken."""
        return self._ended

    def take(self, wait: bool, room: int, in_loop: bool) -> list[Any]:
        """All items read by now, in order; with ``wait`` at least one, as long as the loader takes to give it.

        room: for how many more there is, until the next call.
        in_loop: some are read here, and none by the thread until the next call.
        Returns [] with ``wait`` only at the end. Raises what the loader raised, then, once its items are taken.
        """
        with self._changed:
            self._limit = 0 if in_loop else max(1, room)
            needed = max(room, int(wait and not self._ready))
            self._changed.notify_all()
        if in_loop:
            for _ in range(min(READ_AT_ONCE, needed)):
                if not self._read_next():
                    break
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._ready or self._ended)
            taken = list(self._ready)
            self._ready.clear()
            self._changed.notify_all()
            if self._problem is not None and ((wait and not taken) or isinstance(self._problem, KeyboardInterrupt)):
                raise self._problem
            return taken

    def stop(self) -> None:
        """Ends the thread. Raises WaitTimeoutError when the loader does not return from the item that it reads."""
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join(STOP_S)
        if self._thread.is_alive():
            raise WaitTimeoutError(
                f"the loader did not return from reading one batch within {STOP_S:g} s after the end of the loop"
            )

    def _run(self) -> None:
        while self._wait_for_room():
            self._read_next()

    def _wait_for_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._is_over() or (not self._reading and len(self._ready) < self._limit))
            return not self._is_over()

    def _is_over(self) -> bool:
        return self._stopped or self._ended

    def _read_next(self) -> bool:
        """Reads an item unless another thread reads one, or none is to be read any more."""
        with self._changed:
            if self._reading or self._is_over():
                return False
            self._reading = True
        self._read_one()
        return True

    def _read_one(self) -> None:
        try:
            item = self._prepare(next(self._items))
        except BaseException as problem:
            with self._changed:
                self._reading = False
                self._ended = True
                self._problem = None if isinstance(problem, StopIteration) else problem
                self._changed.notify_all()
            return
        with self._changed:
            self._reading = False
            if not self._stopped:
                self._ready.append(item)
            self._changed.notify_all()
