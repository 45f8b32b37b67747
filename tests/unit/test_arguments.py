"""Keys, rows, ``init`` and numbers in all the forms people have them: what fits is taken, what would change is
refused, and
every rank says the same of it, however many there are."""

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.simulation import simulate

import intentpm
from intentpm.runtime.manager import ParameterManager

KEYS, ROW = 10, (4,)
BIG = 2**40


def torch() -> Any:
    return pytest.importorskip("torch")


def bfloat16() -> Any:
    return pytest.importorskip("ml_dtypes").bfloat16


def by_key(*row_shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Rows that hold their key."""
    return np.broadcast_to(np.arange(KEYS).reshape(KEYS, *(1 for _ in row_shape)), (KEYS, *row_shape)).astype(dtype)


def outcomes(size: int, **arguments: Any) -> list[Any]:
    """What ``create_table`` came to on each rank: the rows, or the error."""

    def attempt(pm: ParameterManager) -> Any:
        try:
            table = pm.create_table("t", **arguments)
        except Exception as error:
            return error
        return pm.worker().pull(table, np.arange(table.num_keys))

    with simulate(size, 3) as job:
        return job.on_every_rank(attempt)


def rows_made(size: int, **arguments: Any) -> np.ndarray:
    made = outcomes(size, **arguments)
    assert all(isinstance(rows, np.ndarray) for rows in made), made
    for rows in made[1:]:
        assert (rows == made[0]).all()
    return np.asarray(made[0])


def one_error(**arguments: Any) -> Exception:
    """The error of every rank of jobs of 1, 2 and 4: the same type, the same words."""
    errors = [error for size in (1, 2, 4) for error in outcomes(size, **arguments)]
    assert {(type(error), str(error)) for error in errors} == {(type(errors[0]), str(errors[0]))}, errors
    return errors[0]  # type: ignore[no-any-return]


# -- init that fits ----------------------------------------------------------------------------------------------------

FITTING: dict[str, Callable[[Path], Any]] = {
    "array": lambda _: by_key(4),
    "float64": lambda _: by_key(4, dtype=np.float64),
    "integers": lambda _: by_key(4, dtype=np.int64),
    "other byte order": lambda _: by_key(4, dtype=">f4"),
    "strided": lambda _: np.repeat(by_key(4), 2, axis=1)[:, ::2],
    "backwards": lambda _: by_key(4)[::-1].copy()[::-1],
    "list": lambda _: by_key(4).tolist(),
    "list of arrays": lambda _: list(by_key(4)),
    "memory map": lambda folder: mapped(folder, by_key(4)),
    "view of a memory map": lambda folder: np.asarray(mapped(folder, by_key(4)))[:],
    "tensor": lambda _: torch().from_numpy(by_key(4)),
    "tensor that requires grad": lambda _: torch().from_numpy(by_key(4)).requires_grad_(),
    "bfloat16 tensor": lambda _: torch().from_numpy(by_key(4)).bfloat16(),
    "transposed tensor": lambda _: torch().from_numpy(by_key(4).T.copy()).T,
    "callable": lambda _: lambda keys: np.repeat(keys[:, None], 4, axis=1).astype(np.float32),
    "callable of tensors": lambda _: lambda keys: torch().from_numpy(np.repeat(keys[:, None], 4, axis=1)).bfloat16(),
    "callable that writes its keys": lambda _: spoil,
    "masked, nothing hidden": lambda _: np.ma.masked_array(by_key(4), mask=False),
}


def mapped(folder: Path, rows: np.ndarray) -> Any:
    np.save(folder / "rows.npy", rows)
    return np.load(folder / "rows.npy", mmap_mode="r")


def spoil(keys: np.ndarray) -> np.ndarray:
    rows = np.repeat(keys[:, None], 4, axis=1).astype(np.float32)
    keys[:] = 2**40
    return rows


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kind", FITTING)
def test_rows_in_any_form_are_those_of_the_keys_on_any_number_of_ranks(kind: str, size: int, tmp_path: Path) -> None:
    rows = rows_made(size, num_keys=KEYS, row_shape=ROW, init=FITTING[kind](tmp_path))
    assert (rows == by_key(4)).all()


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "init", "expected"),
    [
        ("int32", 3.0, 3),
        ("int64", np.float32(7), 7),
        ("float16", np.float64(0.5), 0.5),
        ("float32", np.inf, np.inf),
        ("float32", 2**24, 2**24),
        ("float32", -0.0, 0.0),
        ("float64", (1, 2, 3, 4), (1, 2, 3, 4)),
        ("int32", np.array([1, 2, 3, 4], np.uint64), (1, 2, 3, 4)),
        ("int64", np.array(5), 5),
    ],
    ids=str,
)
def test_numbers_and_rows_that_the_dtype_holds_are_taken(size: int, dtype: str, init: Any, expected: Any) -> None:
    rows = rows_made(size, num_keys=KEYS, row_shape=ROW, dtype=dtype, init=init)
    assert (rows == np.broadcast_to(np.array(expected, dtype), (KEYS, 4))).all()


@pytest.mark.parametrize("make", [lambda: torch().from_numpy(by_key(4)).bfloat16(), lambda: by_key(4), lambda: 3.0])
def test_a_bfloat16_table_takes_tensors_and_arrays(make: Callable[[], Any]) -> None:
    bfloat16()
    rows = rows_made(2, num_keys=KEYS, row_shape=ROW, dtype="bfloat16", init=make())
    assert rows.astype(np.float32).max() in (3.0, 9.0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"num_keys": 10}, {"num_keys": np.int64(10)}),
        ({"row_shape": 4}, {"row_shape": (np.int32(4),)}),
        ({"row_shape": (4,)}, {"row_shape": [4]}),
        ({"dtype": "float32"}, {"dtype": np.float32}),
        ({"dtype": np.dtype("float32")}, {"dtype": "f4"}),
        ({"init": 0}, {"init": 0.0}),
        ({"init": np.float64(0.1)}, {"init": 0.1}),
        ({"init": np.ones(4)}, {"init": [1.0] * 4}),
    ],
    ids=str,
)
def test_ranks_may_write_the_same_differently(first: dict[str, Any], second: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"name": "t", "num_keys": 10, "row_shape": 4}
    with simulate(2, 3) as job:
        job.on_every_rank(lambda pm: pm.create_table(**{**arguments, **(second if pm.rank else first)}))


def test_torch_dtypes_name_dtypes() -> None:
    with intentpm.init() as pm:
        assert pm.create_table("t", 4, dtype=torch().float64).dtype == np.float64


def test_a_memory_map_is_not_copied_whole(tmp_path: Path) -> None:
    num_keys, dim = 1 << 15, 512  # 64 MiB
    np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, (num_keys, dim))[5] = 5.0
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    with intentpm.init() as pm:
        tracemalloc.start()
        try:
            table = pm.create_table("t", num_keys, dim, init=rows)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < rows.nbytes / 2
        assert pm.worker().pull(table, [4, 5, 6])[:, 0].tolist() == [0.0, 5.0, 0.0]


# -- init that does not fit --------------------------------------------------------------------------------------------


def holed() -> Any:
    return np.ma.masked_array(by_key(4), mask=np.eye(KEYS, 4))


def with_one(value: Any, dtype: Any, at: int = 7) -> np.ndarray:
    rows = by_key(4, dtype=dtype)
    rows[at, 1] = value
    return rows


UNFIT: dict[str, tuple[str, Callable[[], Any], type, str]] = {
    "rows of half the keys": ("float32", lambda: by_key(4)[:5], intentpm.ShapeError, r"\(5, 4\), expected \(10, 4\)"),
    "rows of a quarter, as a list": ("float32", lambda: by_key(4)[:3].tolist(), intentpm.ShapeError, r"\(3, 4\)"),
    "tensor of too many": ("float32", lambda: torch().zeros(20, 4), intentpm.ShapeError, r"\(20, 4\)"),
    "one column": ("float32", lambda: np.ones((KEYS, 1)), intentpm.ShapeError, r"\(10, 1\)"),
    "no rows": ("float32", lambda: np.zeros((0, 4)), intentpm.ShapeError, r"\(0, 4\)"),
    "ragged": ("float32", lambda: [[1.0], [1.0, 2.0]], intentpm.ShapeError, "inhomogeneous"),
    "mask": ("float32", holed, intentpm.DtypeError, "4 elements are masked"),
    "text": ("float32", lambda: "zeros", intentpm.DtypeError, "pass numbers"),
    "None": ("float32", lambda: None, intentpm.DtypeError, "pass numbers"),
    "objects": ("float32", lambda: by_key(4).astype(object), intentpm.DtypeError, "dtype object"),
    "bools": ("int32", lambda: np.ones((KEYS, 4), bool), intentpm.DtypeError, "astype"),
    "a bool": ("float32", lambda: True, intentpm.DtypeError, "bool"),
    "complex": ("float64", lambda: by_key(4, dtype=np.complex64), intentpm.DtypeError, "complex64"),
    "dates": ("int64", lambda: by_key(4).astype("datetime64[s]"), intentpm.DtypeError, "datetime64"),
    "big integer": ("int32", lambda: with_one(BIG, np.int64), intentpm.DtypeError, r"1099511627776, .*int32.*key 7"),
    "big integers in a list": ("int32", lambda: with_one(BIG, np.int64).tolist(), intentpm.DtypeError, "key 7"),
    "negative beyond int64": ("int64", lambda: with_one(2**63, np.uint64, 2), intentpm.DtypeError, "key 2"),
    "float where integers are": ("int32", lambda: by_key(4, dtype=np.float32), intentpm.DtypeError, "round first"),
    "half": ("int32", lambda: 1.5, intentpm.DtypeError, "1.5, which int32 cannot hold"),
    "not a number": ("int64", lambda: np.nan, intentpm.DtypeError, "nan, which int64 cannot hold"),
    "huge number": ("int32", lambda: BIG, intentpm.DtypeError, "int32 cannot hold"),
    "too large for float32": ("float32", lambda: with_one(1e300, np.float64), intentpm.DtypeError, r"1e\+300.*key 7"),
    "too large for float16": ("float16", lambda: np.array([1, 1e6, 1, 1]), intentpm.DtypeError, "float16 cannot hold"),
    "inexact integer": ("float32", lambda: with_one(2**24 + 1, np.int64), intentpm.DtypeError, "16777217.*key 7"),
    "inexact at the edge": ("float64", lambda: with_one(2**63 - 1, np.int64, 0), intentpm.DtypeError, "key 0"),
    "tensor elsewhere": ("float32", lambda: torch().zeros(KEYS, 4, device="meta"), intentpm.DtypeError, "device meta"),
    "sparse tensor": ("float32", lambda: torch().zeros(KEYS, 4).to_sparse(), intentpm.DtypeError, "to_dense"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_an_init_that_does_not_fit_is_the_same_error_on_any_number_of_ranks(kind: str) -> None:
    dtype, make, error, words = UNFIT[kind]
    caught = one_error(num_keys=KEYS, row_shape=ROW, dtype=dtype, init=make())
    assert type(caught) is error
    with pytest.raises(error, match=words):
        raise caught


def test_the_first_key_at_fault_is_named_whichever_rank_has_it() -> None:
    rows = by_key(4, dtype=np.int64)
    rows[3:] = BIG
    assert "(key 3)" in str(one_error(num_keys=KEYS, row_shape=ROW, dtype="int32", init=rows))


# -- the other arguments of create_table -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row_shape",
    [(2**32, 2**32), (2**31, 1), 2**62, True, (True, 2), 2.0, (2, None), None, "ab", np.array([1.5]), (2**64,)],
    ids=str,
)
def test_a_row_shape_that_wraps_or_is_none_is_refused(row_shape: Any) -> None:
    error = one_error(num_keys=KEYS, row_shape=row_shape)
    assert type(error) is intentpm.ShapeError
    assert "row_shape=" in str(error)


@pytest.mark.parametrize(
    "num_keys", [10.0, np.float64(10), True, np.bool_(True), "10", None, -1, 2**31, 2**70], ids=repr
)
def test_num_keys_that_is_no_whole_number_of_keys_is_refused(num_keys: Any) -> None:
    error = one_error(num_keys=num_keys)
    assert type(error) is intentpm.ShapeError
    assert "num_keys=" in str(error)


@pytest.mark.parametrize("dtype", ["complex64", bool, None, "flaot32", "S4", ">f4", object, 3], ids=repr)
def test_a_dtype_that_is_none_is_refused(dtype: Any) -> None:
    assert type(one_error(num_keys=KEYS, dtype=dtype)) is intentpm.DtypeError


def test_a_table_larger_than_any_memory_is_refused() -> None:
    error = one_error(num_keys=2**31 - 1, row_shape=2**28)
    assert isinstance(error, intentpm.Error)
    assert "address" in str(error)


@pytest.mark.parametrize("name", ["", "  ", "a\0b", "a\nb", "\ud800", "x" * 256, "\N{EURO SIGN}" * 100], ids=ascii)
def test_a_name_that_nobody_could_read_is_refused(name: str) -> None:
    with intentpm.init() as pm:
        with pytest.raises(intentpm.Error, match="table name"):
            pm.create_table(name, 10)
        pm.create_table("größe 1", 10)


@pytest.mark.parametrize("name", [b"t", None, 1, ("t",)], ids=repr)
def test_a_name_that_is_no_text_is_refused_before_any_rank_waits(name: Any) -> None:
    with simulate(2, 3) as job:

        def target(pm: ParameterManager) -> None:
            if pm.rank == 0:
                with pytest.raises(intentpm.DtypeError, match="table name"):
                    pm.create_table(name, 10)
            pm.barrier()

        job.on_every_rank(target)


# -- keys, rows and out of accesses ------------------------------------------------------------------------------------


@pytest.fixture
def pm() -> Iterator[Any]:
    with intentpm.init() as manager:
        yield manager


@pytest.fixture
def table(pm: Any) -> Any:
    return pm.create_table("t", KEYS, ROW)


@pytest.fixture
def worker(pm: Any) -> Any:
    return pm.worker()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch().tensor([1, 2]),
        lambda: torch().tensor([1, 2], dtype=torch().int32),
        lambda: np.array([1, 2], ">i8"),
        lambda: np.array([2, 1])[::-1],
        lambda: np.array([[1, 2], [3, 4]])[0],
        lambda: np.ma.masked_array([1, 2]),
        lambda: memoryview(np.array([1, 2])),
        lambda: [np.int32(1), 2],
    ],
)
def test_keys_in_any_form_are_taken(table: Any, worker: Any, make: Callable[[], Any]) -> None:
    worker.set(table, make(), np.full((2, 4), 3.0, np.float32))
    assert worker.pull(table, np.arange(4))[:, 0].tolist() == [0.0, 3.0, 3.0, 0.0]
    worker.intent(table, make(), 0)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: np.array(1), intentpm.ShapeError),
        (lambda: {1, 2}, intentpm.Error),
        (lambda: [1, [2]], intentpm.ShapeError),
        (lambda: [2**70], intentpm.KeyRangeError),
        (lambda: [-(2**63) - 1], intentpm.KeyRangeError),
        (lambda: [None], intentpm.DtypeError),
        (lambda: np.array([1, 2], object), intentpm.DtypeError),
        (lambda: np.array([1.0]), intentpm.DtypeError),
        (lambda: torch().tensor([1.0]), intentpm.DtypeError),
        (lambda: torch().tensor([True]), intentpm.DtypeError),
        (lambda: torch().zeros(2, dtype=torch().int64, device="meta"), intentpm.DtypeError),
        (lambda: np.ma.masked_array([1, 2], mask=[True, False]), intentpm.DtypeError),
        (lambda: np.array(["1"]), intentpm.DtypeError),
        (lambda: np.array([1], "datetime64[s]"), intentpm.DtypeError),
    ],
)
def test_keys_that_would_have_to_be_bent_are_refused(
    pm: Any, table: Any, worker: Any, make: Callable[[], Any], error: type
) -> None:
    for call in (worker.pull, worker.pull_async, lambda *to: worker.intent(*to, 0), pm.count_local, pm.trace):
        with pytest.raises(error):
            call(table, make())


@pytest.mark.parametrize("call", ["push", "set", "push_async", "set_async"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch().ones(2, 4),
        lambda: torch().ones(2, 4, requires_grad=True),
        lambda: torch().ones(4, 2).T,
        lambda: np.ones((2, 8), np.float32)[:, ::2],
        lambda: np.ones((2, 4), np.float32)[::-1, ::-1],
        lambda: [[1, 1, 1, 1], [1.0] * 4],
        lambda: np.ma.masked_array(np.ones((2, 4), np.float32)),
    ],
)
def test_rows_in_any_form_are_written(table: Any, worker: Any, call: str, make: Callable[[], Any]) -> None:
    getattr(worker, call)(table, [1, 2], make())
    assert worker.pull(table, [0, 1, 2]).sum(axis=1).tolist() == [0.0, 4.0, 4.0]


@pytest.mark.parametrize("call", ["push", "set", "push_async", "set_async"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: np.ones((2, 4)),
        lambda: torch().ones(2, 4, dtype=torch().float64),
        lambda: torch().ones(2, 4, device="meta"),
        lambda: [[1e300] * 4] * 2,
        lambda: [[2**24 + 1] * 4] * 2,
        lambda: [[1 + 2j] * 4] * 2,
        lambda: [[True] * 4] * 2,
        lambda: [["1"] * 4] * 2,
        lambda: np.ma.masked_array(np.ones((2, 4), np.float32), mask=np.eye(2, 4)),
        lambda: np.ones((2, 4), ">f4"),
    ],
)
def test_rows_that_would_have_to_be_bent_are_refused(
    table: Any, worker: Any, call: str, make: Callable[[], Any]
) -> None:
    with pytest.raises(intentpm.DtypeError, match="table 't'"):
        getattr(worker, call)(table, [1, 2], make())
    assert not worker.pull(table, np.arange(KEYS)).any()


@pytest.mark.parametrize("rows", [[[2**40] * 4], [[1.5] * 4], [[2.0] * 4], np.ones((1, 4), bool)], ids=str)
def test_integer_rows_are_not_bent_either(pm: Any, worker: Any, rows: Any) -> None:
    table = pm.create_table("integers", KEYS, ROW, "int32")
    with pytest.raises(intentpm.DtypeError):
        worker.push(table, [1], rows)
    worker.push(table, [1], [[2**31 - 1] * 4])
    assert (worker.pull(table, [1]) == 2**31 - 1).all()


def test_no_keys_and_no_rows(table: Any, worker: Any) -> None:
    for rows in ([], np.empty((0, 4), np.float32), torch().empty(0, 4)):
        worker.push(table, [], rows)
        worker.set(table, np.array([], np.int64), rows)
    assert worker.pull(table, []).shape == (0, 4)


def test_bfloat16_tensors_are_written_and_read_into(pm: Any, worker: Any) -> None:
    bfloat16()
    table = pm.create_table("brain", KEYS, ROW, "bfloat16")
    worker.push(table, [1, 2], torch().full((2, 4), 1.5).bfloat16())
    out = torch().zeros(2, 4).bfloat16()
    assert worker.pull(table, [1, 2], out=out) is out
    assert out.float().tolist() == [[1.5] * 4] * 2


def test_a_tensor_is_read_into_and_returned(table: Any, worker: Any) -> None:
    worker.push(table, [1, 2], np.ones((2, 4), np.float32))
    for pull in (worker.pull, lambda *to, out: worker.pull_async(*to, out=out).result()):
        out = torch().zeros(2, 4)
        assert pull(table, [1, 2], out=out) is out
        assert out.tolist() == [[1.0] * 4] * 2


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: torch().zeros(4, 2).T, intentpm.ShapeError),
        (lambda: torch().zeros(2, 4, requires_grad=True), intentpm.DtypeError),
        (lambda: torch().zeros(2, 4, device="meta"), intentpm.DtypeError),
        (lambda: torch().zeros(2, 4, dtype=torch().float64), intentpm.DtypeError),
        (lambda: np.ma.masked_array(np.zeros((2, 4), np.float32)), intentpm.DtypeError),
        (lambda: np.zeros((2, 4), np.float32)[::-1], intentpm.ShapeError),
        (lambda: np.zeros((2, 4), ">f4"), intentpm.DtypeError),
        (lambda: np.frombuffer(bytes(32), np.float32).reshape(2, 4), intentpm.ShapeError),
        (lambda: bytearray(32), intentpm.DtypeError),
    ],
)
def test_an_out_that_cannot_be_read_into_is_refused(
    table: Any, worker: Any, make: Callable[[], Any], error: type
) -> None:
    for pull in (worker.pull, worker.pull_async):
        with pytest.raises(error, match="out"):
            pull(table, [1, 2], out=make())


# -- clocks, counts, keys of questions ---------------------------------------------------------------------------------

NO_WHOLE_NUMBERS = [1.5, 2.0, np.float32(1), True, np.bool_(True), "1", None, [1], np.nan]


@pytest.mark.parametrize("value", NO_WHOLE_NUMBERS, ids=repr)
def test_what_is_no_whole_number_is_refused_by_its_name(pm: Any, table: Any, worker: Any, value: Any) -> None:
    sampling = pm.create_sampling(table)
    calls: dict[str, Callable[[], Any]] = {
        "start": lambda: worker.intent(table, [1], value),
        "n": lambda: worker.prepare_sample(table, value, 0),
        "key": lambda: pm.explain(table, value),
        "events": lambda: pm.trace(table, [1], events=value),
        "pool_size": lambda: pm.create_sampling(table, pool_size=value),
        "pool_uses": lambda: pm.create_sampling(table, pool_uses=value),
    }
    if value is not None:
        calls["end"] = lambda: worker.intent(table, [1], 0, value)
        calls["seed"] = lambda: pm.create_sampling(table, seed=value)
        calls["count"] = lambda: worker.pull_sample(worker.prepare_sample(sampling, 3, 0), value)
    for name, call in calls.items():
        with pytest.raises(intentpm.DtypeError, match=f"{name}="):
            call()


def test_whole_numbers_of_other_kinds_and_sizes_are_clocks(table: Any, worker: Any) -> None:
    for start, end in ((np.int32(3), np.uint8(5)), (0, 2**70), (2**80, None), (-(2**80), 2**80)):
        worker.intent(table, [1], start, end)
    with pytest.raises(intentpm.WindowError):
        worker.intent(table, [1], 2**70, -(2**70))


@pytest.mark.parametrize("call", ["count_local", "explain", "trace", "create_sampling", "sampling"])
def test_a_table_of_another_manager_is_refused_by_every_call(pm: Any, table: Any, call: str) -> None:
    with intentpm.init() as other:
        foreign = other.create_table("other", 2**20)
        arguments = {"count_local": ([1],), "explain": (1,), "trace": ([1],)}.get(call, ())
        with pytest.raises(intentpm.Error, match="another parameter manager"):
            getattr(pm, call)(foreign, *arguments)


@pytest.mark.parametrize(
    "weights", [[True] * KEYS, np.ma.masked_array(np.ones(KEYS), mask=np.arange(KEYS) < 2), [[1]] * KEYS]
)
def test_weights_that_are_none_are_refused(pm: Any, table: Any, weights: Any) -> None:
    with pytest.raises(intentpm.Error):
        pm.create_sampling(table, weights)


def test_weights_may_be_tensors(pm: Any, table: Any, worker: Any) -> None:
    weights = torch().zeros(KEYS).bfloat16()
    weights[3] = 1.0
    sampling = pm.create_sampling(table, weights)
    assert set(worker.pull_sample(worker.prepare_sample(sampling, 5, 0))[0].tolist()) == {3}
