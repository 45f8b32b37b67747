"""One world's ranks at the rendezvous server: who is there, and the exchanges between them.

Processes are told apart by who they are, never by a count: a rank that gave up and comes again, or a second program
that a rank's shell starts after the first, finds the ranks that come with it, whatever happened before.

Guarantees
    * An exchange ends for every rank that waits for it: with everybody's payload, or at the first deadline, or as soon
      as a rank that has not contributed is known to be gone.
    * Rank 0 is answered last: when it has its answer, all other answers are on their way.
    * Until the first exchange has ended, a rank that left may take its place again. Then the meeting is closed: who
      comes now comes for the next one, but for ranks that have yet to hear that another was lost.
Assumptions
    * All of it belongs to the server's thread. ``dead`` is the server's, shared by its meetings.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from intentpm.foundation.deadlines import wait_s
from intentpm.foundation.losses import during_start
from intentpm.launch.agreement import name_ranks
from intentpm.launch.rendezvous import FAILED, RESULT, pack_failure, pack_list

Send = Callable[[Any, int, int, bytes], None]
"""Sends a member a frame: kind, sequence number, body."""


@dataclass
class _Exchange:
    """One allgather in progress."""

    payloads: dict[int, bytes] = field(default_factory=dict)
    deadline: float = float("inf")
    timeout_s: float = 0.0


class Meeting:
    """``members``: rank -> its connection, while it is there. ``is_closed``: its first exchange has ended."""

    def __init__(self, size: int, dead: dict[int, str], send: Send) -> None:
        self.size = size
        self.members: dict[int, Any] = {}
        self.is_closed = False
        self._has_lost = False
        self._dead = dead
        self._send = send
        self._gone: dict[int, str] = {}  # rank -> why it will not contribute
        self._exchanges: dict[int, _Exchange] = {}  # sequence -> in progress
        self._failed: dict[int, bytes] = {}  # sequence -> what late ranks are told

    def takes(self, rank: int) -> bool:
        """Whether ``rank``, that comes now, comes for this meeting."""
        return not self.is_closed or (self._has_lost and not self.has_met(rank))

    def has_met(self, rank: int) -> bool:
        """Whether ``rank`` is here, or was."""
        return rank in self.members or rank in self._gone

    def join(self, rank: int, member: Any) -> None:
        self.members[rank] = member
        self._gone.pop(rank, None)

    def leave(self, rank: int, why: str) -> None:
        del self.members[rank]
        self._gone[rank] = why
        self.settle()

    def contribute(self, rank: int, sequence: int, payload: bytes, timeout_s: float) -> None:
        if sequence in self._failed:
            self._send(self.members[rank], FAILED, sequence, self._failed[sequence])
            return
        exchange = self._exchanges.setdefault(sequence, _Exchange())
        exchange.payloads[rank] = payload
        deadline = time.monotonic() + wait_s(timeout_s)
        if deadline < exchange.deadline:
            exchange.deadline, exchange.timeout_s = deadline, timeout_s
        self._settle(sequence)

    def deadlines(self) -> list[float]:
        return [exchange.deadline for exchange in self._exchanges.values()]

    def expire(self, now: float) -> None:
        for sequence, exchange in list(self._exchanges.items()):
            if now >= exchange.deadline:
                self._fail(sequence, pack_failure("timeout", self._who_is_missing(exchange)))

    def settle(self) -> None:
        """To be called when a rank is gone."""
        for sequence in list(self._exchanges):
            self._settle(sequence)

    def _settle(self, sequence: int) -> None:
        """Ends the exchange if everybody came, or if somebody cannot come any more."""
        exchange = self._exchanges[sequence]
        missing = self._missing(exchange)
        if not missing:
            self._answer(sequence, RESULT, pack_list([exchange.payloads[rank] for rank in range(self.size)]))
            return
        for rank in missing:
            why = self._dead.get(rank) or self._gone.get(rank)
            if why:
                self._has_lost = True
                waiting = name_ranks(sorted(exchange.payloads))
                self._fail(sequence, pack_failure("lost", during_start(rank, why, waiting), rank))
                return

    def _missing(self, exchange: _Exchange) -> list[int]:
        return [rank for rank in range(self.size) if rank not in exchange.payloads]

    def _fail(self, sequence: int, failure: bytes) -> None:
        self._failed[sequence] = failure
        self._answer(sequence, FAILED, failure)

    def _answer(self, sequence: int, kind: int, body: bytes) -> None:
        self.is_closed = True
        # Rank 0 last: the server may live in its process, which may end as soon as it has its answer.
        for rank in sorted(self._exchanges.pop(sequence).payloads, reverse=True):
            if rank in self.members:
                self._send(self.members[rank], kind, sequence, body)

    def _who_is_missing(self, exchange: _Exchange) -> str:
        missing = self._missing(exchange)
        never = [rank for rank in missing if rank not in self.members]
        late = [rank for rank in missing if rank in self.members]
        parts = [f"{name_ranks(never)} never connected"] if never else []
        parts += [f"{name_ranks(late)} connected but did not come to this exchange"] if late else []
        return f"not all {self.size} ranks came within {exchange.timeout_s:g} s: {'; '.join(parts)}"
