"""Tables with storage="tiered" on the emulated device: what is on it when, what gives way, and what cannot be made.

In virtual time, where a test must know that the windows were looked at: nothing here depends on how fast a machine is.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.simulation import Simulation, simulate

import intentpm
import intentpm.optim
from intentpm.runtime.config import Config

KEYS, LENGTH = 64, 4
SEAT_BYTES = LENGTH * 4 + 4
FAR = 1000


def config(seats: int, **options: Any) -> Config:
    return Config(storage="tiered", device="emulated:7", device_memory=seats * SEAT_BYTES, seed=1, **options)


def as_rank(job: Simulation, rank: int, function: Callable[[], Any]) -> Any:
    """Runs a task of ``rank``, then all that comes of it."""
    task = job.spawn(rank, function)
    job.settle()
    return task.value


def counts(table: intentpm.Table) -> dict[str, Any]:
    assert table.tier.audit() == []
    assert table.tier.rows.device.defects == []
    told: dict[str, Any] = table.tier.counts()
    return told


def test_rows_come_before_their_window_in_one_copy() -> None:
    with simulate(1, 1, config(KEYS)) as job:
        (table,) = job.create_table("t", KEYS, LENGTH, init=3.0)
        worker = job.ranks[0].worker()
        as_rank(job, 0, lambda: worker.intent(table, np.arange(40), 5, 6))
        assert worker.clock == 0
        np.testing.assert_array_equal(table.tier.keys_on_device(), np.arange(40))
        assert counts(table)["copies_to_device"] == 1
        assert (as_rank(job, 0, lambda: worker.pull(table, np.arange(40))) == 3).all()
        assert counts(table)["hits"] == 40
        assert counts(table)["in_place"] == 0
        assert counts(table)["bytes_to_device"] == 40 * LENGTH * 4
        assert counts(table)["hit_share"] == 1


def test_what_does_not_fit_or_is_not_announced_is_read_in_place() -> None:
    with simulate(1, 1, config(8)) as job:
        (table,) = job.create_table("t", KEYS, LENGTH, init=1.0)
        worker = job.ranks[0].worker()
        as_rank(job, 0, lambda: worker.intent(table, np.arange(20), 0, 9))
        ones = np.ones((KEYS, LENGTH), np.float32)
        as_rank(job, 0, lambda: worker.push(table, np.arange(KEYS), ones))
        assert (as_rank(job, 0, lambda: worker.pull(table, np.arange(KEYS))) == 2).all()
        told = counts(table)
        assert told["hits"] == 2 * 8
        assert told["in_place"] == 2 * (KEYS - 8)
        assert told["gave_way"] == 0
        assert job.ranks[0].stats()["tables"]["t"]["hits"] == 16


def test_rows_of_a_window_stay_and_what_was_written_comes_back() -> None:
    with simulate(1, 1, config(8)) as job:
        (table,) = job.create_table("t", KEYS, LENGTH)
        worker = job.ranks[0].worker()
        ones = np.ones((8, LENGTH), np.float32)

        def first() -> None:
            worker.intent(table, np.arange(8), 0, 1)
            job.network.pause(1000.0)
            worker.push(table, np.arange(8), ones)
            worker.intent(table, np.arange(8, 16), 0, 2)
            job.network.pause(1000.0)
            assert list(table.tier.keys_on_device()) == list(range(8)), "there was no room for others"
            worker.advance_clock()
            worker.intent(table, np.arange(8, 16), 1, 2)
            job.network.pause(1000.0)

        as_rank(job, 0, first)
        assert list(table.tier.keys_on_device()) == list(range(8, 16))
        assert counts(table)["gave_way"] == 8
        assert (table.rows_here(np.arange(8)) == 1).all()
        assert counts(table)["bytes_to_host"] == 8 * LENGTH * 4


def test_whoever_asks_about_a_key_changes_nothing() -> None:
    """Rows in no window give way before those that are used later, though somebody asked before management looked."""
    with simulate(1, 1, config(8)) as job:
        (table,) = job.create_table("t", KEYS, LENGTH)
        worker = job.ranks[0].worker()

        def ask_and_use() -> None:
            worker.intent(table, np.arange(4), 0, 1)
            worker.intent(table, np.arange(4), FAR)
            job.network.pause(1000.0)
            worker.intent(table, np.arange(4, 8), 0, 1)
            (intent,) = job.ranks[0].explain(table, 5).intents
            assert (intent.start, intent.end, intent.active) == (0, 1, False)
            job.network.pause(1000.0)
            (intent,) = job.ranks[0].explain(table, 5).intents
            assert intent.active
            worker.push(table, np.arange(8), np.ones((8, LENGTH), np.float32))
            worker.advance_clock()
            assert job.ranks[0].explain(table, 5).intents == (), "its window is over, whether or not anybody has looked"
            worker.intent(table, np.arange(8, 12), 1, 2)
            job.network.pause(1000.0)

        as_rank(job, 0, ask_and_use)
        assert list(table.tier.keys_on_device()) == [0, 1, 2, 3, 8, 9, 10, 11]


def test_windows_that_do_not_fit_wait_for_their_turn() -> None:
    """Room for ten of the forty windows that are due: each has its rows there when it starts."""
    windows, rows_each = 40, 8
    with simulate(1, 1, config(10 * rows_each, timing="immediate")) as job:
        (table,) = job.create_table("t", windows * rows_each, LENGTH)
        worker = job.ranks[0].worker()

        def run() -> None:
            keys = np.arange(windows * rows_each).reshape(windows, rows_each)
            for number, those in enumerate(keys):
                worker.intent(table, those, number, number + 1)
            for those in keys:
                job.network.pause(1000.0)
                worker.push(table, those, np.ones((rows_each, LENGTH), np.float32))
                worker.advance_clock()
                job.network.pause(1000.0)

        as_rank(job, 0, run)
        assert counts(table)["hit_share"] == 1
        assert (table.rows_here(np.arange(windows * rows_each)) == 1).all()


def test_rows_wait_where_there_is_no_memory_to_stage_them() -> None:
    """There is some for batches of four rows, and none for the forty that are to give way."""
    length, room = 64, 40
    with simulate(1, 1, Config(storage="tiered", device="emulated:7", device_memory=room * (length * 4 + 4))) as job:
        (table,) = job.create_table("t", 2 * room, length)
        worker, ones = job.ranks[0].worker(), np.ones((4, length), np.float32)
        device, batches = table.tier.rows.device, np.arange(2 * room).reshape(-1, 4)

        def fill() -> None:
            for keys in batches[:10]:
                worker.intent(table, keys, 0, 1)
                job.network.pause(1000.0)
                worker.push(table, keys, ones)

        def change() -> None:
            worker.advance_clock()
            worker.intent(table, np.arange(room, 2 * room), 1, 3)
            job.network.pause(1000.0)

        def look() -> None:
            for keys in batches:
                assert (worker.pull(table, keys) == (keys[0] < room)).all()

        as_rank(job, 0, fill)
        device.most_bytes = (
            room * (length * 4 + 4) + 64 * (length * 4 + 4) + 12_000
        )  # slab, sums, three small exchanges
        as_rank(job, 0, change)
        assert list(table.tier.keys_on_device()) == list(range(room)), "nothing has changed its place"
        as_rank(job, 0, look)
        device.most_bytes = 2**40
        as_rank(job, 0, lambda: worker.intent(table, [0], 0, 2))
        as_rank(job, 0, lambda: worker.advance_clock())
        assert list(table.tier.keys_on_device()) == list(range(room, 2 * room))
        as_rank(job, 0, look)
        counts(table)


def test_rows_that_are_used_last_give_way_first() -> None:
    with simulate(1, 1, config(4)) as job:
        (table,) = job.create_table("t", KEYS, LENGTH)
        worker = job.ranks[0].worker()

        def run() -> None:
            worker.intent(table, [0, 1, 2, 3], 0, 30)
            for _ in range(30):  # the engine learns how long a clock takes
                worker.advance_clock()
                worker.intent(table, [0, 1, 2, 3], worker.clock, worker.clock + 1)
                job.network.pause(1000.0)
            worker.intent(table, [1], FAR, FAR + 1)
            worker.intent(table, [2], FAR + 500, FAR + 501)
            worker.intent(table, [3], FAR + 900, FAR + 901)
            worker.advance_clock()
            worker.advance_clock()
            job.network.pause(1000.0)
            for key in (10, 11, 12):
                worker.intent(table, [key], worker.clock, FAR)
                job.network.pause(1000.0)
                given_way.append(set(range(4)) - set(table.tier.keys_on_device().tolist()))

        given_way: list[set[int]] = []
        as_rank(job, 0, run)
        assert given_way == [{0}, {0, 3}, {0, 2, 3}]


def test_a_row_that_moves_here_comes_to_the_device() -> None:
    """Written there afterwards by its former owner, it is sent again."""
    with simulate(2, 3, config(KEYS, management="relocate")) as job:
        tables = job.create_table("t", KEYS, LENGTH)
        workers = [manager.worker() for manager in job.ranks]
        theirs = tables[1].owned_keys()[:5]
        as_rank(job, 0, lambda: workers[0].intent(tables[0], theirs, 0, FAR))
        assert set(theirs) <= set(tables[0].owned_keys())
        assert list(tables[0].tier.keys_on_device()) == list(theirs)
        copies = counts(tables[0])["copies_to_device"]
        as_rank(job, 1, lambda: workers[1].push(tables[1], theirs, np.ones((5, LENGTH), np.float32)))
        as_rank(job, 0, lambda: workers[0].advance_clock())
        as_rank(job, 0, lambda: workers[0].wait_sync())
        assert list(tables[0].tier.keys_on_device()) == list(theirs)
        assert counts(tables[0])["copies_to_device"] > copies
        assert (as_rank(job, 0, lambda: workers[0].pull(tables[0], theirs)) == 1).all()
        assert counts(tables[0])["in_place"] == 0


@pytest.mark.parametrize("incremental", [False, True])
def test_checkpoints_have_what_is_on_the_device(tmp_path: Path, incremental: bool) -> None:
    optimizer = intentpm.optim.Adagrad(lr=0.5)
    with intentpm.init(device="emulated") as pm:
        table = pm.create_table(
            "t", KEYS, LENGTH, init=1.0, optimizer=optimizer, storage="tiered", device_memory="1KiB"
        )
        worker = pm.worker()
        for turn in range(3):
            worker.intent(table, np.arange(turn, KEYS, 3), worker.clock, worker.clock + 1)
            worker.wait_sync()  # acts on what is due
            hits = counts(table)["hits"]
            worker.push_grad(table, np.arange(turn, KEYS), np.ones((KEYS - turn, LENGTH), np.float32))
            assert counts(table)["hits"] > hits, "no row was written on the device"
            pm.save(tmp_path, incremental=incremental)
            worker.advance_clock()
        rows, state = worker.pull(table, np.arange(KEYS)), worker.pull_state(table, np.arange(KEYS))
    with intentpm.init(device="emulated") as pm:
        table = pm.create_table("t", KEYS, LENGTH, optimizer=optimizer, storage="tiered")
        worker = pm.worker()
        worker.intent(table, np.arange(0, KEYS, 2), 0, 5)
        pm.load(tmp_path)
        worker.wait_sync()
        np.testing.assert_array_equal(worker.pull(table, np.arange(KEYS)), rows)
        assert counts(table)["hits"] > 0
        np.testing.assert_array_equal(worker.pull_state(table, np.arange(KEYS))["sum"], state["sum"])


def test_by_default_a_table_has_half_of_what_is_free() -> None:
    with intentpm.init(device="emulated") as pm:
        small = pm.create_table("small", KEYS, LENGTH, storage="tiered")
        assert small.tier.seats == KEYS
        free = small.tier.rows.device.free_memory()
        large = pm.create_table("large", 10**7, LENGTH, storage="tiered")
        assert large.tier.seats == free // 2 // SEAT_BYTES


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"storage": "host", "device_memory": 100}, "device_memory=100 needs storage='tiered', not 'host'"),
        ({"storage": "gpu", "device_memory": "1GiB"}, "device_memory='1GiB' needs storage='tiered', not 'gpu'"),
        ({"storage": "tiered", "device_memory": SEAT_BYTES - 1}, f"one row takes {SEAT_BYTES} bytes"),
        ({"storage": "tiered", "device_memory": "much"}, "device_memory='much': needs bytes"),
        ({"storage": "tiered", "device_memory": 1.5}, "device_memory=1.5: needs a whole number"),
    ],
)
def test_what_cannot_be_made_is_refused(options: dict[str, Any], error: str) -> None:
    with intentpm.init(device="emulated") as pm, pytest.raises(intentpm.ConfigError, match=error):
        pm.create_table("t", KEYS, LENGTH, **options)


def test_a_job_that_names_no_room_is_refused() -> None:
    with pytest.raises(intentpm.ConfigError, match="device_memory=0: needs a positive number of bytes"):
        intentpm.init(device_memory=0)
