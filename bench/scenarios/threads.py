"""Local pull and push from 1, 2 and 4 threads at once, on the same keys and on different ones.

Each thread repeats its call for a window of time; a sample is the window divided by the rows of all threads. NumPy and
PyTorch do the same with the same threads (PyTorch's own threads are off). Their pushes are a baseline for speed only:
concurrent ``np.add.at`` and ``index_add_`` lose updates of rows that two threads add to at the same moment.
"""

import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np

import intentpm
from intentpm.bench.accesses import MEANS, access, keys_for
from intentpm.bench.benchmarks import Case

NUM_KEYS, DIM = 1_000_000, 64
THREADS = (1, 2, 4)
BATCH_SIZES = (100, 10_000)
BATCHES = 16
"""Batches per thread, taken in turn: fresh keys as far as caches go."""
SAME, DIFFERENT = "same keys", "different keys"
REPEATS, WINDOW_S = 7, 0.06
DEADLINE_S = 60.0


def measure(effort: float) -> list[Case]:
    """Seconds per row, all threads together."""
    num_keys = max(1000, round(NUM_KEYS * min(1.0, effort)))
    repeats, window_s = max(3, round(REPEATS * effort)), max(0.01, WINDOW_S * min(1.0, effort))
    array, cases = np.ones((num_keys, DIM), np.float32), []
    with intentpm.init() as pm:
        table = pm.create_table("rows", num_keys, (DIM,), dtype="float32", init=1.0)
        workers = [pm.worker() for _ in range(max(THREADS))]
        for keys, situation, operation in product(BATCH_SIZES, (SAME, DIFFERENT), ("pull", "push")):
            batches = _draw_batches(num_keys, keys, situation)
            rows = [np.full((keys, DIM), 0.5, np.float32) for _ in workers]
            means = [by for by in MEANS[operation][:3] if not by.startswith("torch") or find_spec("torch")]
            calls = {
                by: [
                    _in_turn(access(operation, by, *used), [keys_for(by, batch) for batch in own])
                    for own, *used in zip(batches, workers, [table] * len(rows), [array] * len(rows), rows, strict=True)
                ]
                for by in means
            }
            samples: dict[tuple[str, int], list[float]] = {case: [] for case in product(means, THREADS)}
            for _, (by, threads) in product(range(repeats), samples):  # in turn, so that a disturbance hits all alike
                samples[by, threads].append(1 / (keys * throughput(calls[by][:threads], window_s)))
            sizes = {"keys": keys, "dim": DIM, "num_keys": num_keys}
            cases += [
                Case(operation, taken, by, "s/row", {"situation": situation, **sizes, "threads": threads})
                for (by, threads), taken in samples.items()
            ]
    return cases


def _draw_batches(num_keys: int, keys: int, situation: str) -> list[Any]:
    """Keys int64 [BATCHES, keys] per thread: for all the same, or of a part of the table that is its own."""
    random, shape, threads = np.random.default_rng(0), (BATCHES, keys), max(THREADS)
    if situation == SAME:
        return [random.integers(0, num_keys, shape)] * threads
    part = num_keys // threads
    return [random.integers(n * part, (n + 1) * part, shape) for n in range(threads)]


def _in_turn(call: Callable[[Any], object], batches: Sequence[Any]) -> Callable[[int], object]:
    return lambda n: call(batches[n % BATCHES])


def throughput(calls: Sequence[Callable[[int], object]], window_s: float) -> float:
    """Calls per second of ``len(calls)`` threads together, each repeating its own for ``window_s`` seconds."""
    start, rates, errors = threading.Barrier(len(calls)), [0.0] * len(calls), []

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


def _rate(call: Callable[[int], object], window_s: float) -> float:
    begin, done = time.perf_counter(), 0
    while (taken_s := time.perf_counter() - begin) < window_s:
        call(done)
        done += 1
    return done / taken_s
