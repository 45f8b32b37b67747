"""The worker threads of a process wait for each other; one of them then waits for the other processes."""

import threading
import time
from collections.abc import Callable

from intentpm.foundation.errors import Error

LOOK_S = 0.5
"""How often who waits looks whether those it waits for can still come."""


class ThreadBarrier:
    """``parties`` threads meet, the last calls ``when_all_here``, then all go on.

    Guarantees
        * What ``when_all_here`` raises, every thread raises; the next meeting is a new one.
        * Who waits for others raises what ``why_hopeless`` says, given for how many seconds, once it says something.
    """

    def __init__(self, parties: int, when_all_here: Callable[[], None], why_hopeless: Callable[[float], str]) -> None:
        self._parties = parties
        self._when_all_here = when_all_here
        self._why_hopeless = why_hopeless
        self._changed = threading.Condition()
        # Guarded by: _changed.
        self._here = 0
        self._meeting = 0
        self._failures: dict[int, BaseException] = {}  # of the last meeting

    def wait(self) -> None:
        with self._changed:
            meeting = self._meeting
            self._here += 1
            if self._here < self._parties:
                self._wait_for_the_last(meeting)
                return
        failure: BaseException | None = None
        try:
            self._when_all_here()
        except BaseException as error:
            failure = error
        self._end(meeting, failure)
        if failure is not None:
            raise failure

    def _wait_for_the_last(self, meeting: int) -> None:
        began = time.monotonic()
        try:
            while not self._changed.wait_for(lambda: self._meeting != meeting, LOOK_S):
                why = self._why_hopeless(time.monotonic() - began) if self._here < self._parties else ""
                if why:
                    raise Error(why)
        except BaseException:
            if self._meeting == meeting and self._here < self._parties:
                self._here -= 1  # who leaves is not here
            raise
        failure = self._failures.get(meeting)
        if failure is not None:
            raise failure

    def _end(self, meeting: int, failure: BaseException | None) -> None:
        with self._changed:
            self._here = 0
            self._meeting += 1
            self._failures = {} if failure is None else {meeting: failure}
            self._changed.notify_all()
