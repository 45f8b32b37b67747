"""Exactness: threads of all ranks push and set random integers, and signal intents for random windows, so that keys are
relocated and replicated all the time. At the end every value must be exactly right, at every rank that holds it.

Each worker keeps its own int64 count of what it pushed. The counts are added up through files, not through the tables
under test. All values stay below 2^24, so float32 sums of integers have no rounding, in whatever order they are added:
a replica that is not bit-identical to the owner's row differs from the expected value.
"""

import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTSTANDING = 16
"""Async calls a worker has in flight at most."""
LARGEST_BATCH = 2_000
LARGEST_DELTA = 8
LARGEST_VALUE = 2**24
FARTHEST_WINDOW = 60
"""Clocks ahead of which a window may begin, and clocks it may last."""
SHOWN = 5
"""Wrong keys named in the result."""


class PushWorker:
    """One thread's work: pushes to any key of ``sums``, sets and pushes to its own keys of ``owned``.

    ``pushed`` and ``owned_values`` are what this worker alone expects: int64 (num_keys, D), the second for its own
    stretch of keys.
    """

    def __init__(self, pm: Any, tables: tuple[Any, Any], arguments: dict[str, Any], position: int) -> None:
        self.sums, self.owned = tables
        self.worker = pm.worker()
        self.random = np.random.default_rng([arguments["seed"], position])
        self.num_keys, self.dim, self.dtype = arguments["num_keys"], arguments["dim"], arguments["dtype"]
        self.pushed = np.zeros((self.num_keys, self.dim), np.int64)
        self.first_owned = position * arguments["owned_keys"]
        self.owned_values = np.zeros((arguments["owned_keys"], self.dim), np.int64)
        self.flying: deque[Any] = deque()
        self.calls = self.keys = self.stale_reads = 0
        self.intends, self.last_end = arguments["intents"], 0
        self.error: BaseException | None = None

    def run(self, stop_at: float) -> None:
        """Works until ``stop_at`` (time.monotonic()), then waits for its calls. Keeps the error, if there is one."""
        try:
            while time.monotonic() < stop_at:
                if self.intends and self.random.random() < 0.3:
                    self._intend()
                self._push()
                if self.random.random() < 0.25:
                    self._overwrite()
                self.worker.advance_clock()
            while self.flying:
                self.flying.popleft().wait()
            self.worker.wait_sync()
        except BaseException as error:
            self.error = error

    def outlive_intents(self) -> None:
        """Advances the clock past the end of every window signalled."""
        while self.worker.clock < self.last_end:
            self.worker.advance_clock()

    def _intend(self) -> None:
        """Signals a window for keys of both tables, whoever will access them: wrong intents must cost time only."""
        start = self.worker.clock + int(self.random.integers(0, FARTHEST_WINDOW))
        end = start + int(self.random.integers(1, FARTHEST_WINDOW))
        self.worker.intent(self.sums, self._draw_keys(), start, end)
        self.worker.intent(self.owned, self.random.integers(0, self.owned.num_keys, 20), start, end)
        self.last_end = max(self.last_end, end)

    def _draw_keys(self) -> NDArray[np.int64]:
        # Few keys often, many sometimes; drawn with a skew, so that there are duplicates and contended keys.
        count = int(LARGEST_BATCH ** self.random.random())
        return (self.num_keys * self.random.random(count) ** 3).astype(np.int64)

    def _push(self) -> None:
        keys = self._draw_keys()
        count = len(keys)
        deltas = self.random.integers(-LARGEST_DELTA, LARGEST_DELTA + 1, (count, self.dim))
        np.add.at(self.pushed, keys, deltas)
        if self.random.random() < 0.5:
            self.flying.append(self.worker.push_async(self.sums, keys, deltas.astype(self.dtype)))
        else:
            self.worker.push(self.sums, keys, deltas.astype(self.dtype))
        while len(self.flying) > OUTSTANDING:
            self.flying.popleft().wait()
        self.calls += 1
        self.keys += count

    def _overwrite(self) -> None:
        """Sets some of this worker's own keys, adds to them, and reads its own writes."""
        count = int(self.random.integers(1, len(self.owned_values) + 1))
        chosen = self.random.choice(len(self.owned_values), count, replace=False)
        values = self.random.integers(-1000, 1000, (count, self.dim))
        deltas = self.random.integers(-LARGEST_DELTA, LARGEST_DELTA + 1, (count, self.dim))
        keys = self.first_owned + chosen
        self._either(self.worker.set, self.worker.set_async, keys, values)
        self._either(self.worker.push, self.worker.push_async, keys, deltas)
        self.owned_values[chosen] = values + deltas
        if not np.array_equal(self.worker.pull(self.owned, keys).astype(np.int64), self.owned_values[chosen]):
            self.stale_reads += 1

    def _either(self, call: Any, call_async: Any, keys: NDArray[np.int64], values: NDArray[np.int64]) -> None:
        """One of both at random. A set and a push to the same key do not commute, so it waits either way."""
        if self.random.random() < 0.5:
            call(self.owned, keys, values.astype(self.dtype))
        else:
            call_async(self.owned, keys, values.astype(self.dtype)).wait()


