"""The public API on one rank, its error paths above all; and the errors of collective calls, on simulated ranks."""

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.budgets import budget_of, need_of
from support.simulation import simulate

import intentpm
from intentpm.runtime.manager import ParameterManager, spin_times_us
from intentpm.testing import run_ranks


@pytest.fixture
def pm() -> Iterator[Any]:
    with intentpm.init() as manager:
        yield manager


@pytest.fixture
def table(pm: Any) -> Any:
    return pm.create_table("t", 10, (2, 3), init=1.0)


@pytest.fixture
def worker(pm: Any) -> Any:
    return pm.worker()


ONES = np.ones((2, 2, 3), np.float32)


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        (0.0, np.zeros((5, 2))),
        (3, np.full((5, 2), 3.0)),
        (np.arange(10.0).reshape(5, 2), np.arange(10.0).reshape(5, 2)),
        (np.array([4.0, 5.0]), np.tile([4.0, 5.0], (5, 1))),
        (lambda keys: np.stack([keys, -keys], axis=1), np.stack([np.arange(5), -np.arange(5)], axis=1)),
    ],
    ids=["zero", "number", "table", "row", "callable"],
)
def test_init_fills_the_table(pm: Any, worker: Any, init: Any, expected: np.ndarray) -> None:
    table = pm.create_table("t", 5, 2, dtype="float64", init=init)
    assert np.array_equal(worker.pull(table, np.arange(5)), expected)


@pytest.mark.parametrize(
    ("init", "error"),
    [
        (np.zeros((4, 2)), intentpm.ShapeError),
        (np.zeros(3), intentpm.ShapeError),
        (lambda keys: np.zeros((1, 2)), intentpm.ShapeError),
        (np.zeros((5, 2), np.complex128), intentpm.DtypeError),
        (lambda keys: 1 / 0, ZeroDivisionError),
    ],
    ids=["wrong keys", "wrong row", "callable of wrong shape", "complex", "callable that raises"],
)
def test_an_init_that_does_not_fit_is_refused_and_the_name_stays_free(pm: Any, init: Any, error: type) -> None:
    with pytest.raises(error):
        pm.create_table("t", 5, 2, init=init)
    table = pm.create_table("t", 5, 2, init=6.0)
    assert (pm.worker().pull(table, np.arange(5)) == 6.0).all()


@pytest.mark.parametrize("num_keys", [0, -1, 2**31, 1.5, "10", None])
def test_num_keys_out_of_range_is_refused(pm: Any, num_keys: Any) -> None:
    with pytest.raises(intentpm.ShapeError, match="num_keys"):
        pm.create_table("t", num_keys)


@pytest.mark.parametrize("row_shape", [0, (2, 0), (-1,), (1.5,), ("a",), (1,) * 40])
def test_a_row_shape_that_is_none_is_refused(pm: Any, row_shape: Any) -> None:
    with pytest.raises(intentpm.ShapeError, match="row_shape"):
        pm.create_table("t", 10, row_shape)


def test_a_table_name_is_used_once(pm: Any, table: Any) -> None:
    with pytest.raises(intentpm.Error, match="'t' exists already"):
        pm.create_table("t", 10)


def test_a_dtype_that_no_table_can_hold_is_refused(pm: Any) -> None:
    with pytest.raises(intentpm.DtypeError, match="complex64"):
        pm.create_table("t", 10, dtype="complex64")


def test_memory_budget_is_kept() -> None:
    need = need_of(100, 16)
    with intentpm.init(memory_budget=budget_of([need, need_of(50, 16)])) as pm:
        pm.create_table("fits", 100, 16)
        arithmetic = (
            rf"needs {need} bytes .* 100 keys .* 100 rows \(64 of data\); {need} are in use.*INTENTPM_MEMORY_BUDGET"
        )
        with pytest.raises(intentpm.MemoryBudgetError, match=arithmetic):
            pm.create_table("too much", 100, 16)
        pm.create_table("fits too", 50, 16)


# -- arguments of accesses ---------------------------------------------------------------------------------------------


