"""Tables on emulated devices in jobs of several ranks, each with threads of its own; all sums are exact."""

import threading
import time

import numpy as np
import pytest

import intentpm
import intentpm.optim
from intentpm.testing import run_ranks

KEYS, LENGTH, BATCHES, BATCH = 64, 6, 40, 12


def come_to_the_device(worker: intentpm.Worker, table: intentpm.Table) -> None:
    """Returns when a batch was served from rows that a window has brought there."""
    until = time.monotonic() + 60
    while not table.tier.counts()["hits"]:
        assert time.monotonic() < until, "no row has come to the device within 60 s"
        keys = table.owned_keys()
        if len(keys) == 0:  # other ranks have them all: this one began late
            keys = np.arange(4)
        worker.intent(table, keys, worker.clock, worker.clock + 2)
        worker.pull(table, keys)
        worker.advance_clock()


def work(pm: intentpm.ParameterManager, table: intentpm.Table, number: int) -> np.ndarray:
    """One worker's: announces batches, adds to rows, reads them. Returns what it added to each key."""
    rng = np.random.default_rng(number)
    batches = [rng.integers(0, KEYS, BATCH) for _ in range(BATCHES)]
    added = np.zeros(KEYS)
    with pm.worker() as worker:
        if table.tier is not None and table.tier.is_fetching:
            come_to_the_device(worker, table)
        for i, keys in enumerate(batches):
            if i + 3 < BATCHES:
                worker.intent(table, batches[i + 3], worker.clock + 3, worker.clock + 5)
            amounts = rng.integers(1, 5, BATCH)
            worker.push(table, keys, np.repeat(amounts[:, None], LENGTH, axis=1).astype(np.float64))
            np.add.at(added, keys, amounts)
            rows = worker.pull(table, keys)
            assert (rows == rows[:, :1]).all(), "a torn row"
            assert (rows[:, 0] >= added[keys]).all(), "a worker's own writes are missing"
            worker.advance_clock()
        worker.wait_sync()
    return added


@pytest.mark.parametrize(
    "storages", [("gpu", "host", "host"), ("gpu",) * 3, ("tiered",) * 3, ("tiered", "gpu", "host")]
)
@pytest.mark.parametrize("management", ["adaptive", "relocate", "replicate", "static"])
def test_no_push_is_lost(management: str, storages: tuple[str, ...]) -> None:
    def rank(pm: intentpm.ParameterManager) -> tuple[np.ndarray, np.ndarray, list[str]]:
        table = pm.create_table("t", KEYS, LENGTH, dtype="float64", storage=storages[pm.rank])
        added = np.zeros((2, KEYS))

        def one(thread: int) -> None:
            added[thread] = work(pm, table, 2 * pm.rank + thread)

        threads = [threading.Thread(target=one, args=(thread,)) for thread in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        pm.barrier()
        rows = pm.worker().pull(table, np.arange(KEYS))
        pm.barrier()
        return added.sum(axis=0), rows, defects_of(table)

    results = run_ranks(
        3, rank, management=management, timing="immediate", sync_interval=1e-6, device="emulated:9", device_memory=1500
    )  # 22 rows
    expected = sum(added for added, _, _ in results)
    for _, rows, defects in results:
        assert defects == []
        np.testing.assert_array_equal(rows, np.repeat(expected[:, None], LENGTH, axis=1))


def defects_of(table: intentpm.Table) -> list[str]:
    if table.tier is None:
        return []
    defects: list[str] = table.tier.rows.device.defects + (table.tier.audit() if table.tier.is_fetching else [])
    return defects


def test_rows_go_to_the_device_and_come_back() -> None:
    """A row that another rank asks for comes back once, and is sent again when this rank's batch needs it."""

    def rank(pm: intentpm.ParameterManager) -> dict[str, int] | None:
        table = pm.create_table("t", KEYS, LENGTH, init=1.0, storage="gpu" if pm.rank == 0 else "host")
        worker, owned = pm.worker(), table.owned_keys()
        for turn in range(4):
            if pm.rank == 0:
                worker.push(table, owned[:3], np.ones((3, LENGTH), np.float32))
            pm.barrier()
            if pm.rank == 1:
                others = np.setdiff1d(np.arange(KEYS), owned)
                assert (worker.pull(table, others[:3]) == turn + 2).all()
                worker.push(table, others[3:4], np.ones((1, LENGTH), np.float32))
            pm.barrier()
        told = pm.stats()["tables"]["t"]
        if table.tier is None:
            assert "sent_rows" not in told
            return None
        counts = table.tier.counts()
        assert told["brought_rows"] == counts["brought_rows"]
        return counts

    counts, _ = run_ranks(2, rank, management="static", device="emulated")
    assert counts is not None
    begun = counts["sent_rows"]
    assert counts["brought_rows"] == 4 * 3 + 1  # three that are written each time; one that only the other writes, once
    assert begun >= KEYS // 4


def test_the_default_of_tables_is_the_jobs() -> None:
    with intentpm.init(storage="gpu", device="emulated") as pm:
        assert pm.create_table("a", 3).tier is not None
        assert pm.create_table("b", 3, storage="host").tier is None
    with pytest.raises(intentpm.ConfigError, match="choose one of host, gpu, tiered"):
        intentpm.init(storage="disk")


def test_a_table_needs_no_host_memory_for_its_rows() -> None:
    resident_mb: list[int] = []

    def measure() -> None:
        with open("/proc/self/statm") as file:
            resident_mb.append(int(file.read().split()[1]) * 4096 >> 20)

    with intentpm.init(device="emulated") as pm:
        table = pm.create_table("t", 200_000, 64, init=1.0, storage="gpu")  # 49 MiB
        measure()
        table.rows_here(np.arange(200_000))  # brings them back, one by one
        measure()
    assert resident_mb[1] - resident_mb[0] > 40


@pytest.mark.parametrize("storage", ["gpu", "tiered"])
def test_a_device_that_stands_still_ends_the_job(storage: str) -> None:
    """Whoever waits for it is told what for; the other rank, that this one failed."""

    def rank(pm: intentpm.ParameterManager) -> str:
        table = pm.create_table("t", KEYS, LENGTH, init=1.0, storage=storage if pm.rank == 0 else "host")
        worker, owned = pm.worker(), table.owned_keys()
        if table.tier is not None and table.tier.is_fetching:
            come_to_the_device(worker, table)
        pm.barrier()
        if pm.rank == 1:
            with pytest.raises(intentpm.PeerLostError) as lost:
                pm.barrier()
            pm.abort("is done")
            return str(lost.value)
        device = table.tier.rows.device
        device.wait_limit_s, device.stands_still = 0.05, True
        with pytest.raises(intentpm.DeviceError) as failed:
            worker.pull(table, owned[:3])
        device.wait_limit_s = 60.0  # for which nobody waits any more, row after row
        table.rows_here(owned)
        device.stands_still = False
        with pytest.raises(intentpm.PeerLostError, match="rank 0 lost the rows"):
            pm.barrier()
        pm.abort("is done")
        return str(failed.value)

    said, told = run_ranks(2, rank, management="static", device="emulated")
    assert "has not finished sending rows to the host within 0.05 s" in said
    assert "rank 0 lost the rows that lie on its device" in told