def run_rank(pm: Any, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Works for ``seconds`` on ``workers`` threads, then compares all values; see the module."""
    tables = _create_tables(pm, arguments)
    first = pm.rank * arguments["workers"]
    workers = [PushWorker(pm, tables, arguments, first + number) for number in range(arguments["workers"])]
    pm.barrier()
    start = time.monotonic()
    _run_threads(workers, start + arguments["seconds"])
    _write_expected(workers, folder, pm.rank)
    pm.barrier()
    elapsed = time.monotonic() - start
    expected = _read_expected(folder, pm.size)
    worker = pm.worker()
    replicas = sum(len(table.replica_keys()) for table in tables)
    wrong = [_differences(worker, table, values) for table, values in zip(tables, expected, strict=True)]
    pm.barrier()
    return {
        "rank": pm.rank,
        "seconds": elapsed,
        "calls": sum(worker.calls for worker in workers),
        "keys": sum(worker.keys for worker in workers),
        "stale_reads": sum(worker.stale_reads for worker in workers),
        "wrong_sums": wrong[0],
        "wrong_owned": wrong[1],
        "compared": sum(values.size for values in expected),
        "replicas_compared": replicas,
        **_let_go(pm, tables, workers),
    }


def _let_go(pm: Any, tables: tuple[Any, Any], workers: list[PushWorker]) -> dict[str, Any]:
    """Lets all intents end. Then no rank may hold a replica, and every key must have one owner."""
    for pusher in workers:
        pusher.outlive_intents()
    workers[0].worker.wait_sync()
    pm.barrier()
    owned = np.concatenate([table.owned_keys() + (position << 40) for position, table in enumerate(tables)])
    everywhere = np.concatenate([np.frombuffer(part, np.int64) for part in pm.allgather(owned.tobytes())])
    keys, owners = np.unique(everywhere, return_counts=True)
    stats = pm.stats()
    return {
        "replicas_left": sum(len(table.replica_keys()) for table in tables),
        "keys_without_owner": sum(table.num_keys for table in tables) - len(keys),
        "keys_with_two_owners": int((owners > 1).sum()),
        "relocations": stats["relocations_in"],
        "replicas_set_up": stats["replicas_set_up"],
    }


def _create_tables(pm: Any, arguments: dict[str, Any]) -> tuple[Any, Any]:
    shape, dtype = (arguments["dim"],), arguments["dtype"]
    owned_keys = arguments["owned_keys"] * arguments["workers"] * pm.size
    return (
        pm.create_table("sums", num_keys=arguments["num_keys"], row_shape=shape, dtype=dtype, init=0),
        pm.create_table("owned", num_keys=owned_keys, row_shape=shape, dtype=dtype, init=0),
    )


def _run_threads(workers: list[PushWorker], stop_at: float) -> None:
    threads = [threading.Thread(target=worker.run, args=(stop_at,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for worker in workers:
        if worker.error is not None:
            raise worker.error


def _write_expected(workers: list[PushWorker], folder: Path, rank: int) -> None:
    pushed = np.sum([worker.pushed for worker in workers], axis=0)
    owned = np.concatenate([worker.owned_values for worker in workers])
    np.savez(folder / f"expected{rank}.npz", pushed=pushed, owned=owned)


def _read_expected(folder: Path, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    files = [np.load(folder / f"expected{rank}.npz") for rank in range(size)]
    pushed = np.sum([file["pushed"] for file in files], axis=0)
    owned = np.concatenate([file["owned"] for file in files])
    if max(np.abs(pushed).max(), np.abs(owned).max()) >= LARGEST_VALUE:
        raise OverflowError("sums beyond 2^24 are not exact in float32: run for a shorter time or with more keys")
    return pushed, owned


def _differences(worker: Any, table: Any, expected: NDArray[np.int64]) -> dict[str, Any]:
    """How many values of ``table`` differ from ``expected``, and the first of them."""
    found = worker.pull(table, np.arange(len(expected)))
    wrong = np.argwhere(found != expected)
    first = [
        {"key": int(key), "column": int(column), "is": float(found[key, column]), "should": int(expected[key, column])}
        for key, column in wrong[:SHOWN]
    ]
    return {"values": len(wrong), "first": first}
