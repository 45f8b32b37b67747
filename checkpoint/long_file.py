"""A new file that is written in long pieces: past the page cache, where the file system has a way for that (O_DIRECT).

Through the cache every byte is copied once more, and written by threads of the kernel, which take cores from those
who compute: with two cores, training that goes on meanwhile notices. Only whole blocks, at places that are multiples of
a block, from memory that lies so, can go past it; the two ends of a piece, and short pieces, go through it.

One thread at a time.
"""

import errno
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intentpm.checkpoint.pieces import write_at

Bytes = npt.NDArray[np.uint8]

BLOCK_BYTES = 4096
"""No disk asks for longer ones."""
SHORT_BYTES = 1 << 20
"""What is shorter would wait for the disk, of which the cache knows better when to write."""
LONG_BYTES = 16 << 20
"""What is longer is not copied, to lie as its place in the file does."""
HELD_BACK_BYTES = 256 << 20
"""Of what goes through the cache, at most: else it takes up all, and the disk is waited for at the end, for minutes."""


class LongFile:
    """Made anew; to be closed."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._direct = _open_past_cache(path)
        self._memory: Bytes = np.empty(0, np.uint8)
        self._held_back = 0

    def write(self, rows: npt.NDArray[Any], offset: int) -> memoryview:
        """At ``offset``, a multiple of what a number of theirs takes. Returns the bytes. Raises OSError."""
        if self._direct < 0 or not SHORT_BYTES <= rows.nbytes <= LONG_BYTES:
            data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
            write_at(self._fd, data, offset)
            self._held_back += len(data)
            if self._held_back >= HELD_BACK_BYTES:
                self.sync()
            return data
        data = self._placed(rows, offset).data
        first, end = -offset % BLOCK_BYTES, len(data) - (offset + len(data)) % BLOCK_BYTES
        write_at(self._fd, data[:first], offset)
        self._write_blocks(data[first:end], offset + first)
        write_at(self._fd, data[end:], offset + end)
        return data

    def sync(self) -> None:
        """All is on disk when it returns. Raises OSError."""
        os.fsync(self._fd)
        self._held_back = 0

    def close(self) -> None:
        """Closing again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._stop_direct()

    def _placed(self, rows: npt.NDArray[Any], offset: int) -> Bytes:
        """A copy that lies to blocks as ``offset`` does; it is good until the next."""
        first = offset % BLOCK_BYTES
        if len(self._memory) < first + rows.nbytes:
            self._memory = np.frombuffer(mmap.mmap(-1, rows.nbytes + 2 * BLOCK_BYTES), np.uint8)
        placed = self._memory[first : first + rows.nbytes]
        np.copyto(placed.view(rows.dtype).reshape(rows.shape), rows)
        return placed

    def _write_blocks(self, data: memoryview, offset: int) -> None:
        at = 0
        while at < len(data) and self._direct >= 0:
            try:
                at += os.pwrite(self._direct, data[at:], offset + at)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._stop_direct()  # its blocks are longer, say
            else:
                if at % BLOCK_BYTES:
                    self._stop_direct()
        write_at(self._fd, data[at:], offset + at)

    def _stop_direct(self) -> None:
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1


def _open_past_cache(path: Path) -> int:
    """-1: the system, or the file system, has no such way, or nothing behind the cache."""
    if not hasattr(os, "O_DIRECT") or _is_memory(path):
        return -1
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1


def _is_memory(path: Path) -> bool:
    """It lies in a tmpfs: what is written stays in the cache, whatever way it came."""
    device = path.stat().st_dev
    mounted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    kinds = [line.partition(" - ")[2].split()[0] for line in mounts if line.split()[2] == mounted]
    return kinds[:1] == ["tmpfs"]
