"""How ranks meet in a key-value store that may hold keys of earlier attempts, of a job that was restarted for instance.

Nothing that ranks could count is the same on all of them: two agents of torchrun count restarts apart, a rank that
gave up has opened more worlds than one that comes late. So each rank writes a random number under its own key, over
whatever stood there; rank 0 calls the roll, which is all these numbers; each that finds its own number in the roll
answers to it; and when all have answered, rank 0 ends the call. A number of a process that is gone is never answered.
The roll's digest names the keys of everything that these ranks say to each other afterwards.

Guarantees
    * Ranks that return the same name have met in this very call; nobody else reads or writes keys below it.
    * Ends within ``timeout_s``, and names the ranks that are missing.
Assumptions
    * One process at a time is rank r. One that finds its number overwritten by another raises.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from intentpm.foundation.deadlines import wait_s
from intentpm.foundation.errors import TransportError, WaitTimeoutError
from intentpm.launch.agreement import name_ranks

_NUMBER_BYTES = 16
_MAX_PAUSE_S = 0.1


def meet(store: Any, rank: int, size: int, timeout_s: float, deadline: float | None = None) -> str:
    """The name of this meeting; the same on all ``size`` ranks. Collective.

    ``deadline`` (monotonic) is when ``timeout_s`` is over, if not in ``timeout_s`` from now.

    ``store`` has ``set``, ``check`` and ``multi_get`` as ``torch.distributed.Store`` has them.
    Raises WaitTimeoutError naming who did not come, TransportError when another process came as this rank.
    """
    call = _Call(store, rank, size)
    deadline = time.monotonic() + wait_s(timeout_s) if deadline is None else deadline
    wait_until(call.is_over, deadline, lambda: f"not all {size} ranks came within {timeout_s:g} s: {call.missing()}")
    return call.name


def wait_until(condition: Callable[[], bool], deadline: float, complaint: Callable[[], str]) -> None:
    """Raises WaitTimeoutError with ``complaint()`` at the (monotonic) deadline."""
    pause_s = 0.001
    while not condition():
        if time.monotonic() >= deadline:
            raise WaitTimeoutError(complaint())
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, _MAX_PAUSE_S)


class _Call:
    """One rank's part in the call."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.name = ""  # of the roll that this rank has called or answered to last
        self._store = store
        self._rank = rank
        self._size = size
        # With the size in it: numbers of an attempt with more or fewer ranks are none of ours.
        self._number = size.to_bytes(4, "big") + os.urandom(_NUMBER_BYTES - 4)
        self._hellos = [f"hello/{other}" for other in range(size)]
        store.set(self._hellos[rank], self._number)

    def is_over(self) -> bool:
        """Takes the next step; True when every rank has answered and rank 0 has said so."""
        if self._rank > 0:
            # First of all: rank 0 may be calling the roll of the next meeting already.
            if self.name and self._store.check([f"{self.name}/over"]):
                return True
            self._answer()
            return False
        self._call()
        if not self.name or not self._store.check(self._here(range(self._size))):
            return False
        self._store.set(f"{self.name}/over", b"")
        return True

    def missing(self) -> str:
        """Who did not come."""
        keys = self._here(range(self._size)) if self.name else self._hellos
        ranks = [rank for rank, key in enumerate(keys) if rank != self._rank and not self._store.check([key])]
        # All have left a number, now or in an earlier attempt, and rank 0 has called none with ours.
        return f"{name_ranks(ranks or [0])} did not"

    def _call(self) -> None:
        """Rank 0: calls the roll that is there, once all are, and again when one of them has changed."""
        if not self._store.check(self._hellos):
            return
        numbers = [bytes(number) for number in self._store.multi_get(self._hellos)]
        self._check_own(numbers[0])
        roll = b"".join(numbers)
        if all(number[:4] == self._number[:4] for number in numbers) and self._take_name_of(roll):
            self._store.set("roll", roll)

    def _answer(self) -> None:
        if not self._store.check(["roll"]):
            return
        roll, own = map(bytes, self._store.multi_get(["roll", self._hellos[self._rank]]))
        self._check_own(own)
        place = _NUMBER_BYTES * self._rank
        if roll[place : place + _NUMBER_BYTES] == self._number:
            self._take_name_of(roll)

    def _take_name_of(self, roll: bytes) -> bool:
        """Answers to ``roll``; False if that was done before."""
        name = hashlib.sha256(roll).hexdigest()[:32]
        if name == self.name:
            return False
        self.name = name
        self._store.set(*self._here([self._rank]), b"")
        return True

    def _here(self, ranks: Iterable[int]) -> list[str]:
        return [f"{self.name}/here/{rank}" for rank in ranks]

    def _check_own(self, number: bytes) -> None:
        if number != self._number:
            raise TransportError(
                f"another process has come as rank {self._rank} while this one waited for the others: a child process "
                "that inherited the variables of its rank, or a second job on the same MASTER_ADDR and MASTER_PORT?"
            )
