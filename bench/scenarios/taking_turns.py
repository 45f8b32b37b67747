"""Two ranks take turns in intending the same keys, so that these relocate back and forth.

A turn is one sample: from the signal of an intent whose window starts now, until all its keys are on this rank. The
owner's main thread sleeps meanwhile, and its progress thread has gone to sleep before; nothing is warm. How the worker
waits matters where cores are few: "polling", it looks every NAP_S and leaves its core to whom it waits for; "pulling",
it waits in a pull that needs all the keys; "computing", it looks all the time, and competes for its core.
"""

import ctypes
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.scenarios.calls import DIGITS, timed_calls

WARM_UP_TURNS = 4
NAP_S = 10e-6
PR_SET_TIMERSLACK, TIMER_SLACK_NS = 29, 1000
"""Without, Linux adds up to 50 us to a nap."""
DEADLINE_S = 20.0
PAUSE_S = 300e-6
SLOT_S, SLOT_PER_KEY_S = 2e-3, 0.5e-6


def run_rank(pm: Any, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """``arguments["cases"]``: pairs of how to wait and keys per intent.

    Returns the cases with this rank's samples in seconds, and as many remote pulls of as many keys without intent.
    """
    largest = max(keys for _, keys in arguments["cases"])
    table = pm.create_table("rows", num_keys=2 * largest, row_shape=(arguments["dim"],), dtype="float32", init=1.0)
    still = pm.create_table("still", num_keys=4 * largest, row_shape=(arguments["dim"],), dtype="float32", init=1.0)
    turns = Turns(pm, table, arguments["dim"])
    random = np.random.default_rng(arguments["seed"])
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS)
    cases = []
    for waiting, count in arguments["cases"]:
        keys = random.permutation(2 * largest)[:count]
        samples = turns.measure(waiting, keys, arguments["turns"], arguments["case_s"])
        pulls = turns.pull_remote(still, count, arguments["turns"], arguments["case_s"])
        cases.append({"waiting": waiting, "keys": count, "samples": samples, "remote_pulls": pulls})
    pm.barrier()
    return {"rank": pm.rank, "cases": cases, "relocations_in": pm.stats()["relocations_in"]}


class Turns:
    """One rank's side."""

    def __init__(self, pm: Any, table: Any, dim: int) -> None:
        self.pm, self.table, self.worker, self.dim = pm, table, pm.worker(), dim

    def measure(self, waiting: str, keys: NDArray[np.int64], turns: int, case_s: float) -> list[float]:
        """Seconds of this rank's turns, at most ``turns`` and for about ``case_s``. Collective."""
        rows = np.empty((len(keys), self.dim), np.float32)
        samples = []
        slot_s = SLOT_S + SLOT_PER_KEY_S * len(keys)
        for turn in range(WARM_UP_TURNS + 2 * min(turns, max(1, round(case_s / (2 * slot_s))))):
            self.pm.barrier()
            if turn % 2 != self.pm.rank:
                time.sleep(slot_s)
                continue
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            self.worker.intent(self.table, keys, self.worker.clock)
            if waiting == "pulling":
                self.worker.pull(self.table, keys, rows)
            else:
                self._look(keys, NAP_S if waiting == "polling" else 0.0, start + DEADLINE_S)
            seconds = time.perf_counter() - start
            self.worker.advance_clock()
            if turn >= WARM_UP_TURNS:
                samples.append(round(seconds, DIGITS))
        return samples

    def _look(self, keys: NDArray[np.int64], nap_s: float, deadline: float) -> None:
        """Until all keys are here. First looks at the last of them only: that disturbs nobody who fills the others."""
        for watched in (keys[-1:], keys):
            while self.pm.count_local(self.table, watched) < len(watched):
                if nap_s:
                    time.sleep(nap_s)
                if time.perf_counter() > deadline:
                    raise TimeoutError(f"keys are not on rank {self.pm.rank} {DEADLINE_S} s after their intent")

    def pull_remote(self, table: Any, count: int, repeats: int, case_s: float) -> list[float]:
        """Seconds per pull of keys that are at the other rank, one rank after the other. Collective."""
        away = np.setdiff1d(np.arange(table.num_keys), table.owned_keys())[:count]
        rows = np.empty((count, self.dim), np.float32)
        samples: list[float] = []
        for rank in range(2):
            self.pm.barrier()
            if rank == self.pm.rank:
                samples = timed_calls(lambda: self.worker.pull(table, away, rows), repeats, case_s / 4, PAUSE_S)
            else:
                time.sleep(case_s / 4)
        return samples
