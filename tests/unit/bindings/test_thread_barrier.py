"""The barrier of a process's worker threads."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from intentpm.adapm import thread_barrier
from intentpm.adapm.thread_barrier import ThreadBarrier
from intentpm.foundation.errors import Error

pytestmark = pytest.mark.timeout(30)


def together(parties: int, barrier: ThreadBarrier) -> list[BaseException | None]:
    with ThreadPoolExecutor(parties) as pool:
        return [future.exception(20) for future in [pool.submit(barrier.wait) for _ in range(parties)]]


def test_nobody_goes_on_before_all_are_here() -> None:
    calls: list[int] = []
    here: list[int] = []
    barrier = ThreadBarrier(4, lambda: calls.append(len(here)), lambda waited_s: "")

    def thread(number: int) -> None:
        for meeting in range(50):
            here.append(number)
            barrier.wait()
            assert len(calls) == meeting + 1
            assert len(here) >= 4 * (meeting + 1)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(thread, number) for number in range(4)]:
            future.result(20)
    assert calls == [4 * (meeting + 1) for meeting in range(50)]


def test_a_failure_is_everybodys_and_the_next_meeting_is_new() -> None:
    outcomes = iter([KeyError("lost"), None])

    def when_all_here() -> None:
        outcome = next(outcomes)
        if outcome is not None:
            raise outcome

    barrier = ThreadBarrier(3, when_all_here, lambda waited_s: "")
    assert [type(error) for error in together(3, barrier)] == [KeyError] * 3
    assert together(3, barrier) == [None] * 3


def test_who_waits_for_a_thread_that_has_ended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_barrier, "LOOK_S", 0.01)
    waits: list[float] = []

    def why_hopeless(waited_s: float) -> str:
        waits.append(waited_s)
        return "worker 1 ended" if waited_s > 0.1 else ""

    barrier = ThreadBarrier(2, lambda: None, why_hopeless)
    with pytest.raises(Error, match="worker 1 ended"):
        barrier.wait()
    assert len(waits) > 1
    assert together(2, barrier) == [None] * 2, "who gave up is not counted any more"


def test_while_the_processes_meet_nobody_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_barrier, "LOOK_S", 0.01)
    meets = threading.Event()

    def when_all_here() -> None:
        meets.set()
        time.sleep(0.3)

    barrier = ThreadBarrier(2, when_all_here, lambda waited_s: "hopeless" if meets.is_set() else "")
    assert together(2, barrier) == [None, None]
