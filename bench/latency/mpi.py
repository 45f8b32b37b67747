"""MPI between ranks 0 and 1 that mpirun started, with mpi4py, over the way it chooses itself.

One-sided, passive target: rank 0 accesses rows of rank 1, which makes no call for it. One call per request, with a
datatype that picks the rows of its keys, made for that request as a program with ever new keys must.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from intentpm.bench.latency.job import Rank

NAMES = {"pull": "mpi4py Win.Get", "push": "mpi4py Win.Accumulate"}
SEND_RECV = "mpi4py Send, Recv"
SERVER = 1


def open_window(here: Rank, num_keys: int, dim: int) -> None:
    """``here.state["window"]``: rows of float32 that rank 1 holds. A task, as MPI's other ranks must take part."""
    from mpi4py import MPI

    mine = num_keys if here.rank == SERVER else 0
    here.state["window"] = window = MPI.Win.Allocate(4 * dim * mine, 4 * dim, comm=MPI.COMM_WORLD)
    if mine:
        np.asarray(window.tomemory()).view(np.float32)[:] = 1.0


def close_window(here: Rank) -> None:
    """Undoes ``open_window``. A task."""
    here.state.pop("window").Free()


def access(window: Any, operation: str, num_keys: int, dim: int, count: int) -> Callable[[], object]:
    """One access to ``count`` rows. The window must be locked."""
    from mpi4py import MPI

    row = MPI.FLOAT.Create_contiguous(dim).Commit()
    keys: Any = np.random.default_rng(0).choice(num_keys, count, replace=False).astype(np.int32)
    rows = np.ones((count, dim), np.float32)

    def move(target: Any) -> None:
        if operation == "pull":
            window.Get([rows, rows.size, MPI.FLOAT], SERVER, target)
        else:
            window.Accumulate([rows, rows.size, MPI.FLOAT], SERVER, target, op=MPI.SUM)
        window.Flush(SERVER)

    def picked() -> None:
        rows_of_keys = row.Create_indexed_block(1, keys).Commit()
        move((0, 1, rows_of_keys))
        rows_of_keys.Free()

    return picked if count > 1 else lambda: move((int(keys[0]), 1, row))


def echo(here: Rank, size_bytes: int) -> None:
    """Rank 1's part of ``round_trip``, until ``end_echo``. A task."""
    from mpi4py import MPI

    ball = np.ones(size_bytes, np.uint8)
    while here.rank == SERVER and ball[0]:
        MPI.COMM_WORLD.Recv(ball, 0)
        MPI.COMM_WORLD.Send(ball, 0)


def round_trip(size_bytes: int, first_byte: int = 1) -> Callable[[], object]:
    """Sends as many bytes to rank 1, and receives them again."""
    from mpi4py import MPI

    ball = np.full(size_bytes, first_byte, np.uint8)

    def there_and_back() -> None:
        MPI.COMM_WORLD.Send(ball, SERVER)
        MPI.COMM_WORLD.Recv(ball, SERVER)

    return there_and_back


def end_echo(size_bytes: int) -> None:
    """The last round trip."""
    round_trip(size_bytes, 0)()


def sink(here: Rank, size_bytes: int, count: int, streams: int) -> None:
    """Rank 1's part of ``stream``, ``streams`` times over. A task."""
    from mpi4py import MPI

    message = np.zeros(size_bytes, np.uint8)
    for _ in range(streams if here.rank == SERVER else 0):
        for _ in range(count):
            MPI.COMM_WORLD.Recv(message, 0)
        MPI.COMM_WORLD.Send(message[:1], 0)


def stream(size_bytes: int, count: int) -> float:
    """Seconds for ``count`` messages one way and a byte back."""
    from mpi4py import MPI

    message = np.zeros(size_bytes, np.uint8)
    begin = time.perf_counter()
    for _ in range(count):
        MPI.COMM_WORLD.Send(message, SERVER)
    MPI.COMM_WORLD.Recv(message[:1], SERVER)
    return time.perf_counter() - begin
