"""Local pull and push from 1, 2 and 4 threads at once, on the same keys and on different ones.

Each thread repeats its call for a window of time; a sample is the rows of all threads divided by the window. NumPy and
PyTorch do the same with the same threads (PyTorch's own threads are off). Their pushes are a baseline for speed only:
concurrent ``np.add.at`` and ``index_add_`` lose updates of rows that two threads add to at the same moment.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

import intentpm
from intentpm.bench.results import Row
from intentpm.bench.suite.parts import SUBJECT

NUM_KEYS, DIM = 1_000_000, 64
THREADS = (1, 2, 4)
BATCH_SIZES = (100, 10_000)
BATCHES = 16
"""Batches per thread, taken in turn: fresh keys as far as caches go."""
SITUATIONS = ("same keys", "different keys")
REPEATS, WINDOW_S = 7, 0.06
DEADLINE_S = 60.0

Call = Callable[[int], object]
"""Does one access with the batch of that number."""


def measure(effort: float) -> list[Row]:
    """Rows per second, all threads together."""
    num_keys = max(1000, round(NUM_KEYS * min(1.0, effort)))
    repeats, window_s = max(3, round(REPEATS * effort)), max(0.01, WINDOW_S * min(1.0, effort))
    rows = []
    with intentpm.init() as pm:
        accesses = ThreadedAccess(pm, num_keys)
        for batch_size, situation in product(BATCH_SIZES, SITUATIONS):
            batches = accesses.draw_batches(batch_size, situation)
            for operation in ("pull", "push"):
                means = accesses.calls(operation, batches)
                # In turn, so that a disturbance hits all alike.
                samples: dict[tuple[str, int], list[float]] = {case: [] for case in product(means, THREADS)}
                for _, (by, threads) in product(range(repeats), samples):
                    calls = throughput(means[by][:threads], window_s)
                    samples[by, threads].append(calls * batch_size)
                rows += [
                    Row(
                        operation, rates, unit="rows/s", facts={"by": by, "situation": situation},
                        sizes={"keys": batch_size, "dim": DIM, "num_keys": num_keys, "threads": threads},
                    )
                    for (by, threads), rates in samples.items()
                ]  # fmt: skip
    return rows


class ThreadedAccess:
    """A table, a plain array of the same shape, and what each of the threads calls."""

    def __init__(self, pm: Any, num_keys: int) -> None:
        self.table = pm.create_table("rows", num_keys=num_keys, row_shape=(DIM,), dtype="float32", init=1.0)
        self.workers = [pm.worker() for _ in range(max(THREADS))]
        self.array = np.ones((num_keys, DIM), np.float32)
        self.num_keys = num_keys
        self.random = np.random.default_rng(0)

    def draw_batches(self, batch_size: int, situation: str) -> list[NDArray[np.int64]]:
        """Keys [BATCHES, batch_size] per thread: for all the same, or of a part of the table that is its own."""
        shape, threads = (BATCHES, batch_size), max(THREADS)
        if situation == "same keys":
            return [self.random.integers(0, self.num_keys, shape)] * threads
        part = self.num_keys // threads
        return [self.random.integers(n * part, (n + 1) * part, shape) for n in range(threads)]

    def calls(self, operation: str, batches: list[NDArray[np.int64]]) -> dict[str, list[Call]]:
        """Means of access -> the call of each thread."""
        means = {SUBJECT: self._own, "numpy": self._numpy}
        if _torch() is not None:
            means["torch"] = self._torch
        return {by: [make(operation, n, keys) for n, keys in enumerate(batches)] for by, make in means.items()}

    def _own(self, operation: str, thread: int, batches: NDArray[np.int64]) -> Call:
        worker, table, rows = self.workers[thread], self.table, _rows_like(batches)
        keys = list(batches)
        if operation == "pull":
            return lambda n: worker.pull(table, keys[n], rows)
        return lambda n: worker.push(table, keys[n], rows)

    def _numpy(self, operation: str, thread: int, batches: NDArray[np.int64]) -> Call:
        array, rows, keys = self.array, _rows_like(batches), list(batches)
        if operation == "pull":
            return lambda n: np.take(array, keys[n], axis=0, out=rows, mode="clip")
        return lambda n: np.add.at(array, keys[n], rows)

    def _torch(self, operation: str, thread: int, batches: NDArray[np.int64]) -> Call:
        torch = _torch()
        tensor, rows = torch.from_numpy(self.array), torch.from_numpy(_rows_like(batches))
        keys = [torch.from_numpy(batch) for batch in batches]
        if operation == "pull":
            return lambda n: torch.index_select(tensor, 0, keys[n], out=rows)
        return lambda n: tensor.index_add_(0, keys[n], rows)


def throughput(calls: Sequence[Call], window_s: float) -> float:
    """Calls per second of ``len(calls)`` threads together, each repeating its own for ``window_s`` seconds."""
    start, rates = threading.Barrier(len(calls)), [0.0] * len(calls)
    errors: list[BaseException] = []

    def run(thread: int) -> None:
        try:
            start.wait(DEADLINE_S)
            rates[thread] = _rate(calls[thread], window_s)
        except BaseException as error:
            start.abort()
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(rates)


def _rate(call: Call, window_s: float) -> float:
    begin = time.perf_counter()
    end, done, now = begin + window_s, 0, begin
    while now < end:
        call(done % BATCHES)
        done += 1
        now = time.perf_counter()
    return done / (now - begin)


def _rows_like(batches: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.full((batches.shape[1], DIM), 0.5, np.float32)


def _torch() -> Any:
    """PyTorch, held to one thread of its own; None if it is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    torch.set_num_threads(1)
    return torch


def draw(rows: Sequence[Mapping[str, Any]], figure: Any) -> None:
    """Million rows per second over threads: a panel per operation, situation and keys per call."""
    from intentpm.bench.suite.drawing import legend_below, median

    panels = list(_panels(rows))
    columns = -(-len(panels) // len(BATCH_SIZES))
    figure.set_size_inches(2.8 * columns, 5.4)
    axes_of = figure.subplots(len(BATCH_SIZES), columns, sharex=True, squeeze=False).flat
    for axes, (title, cases) in zip(axes_of, panels, strict=False):
        for by in dict.fromkeys(row["facts"]["by"] for row in cases):
            points = sorted((row["sizes"]["threads"], median(row) / 1e6) for row in cases if row["facts"]["by"] == by)
            axes.plot(*zip(*points, strict=True), marker="o", linewidth=2 if by == SUBJECT else 1, label=by)
        axes.set_title(title, loc="left", fontsize=8)
        axes.set_xticks(THREADS)
        axes.set_ylim(bottom=0)
    for axes in axes_of[-columns:]:
        axes.set_xlabel("threads")
    figure.supylabel("million rows/s, all threads together", fontsize=9)
    legend_below(figure)


def _panels(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    def panel(row: Mapping[str, Any]) -> tuple[int, str, str]:
        return row["sizes"]["keys"], row["name"], row["facts"]["situation"]

    for keys, operation, situation in dict.fromkeys(map(panel, rows)):
        title = f"{operation} of {keys:,}, {situation}"
        yield title, [row for row in rows if panel(row) == (keys, operation, situation)]