def test_keys_may_be_any_whole_numbers(table: Any, worker: Any) -> None:
    for keys in ([1, 1], (1, 2), np.array([3], np.uint8), np.array([4, 5], np.int32), np.arange(10)[::3], range(4), []):
        assert worker.pull(table, keys).shape == (len(keys), 2, 3)


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        (1, intentpm.ShapeError),
        ([[1, 2]], intentpm.ShapeError),
        ([1.0], intentpm.DtypeError),
        (np.array([True]), intentpm.DtypeError),
        (["1"], intentpm.DtypeError),
        (np.array([2**64 - 1], np.uint64), intentpm.KeyRangeError),
        ([10], intentpm.KeyRangeError),
        ([-1], intentpm.KeyRangeError),
    ],
)
def test_keys_that_are_none_are_refused(table: Any, worker: Any, keys: Any, error: type) -> None:
    with pytest.raises(error):
        worker.pull(table, keys)
    with pytest.raises(error):
        worker.intent(table, keys, 1)


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        (np.ones((2, 2, 3), np.float64), intentpm.DtypeError),
        (np.ones((2, 2, 3), np.int32), intentpm.DtypeError),
        (np.ones((3, 2, 3), np.float32), intentpm.ShapeError),
        (np.ones((2, 6), np.float32), intentpm.ShapeError),
        (np.ones((2, 3, 2), np.float32), intentpm.ShapeError),
        (1.0, intentpm.ShapeError),
        (None, intentpm.Error),
        ("x", intentpm.Error),
    ],
    ids=["float64", "int32", "too many", "flat", "transposed", "number", "None", "text"],
)
@pytest.mark.parametrize("call", ["push", "set", "push_async", "set_async"])
def test_rows_that_do_not_fit_are_refused_and_nothing_is_applied(
    table: Any, worker: Any, call: str, rows: Any, error: type
) -> None:
    with pytest.raises(error):
        getattr(worker, call)(table, [1, 2], rows)
    assert (worker.pull(table, np.arange(10)) == 1.0).all()


def test_rows_may_be_lists_or_strided(table: Any, worker: Any) -> None:
    worker.set(table, [1, 2], ONES.tolist())
    worker.push(table, [1, 2], np.asfortranarray(ONES))
    worker.push(table, [1, 2], np.ones((2, 2, 6), np.float32)[:, :, ::2])
    assert (worker.pull(table, [1, 2]) == 3.0).all()


def test_out_is_filled_and_returned(table: Any, worker: Any) -> None:
    out = np.zeros((2, 2, 3), np.float32)
    assert worker.pull(table, [1, 2], out=out) is out
    assert (out == 1.0).all()
    assert worker.pull_async(table, [1, 2], out=out).result() is out


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: np.zeros((3, 2, 3), np.float32), intentpm.ShapeError),
        (lambda: np.zeros((2, 2, 3), np.float64), intentpm.DtypeError),
        (lambda: np.zeros((2, 3, 2), np.float32).transpose(0, 2, 1), intentpm.ShapeError),
        (lambda: _read_only(np.zeros((2, 2, 3), np.float32)), intentpm.ShapeError),
        (lambda: [[0.0] * 3] * 4, intentpm.DtypeError),
    ],
    ids=["shape", "dtype", "strided", "read-only", "list"],
)
def test_an_out_that_cannot_be_used_is_refused(table: Any, worker: Any, make: Callable[[], Any], error: type) -> None:
    with pytest.raises(error):
        worker.pull(table, [1, 2], out=make())


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def test_async_calls_are_done_when_all_is_local(table: Any, worker: Any) -> None:
    push = worker.push_async(table, [1, 2], ONES)
    assert push.done()
    assert push.wait() is None
    assert push.result() is None
    pull = worker.pull_async(table, [1, 2])
    assert pull.done()
    assert (pull.result() == 2.0).all()
    worker.set_async(table, [1, 2], ONES).wait(timeout=1.0)
    assert (worker.pull(table, [1, 2]) == 1.0).all()
    worker.wait_sync()


def test_a_future_is_not_made_by_hand() -> None:
    from intentpm.runtime.futures import Future

    with pytest.raises(TypeError, match="made by a worker"):
        Future()


