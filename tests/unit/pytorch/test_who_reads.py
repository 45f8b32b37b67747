"""WhoReads finds out who reads a loader, the loop or a thread beside it; ReadAhead has either of them do it."""

import random
import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("torch")

from intentpm.torch.read_ahead import ReadAhead
from intentpm.torch.who_reads import COUNTED_BATCHES, KEEP_BATCHES, SETTLING_BATCHES, TRIES, WhoReads

TRIED = 2 * TRIES * (SETTLING_BATCHES + COUNTED_BATCHES)


class Loop:
    """Batches take ``thread_s`` or ``loop_s``, whoever reads, and ``spread`` at random of that more."""

    def __init__(self, thread_s: float, loop_s: float, spread: float = 0.0, thread_reads: float = 1.0) -> None:
        self.now, self.seconds, self.spread = 0.0, {False: thread_s, True: loop_s}, spread
        self.reads = {False: thread_reads, True: 1.0}
        self.draw = random.Random(1)
        self.who = WhoReads(lambda: self.now)
        self.who.began()
        self.who.next_batch()

    def run(self, batches: int) -> list[bool]:
        read = []
        for _ in range(batches):
            read.append(self.who.in_loop)
            self.now += self.seconds[self.who.in_loop] * (1 + self.spread * self.draw.random())
            self.who.read(self.draw.random() < self.reads[self.who.in_loop])
            self.who.next_batch()
        return read


@pytest.mark.parametrize(("loop_s", "chosen"), [(0.8, True), (0.9, True), (1.0, False), (1.2, False)])
def test_the_faster_one_reads_and_the_thread_where_they_are_alike(loop_s: float, chosen: bool) -> None:
    loop = Loop(1.0, loop_s, spread=0.05)
    assert sum(loop.run(TRIED)) == TRIED // 2, "both are tried, for equally long"
    assert loop.run(KEEP_BATCHES - 1) == [chosen] * (KEEP_BATCHES - 1)


def test_both_are_tried_again_later() -> None:
    loop = Loop(1.0, 0.5)
    loop.run(TRIED + KEEP_BATCHES)
    loop.seconds = {False: 0.5, True: 1.0}
    assert sum(loop.run(TRIED)) == TRIED // 2
    assert not any(loop.run(KEEP_BATCHES))


@pytest.mark.parametrize("disturbed", [False, True])
def test_a_disturbance_does_not_count(disturbed: bool) -> None:
    loop = Loop(1.0, 0.9 if disturbed else 1.1)
    loop.run(TRIED // 2)
    while loop.who.in_loop != disturbed:
        loop.run(1)
    loop.run(SETTLING_BATCHES + 1)
    loop.now += 1000.0
    loop.run(TRIED // 2)
    assert loop.who.in_loop == disturbed


def test_what_few_batches_bear_counts() -> None:
    loop = Loop(0.5, 0.9)
    for number in range(TRIED):
        loop.now += 5.0 * (not loop.who.in_loop and number % 8 == 0)
        loop.run(1)
    assert loop.who.in_loop


def test_batches_read_before_do_not_make_the_thread_fast() -> None:
    loop = Loop(0.7, 0.9, thread_reads=0.5)
    loop.run(TRIED)
    assert loop.who.in_loop


def test_the_first_batches_of_a_way_and_of_an_epoch_do_not_count() -> None:
    loop = Loop(1.0, 0.9)
    was, settling = loop.who.in_loop, SETTLING_BATCHES
    for number in range(2 * TRIED):
        if number % 100 == 50:
            loop.who.began()
            loop.who.next_batch()
            settling = SETTLING_BATCHES
        if loop.who.in_loop != was:
            was, settling = loop.who.in_loop, SETTLING_BATCHES
        loop.now += 100.0 * (loop.who.in_loop and settling > 0)
        settling -= 1
        loop.run(1)
    assert loop.who.in_loop


def test_time_between_two_epochs_is_no_batch_s() -> None:
    loop = Loop(1.0, 0.9)
    for _ in range(TRIED):
        loop.now += 100.0 * loop.who.in_loop
        loop.who.began()
        loop.who.next_batch()
        loop.run(2 * SETTLING_BATCHES)
    assert loop.who.in_loop


class Source:
    """Gives numbers after a pause at random; fails if two threads are in it at once."""

    def __init__(self, count: int, problem: BaseException | None = None) -> None:
        self.count, self.problem = count, problem
        self.readers: set[int] = set()
        self._inside = threading.Lock()

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            assert self._inside.acquire(blocking=False), "two threads read"
            self.readers.add(threading.get_ident())
            time.sleep(random.Random(number).choice((0.0, 0.0, 1e-3)))
            self._inside.release()
            yield number
        if self.problem is not None:
            raise self.problem


def take_all(reader: ReadAhead, room: int, in_loop: list[bool]) -> list[int]:
    """With pauses, so that the thread gets ahead; ``in_loop``: by turns."""
    items: list[int] = []
    while True:
        more = reader.take(True, room, in_loop[len(items) % len(in_loop)])
        if not more:
            return items
        items += more
        time.sleep(random.Random(len(items)).choice((0.0, 1e-4)))


@pytest.mark.parametrize("room", [-3, 0, 1, 5])
@pytest.mark.parametrize("in_loop", [[False], [True], [False, True], [True, True, False]])
def test_each_item_comes_once_in_order(room: int, in_loop: list[bool]) -> None:
    source = Source(200)
    reader = ReadAhead(source, lambda item: item)
    try:
        assert take_all(reader, room, in_loop) == list(range(200))
        assert reader.ended
        assert len(source.readers) == 2 - all(in_loop)
    finally:
        reader.stop()


@pytest.mark.parametrize("in_loop", [False, True])
def test_what_the_loader_raises_comes_after_its_items(in_loop: bool) -> None:
    reader = ReadAhead(Source(5, LookupError("no more")), lambda item: item)
    items: list[int] = []
    while len(items) < 5:
        items += reader.take(True, 3, in_loop)
    assert items == list(range(5))
    with pytest.raises(LookupError, match="no more"):
        reader.take(True, 3, in_loop)
    reader.stop()


def test_an_interrupt_of_the_loop_s_reading_comes_at_once() -> None:
    reader = ReadAhead(Source(2, KeyboardInterrupt()), lambda item: item)
    with pytest.raises(KeyboardInterrupt):
        reader.take(False, 2, True)
    reader.stop()


def test_no_more_than_there_is_room_for() -> None:
    source = Source(50)
    reader = ReadAhead(source, lambda item: item)
    assert reader.take(True, 0, True) == [0]
    assert reader.take(False, 0, True) == []
    assert reader.take(False, 1, True) == [1]
    assert reader.take(False, 9, True) == [2, 3], "so that no call takes long"
    time.sleep(0.05)
    assert reader.take(True, 0, True) == [4], "the thread rests"
    assert not reader.ended
    reader.stop()
