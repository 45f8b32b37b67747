"""Calls that all ranks make together, and what becomes of one that a rank gives up.

A collective call is a few exchanges, and what the rank does between them. It is given up when a wait in it passes its
deadline, or when anything but an ``Error`` comes out of it (Ctrl-C, say): the other ranks still count on what this rank
has said.

    OPEN -all done, or an Error-> over
    OPEN -deadline, interrupt-> GIVEN_UP
    GIVEN_UP -the same call again-> OPEN       what was done is not done again, nor said again: it goes on where it
                                               stopped
    GIVEN_UP -another call-> GIVEN_UP          CollectiveMismatchError: says which call must be made first
    OPEN -withdraw-> WITHDRAWN                 this rank has undone its part, and says so in place of what it had said
    WITHDRAWN -any call-> over                 waits until all ranks have come to the call that was withdrawn. If they
                                               had come before they heard of it, it was made, with this rank

Assumption: one thread at a time (as for every collective call).
"""

import json
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from intentpm.foundation.errors import CollectiveMismatchError, Error, RankLost, WaitTimeoutError
from intentpm.runtime._native.engine import Engine

T = TypeVar("T")
Answers = list[dict[str, Any]]


class Teller(Protocol):
    """A ``going_on.GoingOn``."""

    def tell_thread(self) -> None: ...


class _Exchanged(list[bytes]):
    """The answer of an exchange, among what else a call remembers."""


