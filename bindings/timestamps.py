"""The numbers that calls are waited for by."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from intentpm.foundation.errors import Error
from intentpm.runtime.arguments import whole_number

HERE = -1
"""Of a call that no other rank was asked for: there is nothing to wait for."""
_KEPT = 256
"""Calls that nobody waited for yet are looked through when there are twice as many as were left, and this many."""


@dataclass(slots=True)
class Call:
    """A call that is under way: what it waits for, and what is to be done then."""

    futures: list[Any] = field(default_factory=list)
    finish: list[Callable[[], None]] = field(default_factory=list)

    def is_done(self) -> bool:
        return all(future.done() for future in self.futures)

    def end(self) -> None:
        for future in self.futures:
            future.wait()
        for step in self.finish:
            step()


class Timestamps:
    """The calls of one worker, numbered from 0 on. One thread at a time, as the worker."""

    def __init__(self) -> None:
        self._next = 0
        self._open: dict[int, Call] = {}
        self._sweep_at = _KEPT

    def number(self) -> int:
        """Of a call that has been waited for."""
        self._next += 1
        return self._next - 1

    def keep(self, call: Call) -> int:
        """The number to wait for it by."""
        if len(self._open) >= self._sweep_at:
            self._sweep()
        self._open[self._next] = call
        return self.number()

    def wait(self, timestamp: Any) -> None:
        """Raises Error for a number that was not given, and what the call raises."""
        number = whole_number(timestamp, "timestamp")
        if not HERE <= number < self._next:
            raise Error(f"timestamp {number}: no call of this worker returned it")
        call = self._open.pop(number, None)
        if call is not None:
            call.end()

    def wait_all(self) -> None:
        for number in list(self._open):
            self.wait(number)

    def _sweep(self) -> None:
        """Forgets calls that are done, as programs need not wait for every one."""
        for number in [number for number, call in self._open.items() if call.is_done()]:
            self.wait(number)
        self._sweep_at = max(_KEPT, 2 * len(self._open))
