"""Files that are written past the page cache, where the file system can: what is in them, whatever it refuses."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intentpm.checkpoint import long_file
from intentpm.checkpoint.long_file import BLOCK_BYTES, LongFile


@pytest.fixture(autouse=True)
def short_is_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_file, "SHORT_BYTES", BLOCK_BYTES)


@pytest.fixture(params=["disk", "memory"])
def folder(request: Any, tmp_path: Path) -> Iterator[Path]:
    """On a file system that has a way past the cache, most likely, and on one that has or has none."""
    if request.param == "disk":
        yield tmp_path
        return
    path = Path("/dev/shm", f"intentpm-test-{os.getpid()}")
    path.mkdir()
    yield path
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def drawn_pieces(seed: int) -> list[np.ndarray]:
    """Rows of many lengths: contiguous, and fields of longer rows."""
    draw = np.random.default_rng(seed)
    pieces: list[np.ndarray] = []
    for _ in range(30):
        rows = draw.integers(0, 1 << 31, size=(int(draw.integers(1, 4000)), 5), dtype=np.int32)
        pieces.append(rows if draw.random() < 0.5 else rows[:, 1:4])
    return pieces


def write_all(path: Path, pieces: list[np.ndarray], start: int = 64) -> None:
    """One after the other; the file begins with ``start`` bytes that nobody writes."""
    file, at = LongFile(path), start
    try:
        for rows in pieces:
            assert bytes(file.write(rows, at)) == rows.tobytes()
            at += rows.nbytes
        file.sync()
    finally:
        file.close()
        file.close()


def expected(pieces: list[np.ndarray], start: int = 64) -> bytes:
    return bytes(start) + b"".join(rows.tobytes() for rows in pieces)


@pytest.mark.parametrize("seed", range(5))
def test_a_file_has_what_was_written(folder: Path, seed: int) -> None:
    pieces = drawn_pieces(seed)
    write_all(folder / "file", pieces, start=8 * seed)
    assert (folder / "file").read_bytes() == expected(pieces, start=8 * seed)


def test_two_tensors_that_grow_in_turn(folder: Path) -> None:
    first, second = np.arange(100_000, dtype=np.int64), np.arange(100_000, dtype=np.int32)
    file = LongFile(folder / "file")
    for at in range(0, 100_000, 9_999):
        file.write(first[at : at + 9_999], 8 * at)
        file.write(second[at : at + 9_999], first.nbytes + 4 * at)
    file.close()
    assert (folder / "file").read_bytes() == first.tobytes() + second.tobytes()


def direct_writes(monkeypatch: pytest.MonkeyPatch, change: Any) -> list[int]:
    """``change(fd, data, offset, write)`` stands in for writes past the cache; returns the lengths asked for."""
    lengths: list[int] = []
    descriptors: set[int] = set()
    pwrite, opened = os.pwrite, long_file._open_past_cache

    def open_past_cache(path: Path) -> int:
        found = opened(path)
        if found < 0:
            pytest.skip("this file system has no way past the page cache")
        descriptors.add(found)
        return found

    def write(fd: int, data: Any, offset: int) -> int:
        if fd not in descriptors:
            return pwrite(fd, data, offset)
        assert offset % BLOCK_BYTES == len(data) % BLOCK_BYTES == 0
        lengths.append(len(data))
        return change(fd, data, offset, pwrite)

    monkeypatch.setattr(long_file, "_open_past_cache", open_past_cache)
    monkeypatch.setattr(os, "pwrite", write)
    return lengths


def refused(fd: int, data: Any, offset: int, write: Any) -> int:
    raise OSError(errno.EINVAL, "blocks are longer here")


def cut_short(fd: int, data: Any, offset: int, write: Any) -> int:
    """As where the disk is nearly full: not even a whole block."""
    write(fd, data, offset)
    return max(1, len(data) // 2 - 7)


def in_blocks(fd: int, data: Any, offset: int, write: Any) -> int:
    return write(fd, data[:BLOCK_BYTES], offset)


def whole(fd: int, data: Any, offset: int, write: Any) -> int:
    return write(fd, data, offset)


@pytest.mark.parametrize(("change", "times"), [(refused, 1), (cut_short, 1), (in_blocks, 100), (whole, 20)])
def test_what_the_disk_refuses_goes_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, times: int
) -> None:
    """times: how often it is tried past it, at least; where that fails, once."""
    lengths, pieces = direct_writes(monkeypatch, change), drawn_pieces(7)
    write_all(tmp_path / "file", pieces)
    assert (tmp_path / "file").read_bytes() == expected(pieces)
    assert len(lengths) == 1 if times == 1 else len(lengths) >= times


def test_other_errors_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: Any, offset: int, write: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    direct_writes(monkeypatch, full)
    with pytest.raises(OSError, match="No space left"):
        write_all(tmp_path / "file", drawn_pieces(1))


def test_an_existing_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        LongFile(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"mine"