# -- intent and time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "end"), [(5, 5), (5, 4), (0, -1), (-3, -3)])
def test_an_empty_window_is_refused(table: Any, worker: Any, start: int, end: int) -> None:
    with pytest.raises(intentpm.WindowError, match="window"):
        worker.intent(table, [1], start, end)


def test_intents_past_near_far_and_repeated_are_accepted(table: Any, worker: Any) -> None:
    for start, end in ((-10, -5), (0, None), (0, 1), (3, 1000), (2**62, 2**62 + 1)):
        worker.intent(table, [1, 1, 2], start, end)
    assert [worker.advance_clock() for _ in range(3)] == [1, 2, 3]
    assert worker.clock == 3
    worker.wait_sync()
    assert (worker.pull(table, [1]) == 1.0).all()


# -- closed, forked, misused -------------------------------------------------------------------------------------------


def test_everything_raises_after_close() -> None:
    pm = intentpm.init()
    table, worker = pm.create_table("t", 10), pm.worker()
    pm.close()
    pm.close()
    for call in (
        lambda: worker.pull(table, [1]),
        lambda: worker.push(table, [1], np.ones(1, np.float32)),
        lambda: worker.intent(table, [1], 0),
        worker.wait_sync,
        pm.worker,
        pm.barrier,
        lambda: pm.create_table("u", 10),
        lambda: pm.allgather(b""),
    ):
        with pytest.raises(intentpm.ClosedError, match=r"intentpm\.init"):
            call()


def test_an_exception_in_the_with_block_comes_through() -> None:
    with pytest.raises(ZeroDivisionError), intentpm.init():
        raise ZeroDivisionError


def test_a_forked_child_is_told_so(pm: Any, table: Any, worker: Any) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            worker.pull(table, [1])
            answer = b"no error"
        except BaseException as error:
            answer = type(error).__name__.encode()
        os.write(writing, answer)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"ForkError"
    assert os.waitpid(child, 0)[1] == 0
    assert (worker.pull(table, [1]) == 1.0).all()


def test_a_table_of_another_manager_is_refused(table: Any, worker: Any) -> None:
    with intentpm.init() as other:
        other_table = other.create_table("t", 10, (2, 3))
        with pytest.raises(intentpm.Error, match="another parameter manager"):
            worker.pull(other_table, [1])


def test_one_rank_collectives(pm: Any) -> None:
    pm.barrier()
    assert pm.allgather(b"mine") == [b"mine"]
    assert (pm.rank, pm.size) == (0, 1)


def test_stats_count_what_was_accessed(pm: Any, table: Any, worker: Any) -> None:
    worker.pull(table, [1, 2, 3])
    pm.worker().push(table, [1, 1], ONES)
    stats = pm.stats()["tables"]["t"]
    assert (stats["local"], stats["replica"], stats["remote"]) == (5, 0, 0)
    assert stats["rows"] == 10 * 32


def test_count_local_says_how_many_keys_are_here(pm: Any, table: Any) -> None:
    assert pm.count_local(table, [1, 1, 9]) == 3
    assert pm.count_local(table, []) == 0
    for bad in (-1, table.num_keys):
        with pytest.raises(intentpm.KeyRangeError, match=f"key {bad} is not in table 't'"):
            pm.count_local(table, [0, bad])


def test_count_local_counts_owned_keys_and_replicas() -> None:
    with simulate(2, seed=5) as job:
        tables = job.create_table("t", 10)
        keys = np.arange(10)
        assert sum(pm.count_local(tables[pm.rank], keys) for pm in job.ranks) == 10
        for pm in job.ranks:
            worker = pm.worker()

            def intend(worker: Any = worker, table: Any = tables[pm.rank]) -> None:
                worker.intent(table, keys, 0, 5)
                worker.wait_sync()

            job.spawn(pm.rank, intend)
            job.run()
            assert pm.count_local(tables[pm.rank], keys) == 10


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"management": "best"},
        {"timing": "soon"},
        {"peer_timeout": 0},
        {"peer_timeout": float("nan")},
        {"start_timeout": -1.0},
        {"spin_us": -1.0},
        {"memory_budget": 0},
        {"port": 70000},
        {"transport": "pigeon"},
    ],
    ids=str,
)
def test_an_option_that_cannot_be_used_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(intentpm.ConfigError, match=next(iter(options))):
        intentpm.init(**options)


