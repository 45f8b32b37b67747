"""Puts ``[rank]`` before each line the ranks write, on the stream they wrote it to.

Guarantees
    * Whole lines: text of two ranks never mixes within a line. A line that stays unfinished for ``PARTIAL_S`` (a
      prompt, a progress mark) is shown as far as it goes; whoever writes next to that stream starts a new line.
    * A reader that is slow slows the ranks down; it never stops the launcher from handling signals.
"""

import contextlib
import os
import selectors
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

PARTIAL_S = 0.3
MAX_LINE_BYTES = 4 << 20
_COLOURS = (36, 33, 32, 35, 34, 31, 96, 93, 92, 95, 94, 91)


@dataclass(eq=False)
class _Source:
    """One stream of one rank: the read end of its pipe."""

    descriptor: int
    target: int
    prefix: bytes
    text: bytearray = field(default_factory=bytearray)
    touched: float = 0.0
    """Monotonic time of the last read."""


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
        self._open_line: dict[int, _Source] = {}  # target -> who has written an unfinished line there
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
            source = _Source(read_end, target, label.encode() + b" ")
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
            for key, _ in self._selector.select(PARTIAL_S if self._has_partial_lines() else None):
                self._read(key.data)
            self._show_partial_lines()
        for target in list(self._open_line):
            self._write(target, b"\n")
        self._selector.close()

    def _has_partial_lines(self) -> bool:
        return any(source.text for source in self._sources)

    def _read(self, source: _Source) -> None:
        try:
            piece = os.read(source.descriptor, 1 << 16)
        except BlockingIOError:
            return
        if not piece:
            self._end(source)
            return
        source.touched = time.monotonic()
        source.text += piece
        whole, newline, rest = source.text.rpartition(b"\n")
        if newline or len(rest) > MAX_LINE_BYTES:
            source.text = bytearray(rest) if newline else bytearray()
            self._show(source, bytes(whole + newline if newline else rest))

    def _end(self, source: _Source) -> None:
        self._selector.unregister(source.descriptor)
        os.close(source.descriptor)
        self._sources.remove(source)
        if source.text:
            self._show(source, bytes(source.text))

    def _show_partial_lines(self) -> None:
        now = time.monotonic()
        for source in self._sources:
            if source.text and now - source.touched >= PARTIAL_S:
                text, source.text = bytes(source.text), bytearray()
                self._show(source, text)

    def _show(self, source: _Source, text: bytes) -> None:
        """Writes ``text`` with a prefix before each line that begins in it."""
        owner = self._open_line.pop(source.target, None)
        continues = owner is source
        start = b"" if continues or owner is None else b"\n"
        lines = text.split(b"\n")
        ends_whole = not lines[-1]
        if ends_whole:
            lines.pop()
        else:
            self._open_line[source.target] = source
        parts = [line if continues and i == 0 else source.prefix + line for i, line in enumerate(lines)]
        self._write(source.target, start + b"\n".join(parts) + (b"\n" if ends_whole else b""))

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
