"""``memory_budget`` measured at the processes: what a rank takes beyond what it had before its first table."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intentpm

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

KEYS, ITEMS, BATCH, STEPS = 300_000, 64, 15_000, 50
BUDGET_BYTES = 80 << 20
MAPPED_KEYS, MAPPED_ITEMS = 65_536, 1024
LOADED_KEYS, LOADED_ITEMS = 100_000, 128


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


class Peak:
    """The most that was resident at any time it was looked."""

    def __init__(self) -> None:
        self.bytes, self._over = resident_bytes(), threading.Event()

    def _watch(self) -> None:
        while not self._over.is_set():
            self.bytes = max(self.bytes, resident_bytes())
            time.sleep(0.004)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()


def how_it_ended(saving: Any) -> str:
    """What keeps the checkpoint from being made; empty: nothing."""
    try:
        saving.result(120)
    except intentpm.CheckpointError as error:
        return str(error)
    return ""


def crowd(folder: str, budget: int | None) -> tuple[int, int, int]:
    """Every rank intends all over the table, writes to what it has got, and saves meanwhile.

    Returns bytes at the peak beyond those before, checkpoints made, and saves refused.
    """
    with intentpm.init(transport="tcp", memory_budget=budget, seed=1) as pm:
        draw = np.random.default_rng(pm.rank)
        small, worker = pm.create_table("small", 100, ITEMS), pm.worker()
        deltas, rows = np.ones((BATCH, ITEMS), np.float32), np.ones((BATCH, ITEMS), np.float32)
        worker.push(small, np.arange(100), deltas[:100])
        pm.save(Path(folder) / "small", incremental=True)
        before, peak, made, refused = resident_bytes(), Peak(), 0, 0
        with peak.watched():
            table = pm.create_table("table", KEYS, ITEMS, init=0.0)
            for step in range(STEPS):
                keys = draw.integers(0, KEYS, BATCH)
                worker.intent(table, keys, worker.clock, worker.clock + 40)
                worker.pull(table, keys, out=rows)
                worker.push(table, keys, deltas)
                worker.advance_clock()
                if step % 20 == 10:
                    saving = pm.save(folder, [table], wait=False, keep=1, incremental=step > 20)
                if step % 20 == 19:
                    said = how_it_ended(saving)
                    made, refused = made + (said == ""), refused + ("memory_budget" in said)
            worker.wait_sync()
            pm.barrier()
        parts = np.array_split(np.arange(KEYS), 20)
        total = sum(worker.pull(table, part).sum(dtype=np.float64) for part in parts)  # of owned rows and copies alike
        pm.barrier()
        assert total == pm.size * STEPS * BATCH * ITEMS
        return peak.bytes - before, made, refused


def test_a_rank_takes_no_more_than_its_budget(spawn_world, tmp_path: Path) -> None:
    limited = spawn_world(3, crowd, str(tmp_path / "limited"), BUDGET_BYTES, timeout_s=200)
    for rank, (taken, made, refused) in enumerate(limited):
        assert taken <= BUDGET_BYTES, f"rank {rank} took {taken >> 20} MiB"
        assert made + refused == 2
    free = spawn_world(3, crowd, str(tmp_path / "free"), None, timeout_s=200)
    assert max(taken for taken, _, _ in free) > BUDGET_BYTES, "the programs would not have needed more anyway"


def map_rows(file: str) -> int:
    """Bytes at the peak beyond this rank's share of the rows."""
    with intentpm.init(transport="tcp") as pm:
        pm.create_table("small", 10)
        rows = np.load(file, mmap_mode="r")
        before, peak = resident_bytes(), Peak()
        with peak.watched():
            table = pm.create_table("table", MAPPED_KEYS, MAPPED_ITEMS, init=rows)
        worker, some = pm.worker(), np.arange(0, MAPPED_KEYS, 1000)
        assert (worker.pull(table, some)[:, 0] == some).all()
        pm.barrier()
        return peak.bytes - before - len(table.owned_keys()) * MAPPED_ITEMS * 4


def test_of_a_memory_map_a_rank_has_its_own_rows_in_memory_and_no_others(spawn_world, tmp_path: Path) -> None:
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, (MAPPED_KEYS, MAPPED_ITEMS))
    rows[:, 0] = np.arange(MAPPED_KEYS)
    rows.flush()
    del rows
    file_bytes = MAPPED_KEYS * MAPPED_ITEMS * 4
    for beyond in spawn_world(2, map_rows, str(tmp_path / "rows.npy"), timeout_s=120):
        assert beyond < file_bytes // 4, f"{beyond >> 20} MiB beyond the rank's rows, of a file of {file_bytes >> 20}"


def save_ones(folder: str) -> None:
    with intentpm.init(transport="tcp") as pm:
        pm.save(folder, [pm.create_table("table", LOADED_KEYS, LOADED_ITEMS, init=1.0)])


def load(folder: str, budget: int) -> int:
    """Bytes at the peak beyond those before."""
    with intentpm.init(transport="tcp", memory_budget=budget) as pm:
        small = pm.create_table("small", 100)
        pm.worker().push(small, np.arange(100), np.ones(100, np.float32))
        pm.load(pm.save(f"{folder}-small"), [small])  # what a load needs of libraries
        before, peak = resident_bytes(), Peak()
        with peak.watched():
            table = pm.create_table("table", LOADED_KEYS, LOADED_ITEMS, init=0.0)
            pm.load(folder, [table])
        assert (pm.worker().pull(table, np.arange(0, LOADED_KEYS, 100)) == 1).all()
        pm.barrier()
        return peak.bytes - before


@pytest.mark.parametrize(("size", "budget"), [(1, 80 << 20), (3, 40 << 20)])
def test_a_load_takes_no_more_than_the_budget(spawn_world, tmp_path: Path, size: int, budget: int) -> None:
    """Less than a rank's rows and the checkpoint's pages together."""
    folder = str(tmp_path / "saved")
    spawn_world(2, save_ones, folder, timeout_s=120)
    for rank, taken in enumerate(spawn_world(size, load, folder, budget, timeout_s=120)):
        assert taken <= budget, f"rank {rank} took {taken >> 20} MiB"
