"""Puts ``[rank]`` before each line the ranks write, on the stream they wrote it to.

Guarantees
    * All that was written arrives, with a prefix before each line and after each carriage return. A line that was begun
      ``PARTIAL_S`` ago (a prompt, a progress bar that rewrites itself) is shown as far as it goes, and goes on where it
      was for as long as nobody else writes to that screen; whoever does starts a new line.
    * Shorter than that, whole lines: text of two ranks never mixes within a line, nor a character's bytes.
    * A reader that is slow slows the ranks down; it never stops the launcher from handling signals.
Assumptions
    * All state belongs to the pump's thread once it has started.
"""

import contextlib
import os
import re
import selectors
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

PARTIAL_S = 0.3
MAX_LINE_BYTES = 4 << 20
_COLOURS = (36, 33, 32, 35, 34, 31, 96, 93, 92, 95, 94, 91)
_LINES = re.compile(rb"[^\r\n]+|(?<![^\n])\n")
"""A line, or what a carriage return begins anew; the end of an empty line."""
_UNFINISHED_CHARACTER = re.compile(rb"(?:[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z")
"""At the end: UTF-8 that lacks its last bytes."""

Screen = tuple[int, int]
"""Device and inode: stdout and stderr that go to one terminal or pipe are one."""


@dataclass(eq=False)
class _Source:
    """One stream of one rank: the read end of its pipe."""

    descriptor: int
    target: int
    screen: Screen
    prefix: bytes
    text: bytearray = field(default_factory=bytearray)
    """Read and not shown yet."""
    since: float = 0.0
    """Monotonic time since which there is text."""
    last: bytes = b"\n"
    """The last byte that was shown: anything but a newline leaves its line unfinished."""

    def take(self, end: int) -> bytes:
        """The first ``end`` bytes of the text."""
        taken = bytes(self.text[:end])
        del self.text[:end]
        if taken:
            self.since = time.monotonic()
        return taken

    def whole_lines(self) -> bytes:
        """The text as far as it can be shown at once."""
        end = self.text.rfind(b"\n") + 1
        return self.take(len(self.text) if len(self.text) - end > MAX_LINE_BYTES else end)

    def part_of_line(self) -> bytes:
        """The text but for a character of which the last bytes are missing."""
        cut = _UNFINISHED_CHARACTER.search(self.text)
        part = self.take(cut.start() if cut else len(self.text))
        self.since = time.monotonic()
        return part


class OutputPump:
    """Copies the ranks' pipes to this process's streams on a thread of its own.

    ``on_broken`` is called (on that thread) once when nobody reads our output any more. ``streams``: the descriptors
    that stand for stdout and stderr.
    """

    def __init__(self, on_broken: Callable[[], None], streams: tuple[int, int] = (1, 2)) -> None:
        self._on_broken = on_broken
        self._streams = streams
        self._selector = selectors.DefaultSelector()
        self._sources: list[_Source] = []
        self._open_line: dict[Screen, _Source] = {}  # who has written an unfinished line there
        self._broken: set[int] = set()
        self._thread = threading.Thread(target=self._run, name="intentpm-output", daemon=True)

    def add_rank(self, rank: int, width: int) -> tuple[int, int]:
        """Returns the descriptors for the rank's stdout and stderr; the caller closes them after the start."""
        ends = []
        for target in self._streams:
            read_end, write_end = os.pipe()
            label = f"[{rank:{width}d}]"
            if os.isatty(target):
                label = f"\x1b[{_COLOURS[rank % len(_COLOURS)]}m{label}\x1b[0m"
            source = _Source(read_end, target, _screen_of(target), label.encode() + b" ")
            self._sources.append(source)
            os.set_blocking(read_end, False)
            self._selector.register(read_end, selectors.EVENT_READ, source)
            ends.append(write_end)
        return ends[0], ends[1]

    def start(self) -> None:
        self._thread.start()

    def finish(self, timeout_s: float | None) -> None:
        """Waits until everything was written, for at most ``timeout_s`` (None: as long as the reader needs)."""
        if self._thread.ident is None:
            self._thread.start()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while self._sources:
            for key, _ in self._selector.select(self._sleep_s()):
                self._read(key.data)
            self._show_partial_lines()
        for source in list(self._open_line.values()):
            self._write(source.target, b"\n")
        self._selector.close()

    def _sleep_s(self) -> float | None:
        due = [self._due(source) for source in self._sources if source.text]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _due(self, source: _Source) -> float:
        """When the text of ``source`` is shown although its line has not ended.

        Several ranks' progress bars take the screen from each other, a new line each time: the more, the less often.
        """
        if source.last == b"\n" or self._open_line.get(source.screen) is source:
            return source.since + PARTIAL_S
        bars = sum(other.screen == source.screen and other.last != b"\n" for other in self._sources)
        return source.since + PARTIAL_S * bars

    def _read(self, source: _Source) -> None:
        try:
            piece = os.read(source.descriptor, 1 << 16)
        except BlockingIOError:
            return
        if not piece:
            self._end(source)
            return
        if not source.text:
            source.since = time.monotonic()
        source.text += piece
        self._show(source, source.whole_lines())

    def _end(self, source: _Source) -> None:
        self._selector.unregister(source.descriptor)
        os.close(source.descriptor)
        self._sources.remove(source)
        self._show(source, source.take(len(source.text)))

    def _show_partial_lines(self) -> None:
        now = time.monotonic()
        for source in [source for source in self._sources if source.text and self._due(source) <= now]:
            # Where our reader is slow, the rest of the line may have come meanwhile.
            self._read(source)
            if source in self._sources:
                self._show(source, source.part_of_line())

    def _show(self, source: _Source, text: bytes) -> None:
        """Writes ``text`` with a prefix before each line that begins in it."""
        if not text:
            return
        owner = self._open_line.get(source.screen)
        start = b""
        if owner is not source:
            start = b"\n" if owner else b""
            text = _of_a_new_line(text, is_cut_off=source.last != b"\n")
            source.last = b"\n"
        if not text:
            return
        # With the byte before it, which decides whether the text begins a line, and which is taken off again.
        marked = _LINES.sub(source.prefix + rb"\g<0>", source.last + text)
        shown = marked[1 if source.last == b"\r" else len(source.prefix) + 1 :]
        source.last = text[-1:]
        self._open_line.pop(source.screen, None)
        if source.last != b"\n":
            self._open_line[source.screen] = source
        self._write(source.target, start + shown)

    def _write(self, target: int, data: bytes) -> None:
        view = memoryview(data)
        while view and target not in self._broken:
            try:
                view = view[os.write(target, view) :]
            except BlockingIOError:  # somebody made our stream non-blocking
                time.sleep(0.005)
            except OSError:
                self._broken.add(target)
                with contextlib.suppress(Exception):
                    self._on_broken()


def _of_a_new_line(text: bytes, is_cut_off: bool) -> bytes:
    """``text`` as it is shown at the left edge: nothing to return from there.

    is_cut_off: somebody has ended the line that it goes on with, so that its own end ends nothing more.
    """
    text = text.lstrip(b"\r")
    return text[1:] if is_cut_off and text.startswith(b"\n") else text


def _screen_of(target: int) -> Screen:
    try:
        status = os.fstat(target)
    except OSError:  # closed: writing to it will say so
        return (-1, target)
    return (status.st_dev, status.st_ino)
