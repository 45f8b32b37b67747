"""Ranks that meet in a store in which others have met before, or tried to."""

import itertools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from intentpm.foundation.errors import TransportError, WaitTimeoutError
from intentpm.launch.roll_call import meet

distributed = pytest.importorskip("torch.distributed", reason="torch is not installed: pip install 'intentpm[torch]'")

pytestmark = pytest.mark.timeout(60)

Submit = Callable[..., "Future[str]"]


@pytest.fixture
def come():
    """``come(store, rank, size, timeout_s)``: what ``meet`` returns, in a thread."""
    with ThreadPoolExecutor(16) as threads:

        def submit(store: object, rank: int, size: int = 2, timeout_s: float = 20.0) -> "Future[str]":
            return threads.submit(meet, store, rank, size, timeout_s)

        yield submit


@pytest.fixture
def store() -> object:
    return distributed.HashStore()


def names_of(futures: "list[Future[str]]") -> set[str]:
    return {future.result(timeout=25) for future in futures}


def await_key(store: object, key: str, value: bytes | None = None) -> None:
    deadline = time.monotonic() + 20
    while not store.check([key]) or (value is not None and store.get(key) == value):
        assert time.monotonic() < deadline, f"nobody wrote {key}"
        time.sleep(0.001)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_all_ranks_get_one_name_and_another_the_next_time(store: object, come: Submit, size: int) -> None:
    names = []
    for _ in range(3):
        (name,) = names_of([come(store, rank, size) for rank in range(size)])
        names.append(name)
    assert len(set(names)) == 3


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_what_an_earlier_attempt_left_is_not_taken_for_this_one(store: object, come: Submit, order: list[int]) -> None:
    """Every order of arrival; each rank comes while what all wrote in the first attempt still stands there."""
    (before,) = names_of([come(store, rank, 3) for rank in range(3)])
    futures = []
    for rank in order:
        stale = store.get(f"hello/{rank}")
        futures.append(come(store, rank, 3))
        await_key(store, f"hello/{rank}", stale)
    (name,) = names_of(futures)
    assert name != before


def test_a_rank_that_gave_up_and_comes_again_meets_the_one_that_is_late(store: object, come: Submit) -> None:
    for _ in range(2):
        with pytest.raises(WaitTimeoutError, match=r"not all 2 ranks came within 0.05 s: rank 0 did not"):
            meet(store, 1, 2, 0.05)
    again = come(store, 1)
    assert len(names_of([again, come(store, 0)])) == 1


def test_rank_0_that_gave_up_and_comes_again_is_found(store: object, come: Submit) -> None:
    with pytest.raises(WaitTimeoutError, match="rank 1 did not"):
        meet(store, 0, 2, 0.05)
    assert len(names_of([come(store, 1), come(store, 0)])) == 1


@pytest.mark.parametrize(("before", "now"), [(3, 2), (2, 3)])
def test_an_attempt_with_another_number_of_ranks_is_passed_over(
    store: object, come: Submit, before: int, now: int
) -> None:
    names_of([come(store, rank, before) for rank in range(before)])
    assert len(names_of([come(store, rank, now) for rank in reversed(range(now))])) == 1


@pytest.mark.parametrize(("waiting", "missing"), [((0, 2), "ranks 1, 3"), ((1, 2), "ranks 0, 3")])
def test_missing_ranks_are_named(store: object, come: Submit, waiting: tuple[int, ...], missing: str) -> None:
    for future in [come(store, rank, 4, 0.3) for rank in waiting]:
        with pytest.raises(WaitTimeoutError, match=f"within 0.3 s: {missing} did not"):
            future.result(timeout=20)


def test_a_rank_that_is_missing_in_a_later_attempt_is_named(store: object, come: Submit) -> None:
    names_of([come(store, rank, 3) for rank in range(3)])
    for future in [come(store, rank, 3, 0.5) for rank in (0, 1)]:
        with pytest.raises(WaitTimeoutError, match="rank 2 did not"):
            future.result(timeout=20)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_second_process_of_a_waiting_rank_is_noticed(store: object, come: Submit, rank: int) -> None:
    first = come(store, rank, 3)
    await_key(store, f"hello/{rank}")
    second = come(store, rank, 3)
    others = [come(store, other, 3) for other in range(3) if other != rank]
    with pytest.raises(TransportError, match=f"another process has come as rank {rank}"):
        first.result(timeout=25)
    assert len(names_of([second, *others])) == 1
