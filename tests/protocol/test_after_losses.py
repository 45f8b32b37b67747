"""What calls do, and say, in a job that has lost a rank and goes on (docs/membership.md)."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.losses import form_without
from support.simulation import Simulation, simulate

from intentpm.foundation.errors import (
    CheckpointError,
    CollectiveMismatchError,
    ConfigError,
    Error,
    MemoryBudgetError,
    RankLost,
    WaitTimeoutError,
)
from intentpm.runtime.config import Config
from intentpm.runtime.optimisers import Adagrad
from intentpm.runtime.reforming import _choose

KEYS = 60


@pytest.fixture
def job() -> Iterator[Simulation]:
    with simulate(4, 11, Config(on_loss="continue"), max_virtual_s=60.0) as job:
        yield job


def raised(job: Simulation, call: Callable[[Any], Any]) -> list[BaseException]:
    """What a call raises on each rank."""

    def make(manager: Any) -> BaseException:
        with pytest.raises((Error, ValueError)) as caught:
            call(manager)
        return caught.value

    return job.on_every_rank(make)


@pytest.mark.parametrize("lost", [0, 2])
def test_each_worker_is_told_once(job: Simulation, lost: int) -> None:
    tables = job.create_table("t", KEYS, 2, init=3.0)
    workers = {manager.rank: [manager.worker(), manager.worker()] for manager in job.ranks}
    owned = tables[lost].owned_keys()
    form_without(job, lost, tell=False)

    def access(manager: Any) -> None:
        for worker in workers[manager.rank]:
            with pytest.raises(RankLost) as caught:
                worker.pull(tables[manager.rank], [0])
            said = caught.value
            assert said.ranks == [lost]
            assert said.living == manager.living == [rank for rank in range(4) if rank != lost]
            assert np.array_equal(np.sort(np.concatenate([of.keys for of in said.rolled_back])), owned)
            assert {entry.source for entry in said.rolled_back} == {"init"}
            assert (worker.pull(tables[manager.rank], np.arange(KEYS)) == 3.0).all()
        manager.barrier()

    job.on_every_rank(access)


def test_a_collective_call_tells_the_workers_that_its_thread_uses(job: Simulation) -> None:
    tables = job.create_table("t", KEYS, 2)

    def tell(manager: Any) -> None:
        table = tables[manager.rank]
        mine, of_another_thread = manager.worker(), manager.worker()
        mine.pull(table, table.owned_keys())
        with pytest.raises(RankLost):
            manager.barrier()
        manager.barrier()
        manager.barrier()
        mine.pull(table, range(KEYS))
        with pytest.raises(RankLost):
            of_another_thread.pull(table, range(KEYS))
        of_another_thread.pull(table, range(KEYS))
        manager.barrier()

    for manager in job.ranks[1:]:
        job.spawn(manager.rank, lambda manager=manager: tell(manager))
    form_without(job, 0, tell=False, after_us=100.0)


def test_who_comes_after_a_loss_is_told_where_nobody_was(job: Simulation) -> None:
    tables = job.create_table("t", KEYS, 2)
    form_without(job, 1, tell=False)

    def come(manager: Any) -> None:
        worker = manager.worker()
        with pytest.raises(RankLost):
            worker.pull(tables[manager.rank], [0])
        manager.barrier()
        manager.worker().pull(tables[manager.rank], [0])

    job.on_every_rank(come)


def test_tables_that_are_made_after_a_loss_are_of_those_that_are_left(job: Simulation) -> None:
    form_without(job, 1)
    tables = job.create_table("new", KEYS, 2, init=lambda keys: np.repeat(keys[:, None], 2, 1).astype("float32"))
    assert sum(len(table.owned_keys()) for table in tables) == KEYS

    def access(manager: Any) -> None:
        with manager.worker() as worker:
            rows = worker.pull(manager._tables["new"], np.arange(KEYS))
            assert (rows[:, 0] == np.arange(KEYS)).all()
            worker.intent(manager._tables["new"], np.arange(KEYS), 0, 2)
            worker.advance_clock()
            worker.push(manager._tables["new"], np.arange(KEYS), np.ones((KEYS, 2), "float32"))
            worker.wait_sync()
        manager.barrier()

    job.on_every_rank(access)
    job.settle()
    job.checker.check_quiet()


def test_errors_name_ranks_by_their_numbers(job: Simulation, tmp_path: Path) -> None:
    form_without(job, 0)

    def make(manager: Any) -> None:
        def init(keys: Any) -> Any:
            if manager.rank == 2:
                raise ValueError("no rows")
            return np.zeros((len(keys), 2))

        manager.create_table("t", KEYS, 2, init=init)

    errors = raised(job, make)
    assert [("rank 2 failed with" in str(error)) or isinstance(error, ValueError) for error in errors] == [True] * 3
    assert "rank 2 failed with" in str(errors[0])
    errors = raised(job, lambda manager: manager.barrier() if manager.rank == 3 else manager.allgather(b""))
    assert all(isinstance(error, CollectiveMismatchError) for error in errors)
    assert "rank 1 called allgather() while rank 3 called barrier()" in str(errors[0])


def test_a_checkpoint_is_looked_at_whole_by_those_that_are_left(job: Simulation, tmp_path: Path) -> None:
    job.create_table("t", KEYS, 2, init=5.0)
    job.on_every_rank(lambda manager: manager._saves.begin(order(manager, tmp_path), lambda run: run()))
    form_without(job, 3)
    job.on_every_rank(lambda manager: manager.load(tmp_path))
    for file in sorted((tmp_path / "000001").glob("*.safetensors")):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        errors = raised(job, lambda manager: manager.load(tmp_path))
        assert all(isinstance(error, CheckpointError) and file.name in str(error) for error in errors)
        file.write_bytes(whole)


def test_a_damaged_checkpoint_is_not_what_rows_come_back_from(job: Simulation, tmp_path: Path) -> None:
    tables = job.create_table("t", KEYS, 2, init=5.0)
    for _ in range(2):
        job.on_every_rank(lambda manager: manager._saves.begin(order(manager, tmp_path), lambda run: run()))
    file = sorted((tmp_path / "000002").glob("*.safetensors"))[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    lost = tables[3].owned_keys()
    form_without(job, 3)
    said = job.ranks[0].going_on.loss_between(0, 1)
    assert {(entry.source, entry.path.name) for entry in said.rolled_back} == {("checkpoint", "000001")}
    assert np.array_equal(np.sort(np.concatenate([entry.keys for entry in said.rolled_back])), lost)


def order(manager: Any, folder: Path) -> Any:
    return manager._save_order(folder, None, False, None, None, None)


def test_who_has_not_come_is_known_without_rank_0(job: Simulation) -> None:
    form_without(job, 0)

    def come_late(manager: Any) -> None:
        if manager.rank == 2:
            job.network.pause(200_000.0)
        else:
            with pytest.raises(WaitTimeoutError, match=re.escape("ranks [2] have not come")):
                manager.barrier(timeout=0.1)
        manager.barrier()

    job.on_every_rank(come_late)
    assert all(manager.living == [1, 2, 3] for manager in job.ranks)


def test_a_save_that_was_given_up_before_a_loss_does_not_stop_later_ones(job: Simulation, tmp_path: Path) -> None:
    job.create_table("t", KEYS, 2, init=5.0)
    alone = job.ranks[2]._save_order(tmp_path, None, False, None, None, 0.1)
    job.spawn(2, lambda: job.ranks[2]._saves.begin(alone, lambda run: run()))
    job.run()
    assert isinstance(job.ranks[2]._saves._last._error, WaitTimeoutError)
    form_without(job, 0)
    saves = job.on_every_rank(lambda manager: manager._saves.begin(order(manager, tmp_path), lambda run: run()))
    assert len({saving.result() for saving in saves}) == 1


def test_who_fails_while_ranks_form_anew_is_heard() -> None:
    """Others may not have taken its epoch yet."""
    for seed in range(60):
        with simulate(4, seed, Config(on_loss="continue"), max_virtual_s=60.0) as job:
            _fail_while_forming(job)


def _fail_while_forming(job: Simulation) -> None:
    broken: list[int] = []

    def make(manager: Any) -> None:
        def init(keys: Any) -> Any:
            if manager.rank in broken:
                raise ValueError("no rows")
            return np.zeros((len(keys), 2))

        manager.create_table("t", KEYS, 2, init=init)

    job.on_every_rank(make)
    broken.append(2)
    began_ns = job.network.now
    assert str(form_without(job, 1)[2]) == "no rows"
    assert [manager.living for manager in job.ranks] == [[0, 3], [0, 3]]
    assert job.network.now - began_ns < 1e9, "it was not heard: waited for"


@pytest.mark.parametrize("at_us", range(5, 300, 15))
def test_a_loss_while_saving_is_told_once(tmp_path: Path, at_us: float) -> None:
    with simulate(4, 3, Config(on_loss="continue"), max_virtual_s=60.0) as job:
        tables = job.create_table("t", KEYS, 2)

        def work(manager: Any, saves: bool) -> None:
            worker, told = manager.worker(), 0
            while job.network.now < 1e9:
                try:
                    worker.push(tables[manager.rank], range(KEYS), [[1.0, 1.0]] * KEYS)
                    with suppress(CheckpointError):
                        if saves:
                            manager.save(tmp_path, timeout=5.0)
                except RankLost:
                    told += 1
                except Error:
                    assert manager.rank == 3
                    return
                job.network.pause(20_000.0 if saves else 1.0 if job.network.now < 1e6 else 5000.0)
            assert told == 1

        for manager in job.ranks:
            for saves in (True, False):
                job.spawn(manager.rank, lambda manager=manager, saves=saves: work(manager, saves))
        form_without(job, 3, tell=False, after_us=at_us)


def test_a_checkpoint_of_some_tables_does_not_hide_one_of_the_others(job: Simulation, tmp_path: Path) -> None:
    for name in ("one", "two"):
        job.create_table(name, KEYS, 2, init=5.0)
    job.on_every_rank(lambda manager: manager.save(tmp_path / "all"))
    job.on_every_rank(lambda manager: manager.save(tmp_path / "two", ["two"]))
    form_without(job, 3)
    told = {entry.table: entry.path for entry in job.ranks[0].going_on.loss_between(0, 1).rolled_back}
    assert told == {"one": tmp_path / "all" / "000001", "two": tmp_path / "two" / "000001"}


def test_a_table_given_up_before_a_loss_does_not_stand_in_the_way_of_the_next(job: Simulation) -> None:
    job.create_table("t", KEYS, 2, init=5.0)

    def give_up(manager: Any) -> None:
        if manager.rank != 3:
            with pytest.raises(WaitTimeoutError):
                manager.create_table("given up", KEYS, 2, timeout=0.01)

    job.on_every_rank(give_up)
    form_without(job, 3)
    tables = job.create_table("given up", KEYS, 2, init=7.0)
    form_without(job, 1)
    told = job.ranks[0].going_on.loss_between(1, 2)
    assert {entry.table for entry in told.rolled_back} == {"t", "given up"}

    def read(manager: Any) -> None:
        assert (manager.worker().pull(tables[manager.rank], range(KEYS)) == 7.0).all()
        manager.barrier()

    job.on_every_rank(read)


def test_a_table_that_the_others_have_made_can_be_had_after_a_loss(job: Simulation) -> None:
    """It was given up here just before its answer came."""

    def make(manager: Any) -> None:
        if manager.rank == 2:
            with pytest.raises(WaitTimeoutError):
                manager.create_table("t", KEYS, 2, init=5.0, timeout=0.001)
        else:
            job.network.pause(2000.0)
            manager.create_table("t", KEYS, 2, init=5.0)

    job.on_every_rank(make)
    form_without(job, 3)

    def read(manager: Any) -> None:
        table = manager._tables["t"] if manager.rank != 2 else manager.create_table("t", KEYS, 2, init=5.0)
        assert (manager.worker().pull(table, range(KEYS)) == 5.0).all()
        manager.barrier()

    job.on_every_rank(read)


@pytest.mark.parametrize("kind", ["checkpoint", "replica"])
def test_what_optimizers_keep_comes_back(tmp_path: Path, kind: str) -> None:
    with simulate(4, 11, Config(on_loss="continue", management="replicate"), max_virtual_s=60.0) as job:
        _lose_adagrad_rows(job, tmp_path, kind)


def _lose_adagrad_rows(job: Simulation, tmp_path: Path, kind: str) -> None:
    keys = np.arange(KEYS)
    tables = job.create_table("t", KEYS, 2, optimizer=Adagrad(lr=0.1))
    workers = {manager.rank: manager.worker() for manager in job.ranks}
    lost = tables[3].owned_keys()

    def train(manager: Any) -> dict[str, np.ndarray]:
        worker, table = workers[manager.rank], tables[manager.rank]
        if kind == "replica" and manager.rank == 1:
            worker.intent(table, keys, 0, 1000)
            worker.advance_clock()
        manager.barrier()
        worker.push_grad(table, keys, np.full((KEYS, 2), 1.0 + manager.rank, "float32"))
        worker.wait_sync()
        manager.barrier()
        state: dict[str, np.ndarray] = {"weights": worker.pull(table, keys), **worker.pull_state(table, keys)}
        manager.barrier()
        if kind == "checkpoint":
            manager.save(tmp_path)
            worker.push_grad(table, lost, np.ones((len(lost), 2), "float32"))
        return state

    expected = job.on_every_rank(train)[0]
    form_without(job, 3)
    restored = [entry for entry in job.ranks[0].going_on.loss_between(0, 1).rolled_back if entry.source == kind]
    found = np.concatenate([entry.keys for entry in restored])
    assert len(found)

    def check(manager: Any) -> None:
        worker, table = manager.worker(), tables[manager.rank]
        with suppress(RankLost):
            worker.pull(table, found)
        assert np.allclose(worker.pull(table, found), expected["weights"][found])
        for name, values in worker.pull_state(table, found).items():
            if kind == "checkpoint":
                assert np.allclose(values, expected[name][found]), name
            else:  # it may be older than the weights
                assert (values <= expected[name][found]).all(), name

    job.on_every_rank(check)


@pytest.mark.parametrize("missing_rows", [0, 1])
def test_rows_that_are_taken_over_have_to_fit_into_the_budget(missing_rows: int) -> None:
    """Rank 1 takes over what rank 0 owned, and gives up all copies for it; or fails, where that would not be enough."""
    with simulate(4, 11, Config(on_loss="continue", management="replicate"), max_virtual_s=60.0) as job:
        tables = job.create_table("t", KEYS, 2, init=3.0)
        worker, kept = job.ranks[1].worker(), np.setdiff1d(np.arange(KEYS), tables[0].owned_keys())

        def copy(manager: Any) -> None:
            if manager.rank == 1:
                worker.intent(tables[1], kept, 0, 1000)
                worker.advance_clock()

        job.on_every_rank(copy)
        job.settle()
        assert len(tables[1].replica_keys())
        need, owned = tables[1].need(), len(tables[1].owned_keys()) + len(tables[0].owned_keys())
        taker = job.ranks[1]
        budget = taker._engine.budget
        budget.limit_bytes, budget.table_bytes = 1 << 40, need["fixed"] + (owned - missing_rows) * need["row"]
        raised = form_without(job, 0)
        if missing_rows:
            assert isinstance(raised[1], MemoryBudgetError)
            assert re.search(r"'t' needs \d+ bytes more .* \d+ rows of ranks that were lost; ", str(raised[1]))
            return
        assert not raised
        job.settle()
        assert len(tables[1].owned_keys()) == owned
        assert not len(tables[1].replica_keys())
        assert taker._memory.taken() <= budget.table_bytes


def test_news_that_were_lost_with_who_handed_a_key_over_come_from_its_owner() -> None:
    """Rank 2 tells rank 1 what was written, in vain, gives the key to rank 0, and dies."""
    with simulate(3, 5, Config(on_loss="continue"), max_virtual_s=60.0) as job:
        tables = job.create_table("t", KEYS, 2)
        key = tables[2].owned_keys()[:1]
        workers = [manager.worker() for manager in job.ranks]

        def intend(manager: Any) -> None:
            if manager.rank > 0:
                workers[manager.rank].intent(tables[manager.rank], key, 0, 1000)
                workers[manager.rank].advance_clock()

        def write_and_give(manager: Any) -> None:
            if manager.rank == 2:
                workers[2].push(tables[2], key, [[1.0, 1.0]])
            elif manager.rank == 0:
                workers[0].intent(tables[0], key, 0, 1000)
                workers[0].advance_clock()

        job.on_every_rank(intend)
        job.settle()
        assert key[0] in tables[1].replica_keys()
        assert key[0] in tables[2].owned_keys()
        job.network.cut(1, 2)
        job.hand_over(True)
        job.on_every_rank(write_and_give)
        job.settle()
        assert key[0] in tables[0].owned_keys()
        assert key[0] in tables[1].replica_keys()
        form_without(job, 2)

        def read(manager: Any) -> None:
            with suppress(RankLost):
                workers[manager.rank].wait_sync()
            workers[manager.rank].wait_sync()
            assert (workers[manager.rank].pull(tables[manager.rank], key) == 1.0).all()

        job.on_every_rank(read)


def test_of_equal_copies_one_whose_state_is_as_new_comes_first() -> None:
    lags = 0x80000000
    versions = {0: np.array([5 | lags, 6 | lags, -1]), 1: np.array([5, 5, -1]), 2: np.array([5, 5, 2])}
    chosen, newest = _choose(versions, oldest=False)
    assert chosen.tolist() == [1, 0, 2]
    assert (newest & 0xFFFFFFF).tolist() == [5, 6, 2]


def test_rows_on_a_device_are_refused(job: Simulation) -> None:
    errors = raised(job, lambda manager: manager.create_table("t", KEYS, 2, storage="gpu"))
    assert all(isinstance(error, ConfigError) and "rows on a device" in str(error) for error in errors)


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ({"sync": "exact"}, "needs the gradients of every rank"),
        ({"storage": "gpu"}, "rows on a device"),
        ({"storage": "tiered"}, "rows on a device"),
        ({"transport": "ucx"}, "which UCX cannot repair"),
    ],
)
def test_what_cannot_go_on_is_refused_at_once(option: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Config(on_loss="continue", **option)
