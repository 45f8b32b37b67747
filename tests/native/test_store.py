"""The local store through a worker of a one-rank job: every row operation against numpy, alone and among threads."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import intentpm
from intentpm.foundation.errors import DtypeError, KeyRangeError, ShapeError
from intentpm.runtime._native.slabs import stride_for
from intentpm.runtime._native.store import Table, resolve_dtype

SIZES = (0, 1, 10, 33, 65, 2**16 + 1)
DTYPES = ("float32", "float64", "float16", "bfloat16", "int32", "int64")
ORDERS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "sorted": lambda draw, count, keys: np.sort(draw.permutation(keys)[:count]),
    "reversed": lambda draw, count, keys: np.sort(draw.permutation(keys)[:count])[::-1].copy(),
    "duplicated": lambda draw, count, keys: draw.integers(0, max(keys // 3, 1), count),
}


@pytest.fixture
def pm() -> Iterator[Any]:
    with intentpm.init() as manager:
        yield manager


def whole_numbers(draw: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Small enough that sums of many are exact, in every dtype."""
    return draw.integers(-2, 3, shape).astype(resolve_dtype(dtype))


# -- against numpy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", SIZES)
def test_pull_push_and_set_do_what_numpy_does(pm: Any, count: int, order: str) -> None:
    draw = np.random.default_rng(count)
    num_keys = max(count, 1) + 7
    initial = draw.integers(-9, 9, (num_keys, 5)).astype(np.float32)
    table, worker = pm.create_table("t", num_keys, 5, init=initial), pm.worker()
    model = initial.copy()
    keys = ORDERS[order](draw, count, num_keys)
    deltas = draw.integers(-9, 9, (count, 5)).astype(np.float32)
    worker.push(table, keys, deltas)
    np.add.at(model, keys, deltas)
    assert np.array_equal(worker.pull(table, keys), model[keys])
    values = np.repeat(keys[:, None], 5, axis=1).astype(np.float32)
    worker.set(table, keys, values)
    model[keys] = values
    everything = np.arange(num_keys)
    assert np.array_equal(worker.pull(table, everything), model)
    assert np.array_equal(table.rows_here(everything), model)


