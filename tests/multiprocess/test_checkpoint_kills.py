"""A save that is killed at any write, fsync, rename or removal leaves the checkpoint before it, or the one it made."""

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import intentpm
import intentpm.checkpoint

NEEDS_FSSPEC = pytest.mark.skipif(importlib.util.find_spec("fsspec") is None, reason="fsspec is not installed")
pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

SAVES = """
import os, signal, sys, threading
import intentpm
from intentpm.checkpoint import long_file
from intentpm.testing import run_ranks

long_file.SHORT_BYTES = long_file.BLOCK_BYTES
folder, last = sys.argv[1], int(sys.argv[2])
calls, lock = 0, threading.Lock()

def counted(function, half=None):
    def wrapper(*arguments, **options):
        global calls
        with lock:
            calls += 1
            if calls == last:
                if half:
                    half(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return wrapper

def half_of_it(fd, data, offset, write=os.pwrite):
    half = len(data) // 2
    write(fd, data[:half - half % 4096 if len(data) % 4096 == 0 else half], offset)  # past the cache: whole blocks

def half_of_an_object(fs, path, contents, **options):
    fs_write(fs, path, contents[:len(contents) // 2], **options)

def half_of_a_file(fs, file, path):
    with open(file, "rb") as whole:
        half_of_an_object(fs, path, whole.read())

def count_from_here():
    if "://" not in folder:
        os.pwrite = counted(os.pwrite, half_of_it)
        for name in ("fsync", "replace", "mkdir", "unlink", "rmdir", "open"):
            setattr(os, name, counted(getattr(os, name)))
        return
    global fs_write
    from fsspec.implementations.local import LocalFileSystem as fs
    fs_write = fs.pipe_file
    halves = {"pipe_file": half_of_an_object, "put_file": half_of_a_file}
    for name in ("makedirs", "pipe_file", "put_file", "rm"):
        setattr(fs, name, counted(getattr(fs, name), halves.get(name)))

def train(pm):
    table = pm.create_table("t", 2500, 4, optimizer=intentpm.optim.Adagrad(lr=0.1))
    worker = pm.worker()
    for value in (1, 2):
        worker.set(table, range(2500), [[value] * 4] * 2500)
        pm.barrier()
        pm.save(folder, keep=1, extra=value)
        if value == 1 and pm.rank == 0:
            count_from_here()
        pm.barrier()

run_ranks(2, train)
print(calls)
"""


def save_twice(folder: str, last_call: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SAVES, folder, str(last_call)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def load(folder: str, value: int) -> None:
    with intentpm.init() as pm:
        table = pm.create_table("t", 2500, 4, optimizer=intentpm.optim.Adagrad(lr=0.1))
        assert pm.load(folder).extra[0] == value
        assert (pm.worker().pull(table, range(2500)) == value).all()


@pytest.mark.parametrize(
    ("scheme", "at_least"), [("", 16), pytest.param("local://", 8, marks=NEEDS_FSSPEC)], ids=["folder", "url"]
)
def test_killed_at_any_point(tmp_path: Path, scheme: str, at_least: int) -> None:
    """Of a URL: while an object is put, of which half is there then, or removed."""
    at = f"{scheme}{tmp_path}"
    whole = save_twice(f"{at}/whole", -1)
    assert whole.returncode == 0, whole.stderr
    points = int(whole.stdout)
    assert points >= at_least
    for point in range(1, points + 1):
        folder = f"{at}/{point}"
        killed = save_twice(folder, point)
        assert killed.returncode == -signal.SIGKILL, f"point {point}: {killed.stderr}"
        newest = intentpm.latest(folder)
        assert newest is not None, f"point {point}: no checkpoint is left"
        with intentpm.checkpoint.open(newest) as opened:
            value = opened.extra[0]
            assert opened.number == value, f"point {point}"
            assert (opened["t"].rows() == value).all(), f"point {point}"
        load(folder, value)
    assert intentpm.checkpoint.open(f"{at}/1").number == 1
    assert intentpm.checkpoint.open(f"{at}/{points}").number == 2
