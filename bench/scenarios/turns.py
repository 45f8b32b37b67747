"""Two ranks take turns in intending the same keys, so that these relocate back and forth.

A turn is one sample: from the signal of an intent whose window starts now, until all its keys are on this rank. The
owner's main thread sleeps meanwhile, and its progress thread has gone to sleep before; nothing is warm. How the worker
waits matters where cores are few: "polling", it looks every NAP_S and leaves its core to whom it waits for; "pulling",
it waits in a pull that needs all the keys; "computing", it looks all the time, and competes for its core.
"""

import ctypes
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.benchmarks import SUBJECT, Case
from intentpm.bench.links import usable_links

KEYS, WAYS = (100, 9_500), ("polling", "pulling", "computing")
RELOCATED_KEYS = (10_000, 100_000)
"""A round carries at most 8 MiB of rows, so the larger number takes several."""
DIM = 64
TURNS, CASE_S = 200, 2.0
START_S = 60.0
WARM_UP_TURNS = 4
NAP_S = 10e-6
PR_SET_TIMERSLACK, TIMER_SLACK_NS = 29, 1000
"""Without, Linux adds up to 50 us to a nap."""
DEADLINE_S = 20.0
PAUSE_S = 300e-6
SLOT_S, SLOT_PER_KEY_S = 2e-3, 0.5e-6
PULL = "remote pull without intent"


def measure(effort: float) -> list[Case]:
    """Seconds per intent, of both ranks, next to a pull of as many rows without one; seconds per row relocated."""
    largest = RELOCATED_KEYS if effort >= 0.2 else RELOCATED_KEYS[:1]
    plan = [(waiting, keys) for keys in KEYS for waiting in WAYS] + [("polling", keys) for keys in largest]
    arguments = {
        "plan": plan, "turns": max(5, round(TURNS * effort)), "case_s": max(0.2, CASE_S * min(1.0, effort)),
    }  # fmt: skip
    cases: list[Case] = []
    for link in usable_links():
        results = link.run("turns", 2, arguments, START_S + 10 * len(plan) * CASE_S)
        for number, (waiting, keys) in enumerate(plan):
            samples, pulls = ([s for result in results for s in result[kind][number]] for kind in ("turns", "pulls"))
            info = {"situation": waiting, "keys": keys, "dim": DIM, "ranks": 2, "transport": link.name}
            if keys in RELOCATED_KEYS:
                cases.append(Case("relocation", [sample / keys for sample in samples], unit="s/row", info=info))
                continue
            cases += [Case("due to local", taken, by, info=info) for by, taken in ((SUBJECT, samples), (PULL, pulls))]
    return cases


def run_rank(pm: Any, arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """``arguments["plan"]``: pairs of how to wait and keys per intent.

    Returns, for each, this rank's "turns" in seconds, and as many remote "pulls" of as many keys without intent.
    """
    largest = max(keys for _, keys in arguments["plan"])
    table, still = (pm.create_table(name, factor * largest, (DIM,), dtype="float32", init=1.0)
                    for name, factor in (("rows", 2), ("still", 4)))  # fmt: skip
    turns = Turns(pm, table)
    random = np.random.default_rng(0)
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS)
    taken: dict[str, Any] = {"turns": [], "pulls": []}
    for waiting, count in arguments["plan"]:
        keys = random.permutation(2 * largest)[:count]
        taken["turns"].append(turns.measure(waiting, keys, arguments["turns"], arguments["case_s"]))
        taken["pulls"].append(turns.pull_remote(still, count, arguments["turns"], arguments["case_s"] / 4))
    pm.barrier()
    return taken


class Turns:
    """One rank's side."""

    def __init__(self, pm: Any, table: Any) -> None:
        self.pm, self.table, self.worker = pm, table, pm.worker()

    def measure(self, waiting: str, keys: NDArray[np.int64], turns: int, case_s: float) -> list[float]:
        """Seconds of this rank's turns, at most ``turns`` and for about ``case_s``. Collective."""
        rows = np.empty((len(keys), DIM), np.float32)
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
                samples.append(seconds)
        return samples

    def _look(self, keys: NDArray[np.int64], nap_s: float, deadline: float) -> None:
        """Until all keys are here. First looks at the last of them only: that disturbs nobody who fills the others."""
        for watched in (keys[-1:], keys):
            while self.pm.count_local(self.table, watched) < len(watched):
                if nap_s:
                    time.sleep(nap_s)
                if time.perf_counter() > deadline:
                    raise TimeoutError(f"keys are not on rank {self.pm.rank} {DEADLINE_S} s after their intent")

    def pull_remote(self, table: Any, count: int, repeats: int, limit_s: float) -> list[float]:
        """Seconds per pull of keys that are at the other rank, one rank after the other. Collective."""
        away = np.setdiff1d(np.arange(table.num_keys), table.owned_keys())[:count]
        rows, samples = np.empty((count, DIM), np.float32), list[float]()
        for rank in range(2):
            self.pm.barrier()
            end = time.perf_counter() + limit_s
            while rank == self.pm.rank and len(samples) < repeats and (not samples or time.perf_counter() < end):
                time.sleep(PAUSE_S)
                start = time.perf_counter()
                self.worker.pull(table, away, rows)
                samples.append(time.perf_counter() - start)
            time.sleep(max(0.0, end - time.perf_counter()))
        return samples