@pytest.mark.parametrize("row_items", [1, 2, 3, 7, 8, 16, 17, 32, 64, 100, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_every_length_and_dtype(pm: Any, dtype: str, row_items: int) -> None:
    draw = np.random.default_rng(row_items)
    table, worker = pm.create_table("t", 40, row_items, dtype=dtype), pm.worker()
    model = np.zeros((40, row_items), resolve_dtype(dtype))
    for _ in range(3):
        keys = draw.integers(0, 40, 60)
        deltas = whole_numbers(draw, (60, row_items), dtype)
        worker.push(table, keys, deltas)
        for key, delta in zip(keys, deltas, strict=True):
            model[key] += delta
    assert np.array_equal(worker.pull(table, np.arange(40)), model)


@pytest.mark.parametrize(("dtype", "reference"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_sixteen_bit_sums_round_as_the_reference_does(pm: Any, dtype: str, reference: Any) -> None:
    """All 65,536 values, subnormals, infinities and NaNs among them, each plus random others."""
    draw = np.random.default_rng(1)
    table, worker = pm.create_table("t", 64, 1024, dtype=dtype), pm.worker()
    keys = np.arange(64)
    values = np.arange(2**16, dtype=np.uint16).view(reference).reshape(64, 1024)
    for _ in range(20):
        deltas = draw.integers(0, 2**16, (64, 1024), dtype=np.uint16).view(reference)
        worker.set(table, keys, values)
        worker.push(table, keys, deltas)
        with np.errstate(all="ignore"):
            expected = values + deltas
        found = worker.pull(table, keys)
        same = (found.view(np.uint16) == expected.view(np.uint16)) | (np.isnan(found) & np.isnan(expected))
        if not same.all():
            row, item = np.argwhere(~same)[0]
            pytest.fail(
                f"{dtype}: {values[row, item]} + {deltas[row, item]} is {expected[row, item]}, not {found[row, item]}"
            )


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_integers_wrap(pm: Any, dtype: str) -> None:
    largest = np.iinfo(dtype).max
    table, worker = pm.create_table("t", 3, dtype=dtype, init=int(largest)), pm.worker()
    worker.push(table, np.array([1, 1]), np.array([1, 1], dtype))
    assert worker.pull(table, np.arange(3)).tolist() == [largest, np.iinfo(dtype).min + 1, largest]


# -- what must not happen ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, 10, 2**31, 2**40, -(2**40)])
@pytest.mark.parametrize("position", [0, 5, 9])
def test_a_key_out_of_range_applies_nothing(pm: Any, bad: int, position: int) -> None:
    table, worker = pm.create_table("t", 10, 2, init=7.0), pm.worker()
    keys = np.arange(10)
    keys[position] = bad
    ones = np.ones((10, 2), np.float32)
    for call in (
        lambda: worker.push(table, keys, ones),
        lambda: worker.set(table, keys, ones),
        lambda: worker.push_async(table, keys, ones),
        lambda: worker.set_async(table, keys, ones),
        lambda: worker.pull(table, keys),
        lambda: worker.intent(table, keys, 0),
    ):
        with pytest.raises(KeyRangeError, match=rf"key {bad} \(position {position}\).*'t'.* 0 to 9"):
            call()
    assert (worker.pull(table, np.arange(10)) == 7.0).all()


def run_for(seconds: float, *works: Callable[[], None]) -> None:
    """Repeats each work on a thread of its own; raises what one of them raised."""
    failures: list[BaseException] = []
    until = time.monotonic() + seconds

    def repeat(work: Callable[[], None]) -> None:
        try:
            while time.monotonic() < until and not failures:
                work()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 30)
        assert not thread.is_alive(), "a thread of the store test did not end"
    if failures:
        raise failures[0]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_pushes_of_many_threads_to_the_same_rows_all_count(pm: Any, dtype: str) -> None:
    table = pm.create_table("t", 8, 16, dtype=dtype)
    pushed = np.zeros((3, 8), np.int64)

    def pusher(number: int) -> Callable[[], None]:
        worker, draw = pm.worker(), np.random.default_rng(number)

        def push() -> None:
            keys = draw.integers(0, 8, 50)
            worker.push(table, keys, np.ones((50, 16), dtype))
            np.add.at(pushed[number], keys, 1)

        return push

    run_for(0.5, *(pusher(number) for number in range(3)))
    found = pm.worker().pull(table, np.arange(8))
    assert np.array_equal(found, np.repeat(pushed.sum(axis=0)[:, None], 16, axis=1))
    assert pushed.sum() > 1000, "too few pushes to mean anything"


@pytest.mark.parametrize("row_items", [2, 64, 1000])
def test_readers_never_see_a_torn_row(pm: Any, row_items: int) -> None:
    table = pm.create_table("t", 4, row_items, dtype="float64")
    # Above 32 keys a call releases the GIL: only then do threads really overlap.
    keys = np.tile(np.arange(4), 16)
    seen = [0]

    def writer(call: str, value: float) -> Callable[[], None]:
        worker, rows = pm.worker(), np.full((len(keys), row_items), value)
        return lambda: getattr(worker, call)(table, keys, rows)

    def reader() -> Callable[[], None]:
        worker, rows = pm.worker(), np.empty((len(keys), row_items))

        def read() -> None:
            worker.pull(table, keys, out=rows)
            assert (rows == rows[:, :1]).all(), "torn row"
            seen[0] += 1

        return read

    works = (writer("push", 1.0), writer("set", 5.0), reader(), reader())
    for _ in range(40):  # a busy machine may give the readers little time
        run_for(0.4, *works)
        if seen[0] > 10:
            return
    pytest.fail(f"only {seen[0]} reads in 40 runs: too few to mean anything")


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_homes_divide_the_keys_evenly(size: int) -> None:
    tables = [Table("t", 0, 10_000, (1,), "float32", rank, size) for rank in range(size)]
    homes = [table.home_keys() for table in tables]
    assert np.array_equal(np.sort(np.concatenate(homes)), np.arange(10_000))
    counts = [len(keys) for keys in homes]
    assert max(counts) - min(counts) <= 0.1 * 10_000 / size
    for rank, table in enumerate(tables):
        assert (table.owners()[homes[rank]] == rank).all()
        assert (table.epochs() == 0).all()


def test_only_adopted_keys_are_here() -> None:
    table = Table("t", 0, 20, (2,), "float32", 0, 2)
    keys = np.array([3, 17, 5])
    table.adopt(keys, np.arange(6, dtype=np.float32).reshape(3, 2))
    assert table.owned_keys().tolist() == [3, 5, 17]
    assert table.replica_keys().tolist() == []
    assert table.rows_here(keys).tolist() == [[0, 1], [2, 3], [4, 5]]
    for key in (4, 20, -1):
        with pytest.raises(KeyRangeError, match=f"key {key} .*rank 0"):
            table.rows_here(np.array([3, key]))


def test_adopt_refuses_rows_that_do_not_fit() -> None:
    table = Table("t", 0, 20, (2,), "float32", 0, 1)
    for rows in (np.zeros((3, 2), np.float64), np.zeros((2, 2), np.float32), np.zeros((3, 3), np.float32)):
        with pytest.raises(ShapeError):
            table.adopt(np.arange(3), rows)


@pytest.mark.parametrize("dtype", ["uint8", "complex64", ">f4", "object", "no such dtype", "float128"])
def test_a_dtype_no_table_can_hold_is_refused(dtype: str) -> None:
    with pytest.raises(DtypeError):
        resolve_dtype(dtype)


@pytest.mark.parametrize(
    ("row_bytes", "stride"), [(1, 1), (2, 2), (3, 4), (20, 32), (63, 64), (64, 64), (65, 128), (256, 256)]
)
def test_no_small_row_straddles_a_cache_line(row_bytes: int, stride: int) -> None:
    assert stride_for(row_bytes) == stride
