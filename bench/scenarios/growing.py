"""What single operations cost in a job of two ranks, with many keys, many replicas or many intents around.

Rank 1 measures, rank 0 owns what it asks for. All operations are about OPERATION_KEYS keys, however many there are.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.scenarios.calls import timed_calls

OWNER, HOLDER = 0, 1
OPERATION_KEYS = 100
CHANGING_KEYS = 1000
"""Keys that the owner intends for good, and the holder again and again."""
FOR_GOOD = 1 << 40
KEYS_PER_INTENT = 10


def run_rank(pm: Any, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """``arguments``: num_keys; replicas that rank 1 holds; intents of KEYS_PER_INTENT keys that it has signalled, half
    of them active, half for a far future.

    Rank 1 returns seconds per "pull", "np.take" of as many rows, "round" (writes to replicas, and wait_sync) and
    "intent" (replicas wanted, there, let go and gone), and "bytes" of the index of all "keys", of "replicas" and of
    "intents".
    """
    dim = arguments["dim"]
    table = pm.create_table("rows", arguments["num_keys"], (dim,), init=1.0)
    owned = table.owned_keys()
    at_owner = owned if pm.rank == OWNER else np.setdiff1d(np.arange(table.num_keys), owned)
    changing, held = np.split(at_owner[: CHANGING_KEYS + arguments["replicas"]], [CHANGING_KEYS])
    worker = pm.worker()
    if pm.rank == OWNER:  # first, so that the keys stay here
        worker.intent(table, np.concatenate([changing, held]), 0, FOR_GOOD)
        worker.wait_sync()
    pm.barrier()
    result: dict[str, Any] = {"rank": pm.rank}
    if pm.rank == HOLDER:
        empty = table.memory()
        worker.intent(table, held, 0, FOR_GOOD)
        worker.wait_sync()
        filled, before = table.memory(), _allocated_bytes()
        _signal(worker, table, owned, arguments["intents"])
        result["bytes"] = {
            "keys": empty["index"],
            "replicas": sum(filled.values()) - sum(empty.values()),
            "intents": _allocated_bytes() - before,
        }
        here = np.concatenate([owned, held])
        result |= Operations(worker, table, here, held, changing, arguments).measure()
    pm.barrier()
    return result


def _signal(worker: Any, table: Any, owned: NDArray[np.int64], count: int) -> None:
    random = np.random.default_rng(0)
    for number in range(count):
        start = 0 if number % 2 else FOR_GOOD
        worker.intent(table, random.choice(owned, KEYS_PER_INTENT), start, 2 * FOR_GOOD)
    worker.wait_sync()


def _allocated_bytes() -> int:
    """What malloc has handed out: resident memory would not show what was free before."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallInfo
    found = libc.mallinfo2()
    return int(found.uordblks + found.hblkhd)


class MallInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2`` (2.33 or newer)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


class Operations:
    """Rank 1's measurements; new keys at each call."""

    def __init__(self, worker: Any, table: Any, here: Any, held: Any, changing: Any, arguments: dict[str, Any]) -> None:
        self.worker, self.table, self.arguments = worker, table, arguments
        self.random = np.random.default_rng(arguments["seed"])
        self.here, self.held, self.changing = here, held, changing
        self.rows = np.ones((OPERATION_KEYS, arguments["dim"]), np.float32)
        self.array = np.ones((len(here), arguments["dim"]), np.float32)

    def measure(self) -> dict[str, list[float]]:
        """Seconds per call, by operation."""
        return {
            "pull": self._timed(self.here, lambda keys: self.worker.pull(self.table, keys, self.rows)),
            "np.take": self._timed(
                np.arange(len(self.here)), lambda keys: np.take(self.array, keys, 0, self.rows, "clip")
            ),
            "round": self._timed(self.held, self._round),
            "intent": self._timed(self.changing, self._intent),
        }

    def _timed(self, among: NDArray[np.int64], call: Callable[[NDArray[np.int64]], object]) -> list[float]:
        repeats = self.arguments["repeats"]
        drawn = iter([self.random.choice(among, OPERATION_KEYS, replace=False) for _ in range(repeats + 10)])
        return timed_calls(lambda: call(next(drawn)), repeats, self.arguments["case_s"])

    def _round(self, keys: NDArray[np.int64]) -> None:
        self.worker.push(self.table, keys, self.rows)
        self.worker.wait_sync()

    def _intent(self, keys: NDArray[np.int64]) -> None:
        self.worker.intent(self.table, keys, self.worker.clock)
        self.worker.wait_sync()
        self.worker.advance_clock()
        self.worker.wait_sync()