class Call:
    """One collective call of this rank; a context manager. Made by ``Collectives.call``."""

    def __init__(self, collectives: "Collectives", name: str, what: str, identity: bytes) -> None:
        self.name = name
        self.what = what
        self.identity = (name, identity)
        self.ranks: list[int] = []
        """Those that have answered, in the order of the answers."""
        self.when_settled: Callable[[bool], None] | None = None
        """Of a withdrawn call: what to do once all have come."""
        self.undo: Callable[[], None] | None = None
        """Of a call with one exchange: undoes this rank's part."""
        self._owner = collectives
        self._engine = collectives.engine
        self._first = self._engine.entered()
        self._formed: int | None = self._engine.formed()
        self._attempts = 0
        self._done: list[Any] = []
        self._at = 0
        self._timeout_s: float | None = None
        self._began_ns: int | None = None

    @property
    def resumed(self) -> bool:
        """This call was given up before."""
        return self._attempts > 1

    def attempt(self, timeout_s: float | None) -> Self:
        """Begins, or goes on where it was given up; ``timeout_s`` is for all waits of this attempt."""
        self._attempts += 1
        self._at = 0
        self._timeout_s, self._began_ns = timeout_s, None
        return self

    def once(self, make: Callable[[], T]) -> T:
        """What ``make()`` returned in the first attempt that came this far."""
        if self._at == len(self._done):
            self._done.append(make())
        self._at += 1
        done: T = self._done[self._at - 1]
        return done

    def exchange(self, payload: bytes) -> list[bytes]:
        """The payloads of all ranks, in rank order. An attempt that finds its payload sent waits for the answer
        alone."""
        if self._at == len(self._done):
            self._done.append(_Exchanged(self._exchange(payload)))
            self.ranks = self._engine.answered()
        self._at += 1
        answers: list[bytes] = self._done[self._at - 1]
        return answers

    def remaining_s(self) -> float | None:
        """Of this attempt's time; None: no limit."""
        if self._began_ns is None:
            self._began_ns = self._engine.now_ns()
            return self._timeout_s
        if self._timeout_s is None:
            return None
        return max(0.0, self._timeout_s - (self._engine.now_ns() - self._began_ns) * 1e-9)

    def agree(self, arguments: dict[str, str], **said: Any) -> Answers:
        """Tells all ranks the ``arguments``, which must be the same on all, and what is ``said``; returns what all
        sent.

        Raises CollectiveMismatchError, on every rank, where the call or its arguments differ.
        """
        answers = self.exchange(self._payload(arguments, **said))
        return self._agreed(answers)

    def gather(self, payload: bytes) -> list[bytes]:
        """The payloads of all ranks, in rank order; all have made this call. Raises CollectiveMismatchError."""
        answers = self.exchange(json.dumps({"call": self.name}).encode() + b"\n" + payload)
        self._check_same_call(answers)
        return [answer.split(b"\n", 1)[1] for answer in answers]

    def deliver_news(self) -> None:
        """What is news on any rank when all have come here shows in every copy."""
        self.once(lambda: self._engine.flush_news(self.remaining_s()))
        self.agree({})
        # A copy did not take news that came while a record of it was under way: their answers bring it.
        self.alone(lambda: self._engine.settle_records(self.remaining_s()))

    def alone(self, wait: Callable[[], None]) -> None:
        """What is left to do when the other ranks may have ended this call: they do not make it again when a rank is
        lost meanwhile, so this one must not either. Its worker's next call raises RankLost."""
        with suppress(RankLost):
            wait()

    def _agreed(self, answers: list[bytes]) -> Answers:
        self._check_same_call(answers)
        read = {answer: json.loads(answer) for answer in set(answers)}  # mostly one, or a few
        if not any(call.get("problem") for call in read.values()):
            for key in read[answers[0]]["arguments"]:
                if len({call["arguments"][key] for call in read.values()}) > 1:
                    self._differ(key, [read[answer]["arguments"][key] for answer in answers])
        return [read[answer] for answer in answers]

    def _check_same_call(self, answers: list[bytes]) -> None:
        """Raises CollectiveMismatchError where a rank made another call; each payload's first line is JSON that names
        it."""
        heads = [answer.split(b"\n", 1)[0] for answer in answers]
        called = {head: json.loads(head)["call"] for head in set(heads)}
        if set(called.values()) == {self.name}:
            return
        for rank, head in zip(self.ranks, heads, strict=True):
            other = called[head]
            if other != self.name:
                raise CollectiveMismatchError(
                    f"rank {self._owner.rank} called {self.name}() while rank {rank} called {other}(): "
                    "every rank must make the same collective calls in the same order"
                )

    def withdraw(self, when_settled: Callable[[bool], None], problem: Any) -> None:
        """Of a call with one exchange: says ``problem`` in place of what it said, or would have. Does not wait for
        anybody.

        when_settled: called once all ranks have come. True: they had come before they heard of it, and agreed.
        """
        self.when_settled = when_settled
        self._engine.amend(self._payload({}, problem=problem), self._first)

    def settle(self, timeout_s: float | None) -> bool:
        """Of a withdrawn call: waits until all ranks have come; returns what ``when_settled`` was given."""
        self.attempt(timeout_s)
        self._at = next((at for at, done in enumerate(self._done) if isinstance(done, _Exchanged)), len(self._done))
        answers = self.exchange(b"")
        try:
            made = not any(answer.get("problem") for answer in self._agreed(answers))
        except CollectiveMismatchError:
            made = False
        assert self.when_settled is not None
        self.when_settled(made)
        self.when_settled = None
        return made

    def renew(self) -> None:
        """It has been made by all, and is still to be ended here, however often ranks have formed since."""
        self._formed = None

    def has_begun(self) -> bool:
        """The other ranks have heard of this call, or will."""
        return self._engine.entered() > self._first

    def _has_contributed(self) -> bool:
        """To one exchange more than it has the answers of."""
        answered = sum(isinstance(done, _Exchanged) for done in self._done)
        return self._engine.entered() > self._first + answered

    def _exchange(self, payload: bytes) -> list[bytes]:
        if self._has_contributed():
            return self._engine.rejoin(self.what, self.remaining_s(), self._formed)
        return self._engine.exchange(payload, self.what, self.remaining_s(), self._formed)

    def _payload(self, arguments: dict[str, str], **said: Any) -> bytes:
        return json.dumps({"call": self.name, "arguments": arguments, **said}).encode() + b"\n"

    def _differ(self, key: str, values: list[str]) -> None:
        """Raises CollectiveMismatchError: ``values`` (N) of an argument are not all the same."""
        mine = values[self.ranks.index(self._owner.rank)]
        rank, other = next((rank, other) for rank, other in zip(self.ranks, values, strict=True) if other != mine)
        raise CollectiveMismatchError(
            f"{self.name}: {key} is {mine} on rank {self._owner.rank} but {other} on rank {rank}: "
            "pass the same arguments on every rank"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_open = problem is not None and (isinstance(problem, WaitTimeoutError) or not isinstance(problem, Error))
        self._owner.given_up = self if is_open and self.has_begun() else None
        if isinstance(problem, RankLost):
            self._owner.tell()  # raises it with all that the calling thread has not been told of


class Collectives:
    """The collective calls of this rank, one at a time."""

    def __init__(self, engine: Engine, rank: int, teller: Callable[[], "Teller | None"]) -> None:
        """teller: returns who tells the calling thread's workers of ranks that were lost; None: that ends the job."""
        self.engine = engine
        self._teller = teller
        self.rank = rank
        self.given_up: Call | None = None

    def call(self, name: str, what: str, identity: bytes, timeout_s: float | None = None) -> Call:
        """A new call, or the one that was given up if this is it again.

        name: of the method, the same on every rank. what: the call as people write it. identity: what else makes a
        call the same.
        Raises CollectiveMismatchError when another call was given up; as ``barrier`` while it waits for one withdrawn.
        """
        self.tell()
        last = self.given_up
        if last is not None and last.when_settled is not None:
            was_made = last.settle(timeout_s)
            self.given_up = None
            if not was_made or last.identity != (name, identity):
                last = None
        if last is None:
            return Call(self, name, what, identity).attempt(timeout_s)
        if last.identity != (name, identity):
            raise CollectiveMismatchError(
                f"rank {self.rank} called {what}, but has given up {last.what}, to which the other ranks wait "
                f"for it or will "
                f"come: call that again first, with the same arguments, then {what}"
            )
        return last.attempt(timeout_s)

    def forget(self, answered: bool) -> None:
        """Ranks form anew without some that were lost: a call that was given up has failed, and is over.

        answered: but all have come to its exchange, or to that of it which it was in.
        """
        call = self.given_up
        if call is not None and call.undo is not None and answered:
            call.renew()
        elif call is not None:
            self.given_up = None
            if call.undo is not None:
                call.undo()

    def tell(self) -> None:
        """Raises what has ended the job, and RankLost where the calling thread has not been told of one."""
        self.engine.check()
        teller = self._teller()
        if teller is not None:
            teller.tell_thread()