def test_a_variable_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTENTPM_PEER_TIMEOUT", "soon")
    with pytest.raises(intentpm.ConfigError, match="INTENTPM_PEER_TIMEOUT='soon'"):
        intentpm.init()


@pytest.mark.parametrize(
    ("asked", "cores", "local_ranks", "expected"),
    [(7.0, 1, 1, (7.0, 7.0)), (None, 8, 4, (200.0, 50.0)), (None, 4, 4, (60.0, 20.0)), (None, 2, 4, (5.0, 0.0))],
)
def test_spin_follows_the_cores(asked: Any, cores: int, local_ranks: int, expected: tuple[float, float]) -> None:
    assert spin_times_us(asked, cores, local_ranks) == expected


# -- collective calls that do not fit together, on simulated ranks -----------------------------------------------------


def outcomes(size: int, *calls: Callable[[ParameterManager], Any]) -> list[BaseException | None]:
    """What each rank's call raised; rank i makes the i-th call, further ranks the last."""

    def attempt(manager: ParameterManager) -> BaseException | None:
        try:
            calls[min(manager.rank, len(calls) - 1)](manager)
        except intentpm.Error as error:
            return error
        return None

    with simulate(size, 3) as job:
        return job.on_every_rank(attempt)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"name": "u"}, "name"),
        ({"num_keys": 11}, "num_keys"),
        ({"row_shape": (3,)}, "row_shape"),
        ({"dtype": "float64"}, "dtype"),
        ({"init": 1.0}, "init"),
    ],
    ids=str,
)
def test_a_table_made_differently_raises_on_every_rank(other: dict[str, Any], what: str) -> None:
    arguments: dict[str, Any] = {"name": "t", "num_keys": 10, "row_shape": (2,)}
    errors = outcomes(3, lambda pm: pm.create_table(**arguments), lambda pm: pm.create_table(**{**arguments, **other}))
    assert [type(error) for error in errors] == [intentpm.CollectiveMismatchError] * 3
    assert all(f"create_table: {what} is" in str(error) for error in errors)


def test_different_collective_calls_raise_on_every_rank() -> None:
    errors = outcomes(3, lambda pm: pm.barrier(), lambda pm: pm.create_table("t", 10))
    assert [type(error) for error in errors] == [intentpm.CollectiveMismatchError] * 3


def test_a_table_that_fails_on_one_rank_raises_on_all_and_names_it() -> None:
    def init(keys: np.ndarray) -> np.ndarray:
        return np.zeros(len(keys) + (keys[0] == first_of_rank_1), np.float32)

    from intentpm.runtime._native.store import Table

    first_of_rank_1 = Table("t", 0, 10, (), "float32", 1, 3).home_keys()[0]
    errors = outcomes(3, lambda pm: pm.create_table("t", 10, init=init))
    assert isinstance(errors[1], intentpm.ShapeError)
    for rank in (0, 2):
        assert type(errors[rank]) is intentpm.Error
        assert "rank 1 failed" in str(errors[rank])


def test_a_rank_that_leaves_while_others_wait_is_named() -> None:
    def wait_for_all(pm: ParameterManager) -> None:
        try:
            pm.barrier()
        finally:
            pm.close()

    errors = outcomes(3, ParameterManager.close, wait_for_all)
    assert errors[0] is None
    for error in errors[1:]:
        assert isinstance(error, intentpm.CollectiveMismatchError)
        assert "rank 0 has closed" in str(error)


# -- construction ------------------------------------------------------------------------------------------------------


def test_a_manager_whose_construction_is_interrupted_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def start_and_be_interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "intentpm-progress":
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_ranks(2, lambda pm: None, transport="tcp")
    assert not [thread for thread in threading.enumerate() if thread.name == "intentpm-progress"]
