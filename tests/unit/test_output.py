"""What the output of ranks looks like on one screen, and when it shows."""

import os
import select
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from intentpm.launch.output import OutputPump

pytestmark = pytest.mark.timeout(60)


class Screen:
    """A pump whose streams are one pipe (or two), and the ranks' ends of it."""

    def __init__(self, ranks: int, separate: bool = False) -> None:
        self.reader, writer = os.pipe()
        self.error_reader, error_writer = os.pipe() if separate else (None, os.dup(writer))
        self._writers = [writer, error_writer]
        self.pump = OutputPump(lambda: None, (writer, error_writer))
        self.ranks = [self.pump.add_rank(rank, 1) for rank in range(ranks)]
        self.pump.start()

    def write(self, rank: int, data: bytes, stream: int = 0) -> None:
        os.write(self.ranks[rank][stream], data)

    def read(self, wanted: bytes, timeout_s: float = 20.0) -> bytes:
        """What shows until it ends with ``wanted``."""
        shown = b""
        deadline = time.monotonic() + timeout_s
        while not shown.endswith(wanted):
            assert select.select([self.reader], [], [], max(0.0, deadline - time.monotonic()))[0], shown
            shown += os.read(self.reader, 1 << 16)
        return shown

    def end(self) -> bytes:
        """What shows until all ranks have ended."""
        rest: list[bytes] = []
        thread = threading.Thread(target=lambda: rest.extend(iter(lambda: os.read(self.reader, 1 << 16), b"")))
        thread.start()
        for ends in self.ranks:
            for descriptor in ends:
                os.close(descriptor)
        self.ranks = []
        self.pump.finish(20)
        for writer in self._writers:
            os.close(writer)
        self._writers = []
        thread.join(20)
        return b"".join(rest)

    def close(self) -> None:
        if self._writers:
            self.end()
        for reader in (self.reader, self.error_reader):
            if reader is not None:
                os.close(reader)


@pytest.fixture
def screen() -> Iterator[Callable[..., Screen]]:
    screens: list[Screen] = []

    def make(ranks: int = 1, **options: bool) -> Screen:
        screens.append(Screen(ranks, **options))
        return screens[-1]

    yield make
    for made in screens:
        made.close()


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"a\nb\n", b"[0] a\n[0] b\n"),
        (b"\n\na\n\n", b"[0] \n[0] \n[0] a\n[0] \n"),
        (b"dos\r\nlines\r\n", b"[0] dos\r\n[0] lines\r\n"),
        (b"\r 1%\r 2%\n", b"[0]  1%\r[0]  2%\n"),
        (b" 1%\r 2%\r\n", b"[0]  1%\r[0]  2%\r\n"),
        (b"a\r\r\rb\n", b"[0] a\r\r\r[0] b\n"),
        (b"no newline", b"[0] no newline\n"),
        (bytes(range(14, 256)) + b"\n", b"[0] " + bytes(range(14, 256)) + b"\n"),
        ("né ".encode()[:2], b"[0] n\xc3\n"),  # cut short by the end of its rank
    ],
)
def test_lines(screen, written: bytes, shown: bytes) -> None:
    page = screen()
    page.write(0, written)
    assert page.end() == shown


@pytest.mark.parametrize("written", [b"a\nb\n", b"\r 1%\r 2%\r\n", b" 1%\r\n\nx\r\n", "é\n€ 🙂\n".encode()])
def test_lines_that_arrive_byte_by_byte_and_long_apart_are_the_same(screen, written: bytes) -> None:
    at_once, slowly = screen(), screen()
    at_once.write(0, written)
    for index in range(len(written)):
        slowly.write(0, written[index : index + 1])
        time.sleep(0.35)
    assert slowly.end() == at_once.end()


def test_growing_line_is_shown_while_it_grows(screen) -> None:
    page = screen()
    stop = threading.Event()

    def grow() -> None:
        while not stop.wait(0.05):
            page.write(0, b".")

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        assert page.read(b".").startswith(b"[0] .")
        assert page.read(b".").strip(b".") == b"", "it goes on, without a second prefix"
    finally:
        stop.set()
        thread.join()


def test_progress_bar_is_shown_while_it_runs(screen) -> None:
    page = screen()
    for step in (b"\r 0%|  ", b"\r50%|# ", b"\r99%|##"):
        page.write(0, step, 1)
        shown = page.read(step.strip(b"\r"))
        assert shown in (b"[0] " + step[1:], b"\r[0] " + step[1:])


def test_bars_of_two_ranks_take_a_line_each(screen) -> None:
    page = screen(2)
    page.write(0, b"\r10%")
    page.read(b"10%")
    page.write(1, b"\r20%")
    assert page.read(b"20%") == b"\n[1] 20%"
    page.write(0, b"\r30%")
    assert page.read(b"30%") == b"\n[0] 30%"
    page.write(0, b"\r40%")
    assert page.read(b"40%") == b"\r[0] 40%"


def test_a_line_that_was_cut_off_ends_without_an_empty_one(screen) -> None:
    page = screen(2)
    page.write(0, b"\r99%")
    page.read(b"99%")
    page.write(1, b"hello\n")
    assert page.read(b"hello\n") == b"\n[1] hello\n"
    page.write(0, b"\n")
    page.write(0, b"next\n")
    assert page.end() == b"[0] next\n"


def test_stdout_and_stderr_on_one_screen_do_not_share_a_line(screen) -> None:
    page = screen()
    page.write(0, b"\r50%", 1)
    page.read(b"50%")
    page.write(0, b"epoch 1\n", 0)
    assert page.read(b"epoch 1\n") == b"\n[0] epoch 1\n"


def test_stdout_and_stderr_apart_do_not_disturb_each_other(screen) -> None:
    page = screen(2, separate=True)
    page.write(0, b"50%")
    page.read(b"50%")
    page.write(1, b"warning\n", 1)
    assert os.read(page.error_reader, 100) == b"[1] warning\n"
    page.write(0, b" done\n")
    assert page.end() == b" done\n"


def test_bytes_of_a_character_stay_together(screen) -> None:
    page = screen(2)
    euro = "€".encode()
    page.write(0, b"5 " + euro[:2])
    assert page.read(b"5 ") == b"[0] 5 "
    page.write(1, b"hello\n")
    page.read(b"hello\n")
    page.write(0, euro[2:] + b"\n")
    assert page.end() == b"[0] " + euro + b"\n"


def test_very_long_line_without_a_newline_arrives_whole(screen) -> None:
    page = screen()
    page.write(0, b"x")
    page.read(b"x")
    received: list[bytes] = []
    size = 9 << 20

    def fill() -> None:
        for _ in range(size >> 16):
            page.write(0, b"y" * (1 << 16))

    thread = threading.Thread(target=fill)
    thread.start()
    while sum(map(len, received)) < size:
        received.append(os.read(page.reader, 1 << 20))
    thread.join()
    assert b"".join(received) == b"y" * size
    assert page.end() == b"\n"
