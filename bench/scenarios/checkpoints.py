"""Checkpoints while training goes on: what steps notice, how fast is written, what memory it takes, what changes cost.

A step pulls a batch of random rows, waits as long as computing on them would take, and pushes to them: first without
a save, then while one is made, and, for comparison, while ``dd`` writes as many bytes: where the machine itself stands
still while it writes, steps do so beside either. Then 1 % of the rows are written, and an incremental save has those
alone.
"""

import os
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from intentpm.checkpoint.manifest import read_manifest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = {"before": "without a save", "during": "while saving", "beside_dd": "while dd writes as much"}
MEMORY_S = 0.005
"""Between two looks at the memory of the process."""


class MemoryWatch:
    """The largest resident memory of this process, in bytes, while it is entered."""

    def __enter__(self) -> "MemoryWatch":
        self.first = self.most = resident_bytes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(MEMORY_S):
            self.most = max(self.most, resident_bytes())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Steps:
    """Training steps of one worker."""

    def __init__(self, pm: Any, table: Any, arguments: dict[str, Any]) -> None:
        self.worker, self.table = pm.worker(), table
        self.random = np.random.default_rng([arguments["seed"], pm.rank])
        self.deltas = np.ones((arguments["batch"], *table.row_shape), table.dtype)
        self.batch, self.compute_s = arguments["batch"], arguments["compute_ms"] * 1e-3

    def run(self, until: Any, least: int) -> list[float]:
        """Seconds of each step, until ``until()`` is true and there are ``least`` of them."""
        times: list[float] = []
        while len(times) < least or not until():
            start = time.perf_counter()
            keys = self.random.integers(self.table.num_keys, size=self.batch)
            self.worker.pull(self.table, keys)
            time.sleep(self.compute_s)
            self.worker.push(self.table, keys, self.deltas)
            self.worker.advance_clock()
            times.append(time.perf_counter() - start)
        return times


def run_rank(pm: Any, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """See the module. Times in s, sizes in bytes."""
    saves = Path(arguments["folder"])
    table = pm.create_table("rows", arguments["rows"], arguments["dim"], init=1.0)
    steps = Steps(pm, table, arguments)
    pm.barrier()
    before = steps.run(lambda: True, arguments["steps"])
    pm.barrier()
    start = time.perf_counter()
    with MemoryWatch() as memory:
        saving = pm.save(saves, wait=False, incremental=True)
        called = time.perf_counter() - start
        during = steps.run(saving.done, 1)
        first = saving.result()
    saved = time.perf_counter() - start
    full = read_manifest(first).files
    changed = np.arange(pm.rank, arguments["rows"], 100 * pm.size)
    for cut in np.array_split(changed, max(1, len(changed) // 10_000)):
        steps.worker.push(table, cut, np.ones((len(cut), arguments["dim"]), np.float32))
    second = pm.save(saves, incremental=True)  # also what the steps have changed
    pm.barrier()
    for cut in np.array_split(changed, max(1, len(changed) // 10_000)):
        steps.worker.push(table, cut, np.ones((len(cut), arguments["dim"]), np.float32))
    pm.barrier()
    start = time.perf_counter()
    third = pm.save(saves, incremental=True)
    incremental = time.perf_counter() - start
    size = sum(file.size_bytes for file in full)
    pm.barrier()
    with WritingWithDd(saves / f"plain-{pm.rank}", full[pm.rank].size_bytes) as plain:
        beside_dd = steps.run(plain.done, 1)
    pm.barrier()
    return {
        "rank": pm.rank,
        "before": before,
        "during": during,
        "call": called,
        "saved": saved,
        "bytes": size,
        "beside_dd": beside_dd,
        "dd": plain.seconds,
        "memory": memory.most - memory.first,
        "table": table.memory()["rows"],
        "incremental": incremental,
        "incremental_bytes": sum(file.size_bytes for file in read_manifest(third).files),
        "incremental_base": read_manifest(second).base,
    }


class WritingWithDd:
    """``dd`` writes zeros to a file, which is removed at the end. ``seconds`` it took, when it is ``done``."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path, self.seconds = path, 0.0
        self._command = ["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={size_bytes >> 20}", "conv=fsync"]

    def __enter__(self) -> "WritingWithDd":
        self._began = time.perf_counter()
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        return self

    def done(self) -> bool:
        if self._process.poll() is not None and not self.seconds:
            self.seconds = time.perf_counter() - self._began
        return self.seconds > 0

    def __exit__(self, *failure: object) -> None:
        self._process.kill()
        self._process.wait()
        self.path.unlink(missing_ok=True)
        if not any(failure) and self._process.returncode:
            raise subprocess.CalledProcessError(self._process.returncode, self._command)


def draw_steps(document: Mapping[str, Any], axes: "Axes") -> None:
    """How long steps took without a save, while one was made, and beside dd, of a results file."""
    times = {when: np.concatenate([row[when] for row in document["rows"]]) * 1e3 for when in STEPS}
    shortest, longest = (limit(np.concatenate([*times.values()])) for limit in (np.min, np.max))
    bins = np.geomspace(shortest, longest * 1.001, 41).tolist()
    for when, label in STEPS.items():
        share = np.full(len(times[when]), 100.0 / len(times[when]))
        axes.hist(times[when], bins, weights=share, histtype="step", linewidth=1.5, label=label)
    axes.axvline(2 * np.median(times["before"]) + 10.0, color="gray", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("ms per step (dotted: two usual steps + 10 ms)")
    axes.set_ylabel("% of the steps")
    axes.set_title(document["bench"], loc="left", fontsize=10)
    axes.legend()
