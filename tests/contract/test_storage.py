"""What every storage does for a table, seen through a worker of a job of one rank: rows on the host, a device, or both.

The device is the emulated one, whose defects (a use before its event, say) fail the test; and CUDA's where it is. Of a
tiered table two thirds of the keys are in a window, and the device has room for half of all: so batches are served on
either side.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from support.cuda import on_cuda

import intentpm
import intentpm.optim
from intentpm.runtime._native.slabs import stride_for
from intentpm.runtime._native.store import stored_bytes
from intentpm.runtime._native.tiered_rows import SEAT_BYTES_BESIDE

FOR_GOOD = 2**40
DTYPES = [np.dtype(d) for d in ("f4", "f8", "f2", ml_dtypes.bfloat16, "i4", "i8")]
LENGTHS = [1, 3, 8, 33, 128, 4096]
SIZES = [0, 1, 10, 2**20 + 1]
Make = Callable[..., intentpm.Table]


@pytest.fixture(params=["host", "gpu emulated:3", "tiered emulated:4", on_cuda("gpu cuda"), on_cuda("tiered cuda")])
def place(request: pytest.FixtureRequest) -> str:
    """Where the rows lie."""
    return str(request.param)


@pytest.fixture
def storage(place: str) -> str:
    return place.split()[0]


@pytest.fixture
def pm(place: str) -> Iterator[intentpm.ParameterManager]:
    with intentpm.init(device=None if place == "host" else place.split()[1]) as pm:
        yield pm
        for table in pm._tables.values():
            if table.tier is not None:
                table.tier.check()
                assert table.tier.rows.device.failure == ""
                assert not table.tier.is_fetching or table.tier.audit() == []


@pytest.fixture
def make(pm: intentpm.ParameterManager, storage: str) -> Make:
    ahead = pm.worker()  # whose windows they are
    if storage != "tiered":
        return lambda *args, **options: pm.create_table("t", *args, storage=storage, **options)
    return lambda *args, **options: make_tiered(pm, ahead, *args, **options)


def make_tiered(
    pm: intentpm.ParameterManager, ahead: intentpm.Worker, num_keys: int, *args: Any, **options: Any
) -> intentpm.Table:
    """Returns when as many rows of its windows are on the device as there is room for."""
    stored = stored_bytes(np.dtype(options.get("dtype", "f4")), args, options.get("optimizer"))
    memory = (num_keys // 2 + 1) * (stride_for(stored) + SEAT_BYTES_BESIDE)
    table = pm.create_table("t", num_keys, *args, storage="tiered", device_memory=memory, **options)
    ahead.intent(table, np.flatnonzero(np.arange(num_keys) % 3), 0, FOR_GOOD)
    until = time.monotonic() + 60
    while len(table.tier.keys_on_device()) < min(table.tier.seats, num_keys * 2 // 3):
        assert time.monotonic() < until, "rows have not come to the device within 60 s"
        time.sleep(0.001)
    return table


def some(rng: np.random.Generator, count: int, length: int, dtype: npt.DTypeLike) -> np.ndarray:
    """Small integers: their sums are exact in every dtype."""
    return rng.integers(-4, 5, (count, length)).astype(dtype)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_every_shape(pm: intentpm.ParameterManager, make: Make, dtype: np.dtype, length: int) -> None:
    rng = np.random.default_rng(length)
    expected = some(rng, 60, length, dtype)
    table, worker = make(60, length, dtype=dtype, init=expected), pm.worker()
    for _ in range(3):
        keys = rng.integers(0, 60, 40)
        deltas = some(rng, 40, length, dtype)
        worker.push(table, keys, deltas)
        np.add.at(expected, keys, deltas)
        np.testing.assert_array_equal(worker.pull(table, keys), expected[keys])
        values = some(rng, 40, length, dtype)
        worker.set(table, keys, values)
        for key, value in zip(keys, values, strict=True):
            expected[key] = value
    np.testing.assert_array_equal(worker.pull(table, np.arange(60)), expected)


@pytest.mark.parametrize("size", SIZES)
def test_batches_of_every_size(pm: intentpm.ParameterManager, make: Make, size: int) -> None:
    rng = np.random.default_rng(size)
    expected = some(rng, 5000, 2, "f4")
    table, worker = make(5000, 2, init=expected), pm.worker()
    keys, deltas = rng.integers(0, 5000, size), some(rng, size, 2, "f4")
    worker.push(table, keys, deltas)
    np.add.at(expected, keys, deltas)
    np.testing.assert_array_equal(worker.pull(table, keys), expected[keys])
    out = np.empty((size, 2), np.float32)
    worker.push_async(table, keys, deltas)
    np.add.at(expected, keys, deltas)
    assert worker.pull(table, keys, out=out) is out
    np.testing.assert_array_equal(out, expected[keys])


@pytest.mark.parametrize("order", ["sorted", "reversed", "all the same"])
def test_orders_of_keys(pm: intentpm.ParameterManager, make: Make, order: str) -> None:
    table, worker = make(1000, 4), pm.worker()
    keys = {"sorted": np.arange(1000), "reversed": np.arange(1000)[::-1], "all the same": np.full(1000, 7)}[order]
    worker.push(table, keys, np.ones((1000, 4), np.float32))
    expected = np.zeros((1000, 4), np.float32)
    np.add.at(expected, keys, 1)
    np.testing.assert_array_equal(worker.pull(table, np.arange(1000)), expected)


def test_what_one_row_calls_write_batches_read(pm: intentpm.ParameterManager, make: Make) -> None:
    """Rows are looked at one by one in between, as serving and management do, and as this rank's own checks."""
    rng = np.random.default_rng(5)
    expected = some(rng, 30, 5, "f8")
    table, worker = make(30, 5, dtype="f8", init=expected), pm.worker()
    for _ in range(10):
        keys = rng.integers(0, 30, 8)
        worker.push(table, keys, np.ones((8, 5)))
        np.add.at(expected, keys, 1)
        looked_at = rng.integers(0, 30, 4)
        np.testing.assert_array_equal(table.rows_here(looked_at), expected[looked_at])
    np.testing.assert_array_equal(worker.pull(table, np.arange(30)), expected)


OPTIMISERS = [
    intentpm.optim.SGD(lr=0.5),
    intentpm.optim.Adagrad(lr=0.5, initial_accumulator=0.1),
    intentpm.optim.RowwiseAdagrad(lr=0.5, weight_decay=0.01, weight_decay_mode="decoupled"),
    intentpm.optim.Adam(lr=0.5, clip_norm=2.0),
    intentpm.optim.PartialRowwiseAdam(lr=0.5, max_norm=3.0),
]


@pytest.mark.parametrize("duplicates", ["sum", "each"])
@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=lambda o: type(o).__name__)
def test_steps(pm: intentpm.ParameterManager, make: Make, optimiser: intentpm.optim.SGD, duplicates: str) -> None:
    """Against a table on the host: weights and state."""
    rng = np.random.default_rng(1)
    begun = rng.normal(size=(20, 12)).astype(np.float32)
    tables = [
        make(20, 12, init=begun, optimizer=optimiser),
        pm.create_table("host", 20, 12, init=begun, optimizer=optimiser, storage="host"),
    ]
    worker = pm.worker()
    for _ in range(4):
        keys, gradients = rng.integers(0, 20, 15), rng.normal(size=(15, 12)).astype(np.float32)
        for table in tables:
            worker.push_grad(table, keys, gradients, duplicates=duplicates)
    ours, theirs = (worker.pull(table, np.arange(20)) for table in tables)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    state, expected = (worker.pull_state(table, np.arange(20)) for table in tables)
    assert state.keys() == expected.keys()
    for name in state:
        np.testing.assert_allclose(state[name], expected[name], rtol=1e-4, atol=1e-5)


def test_an_unknown_storage_is_refused(pm: intentpm.ParameterManager) -> None:
    with pytest.raises(intentpm.ConfigError, match="choose one of host, gpu, tiered"):
        pm.create_table("t", 3, storage="disk")


def test_no_device_is_told() -> None:
    """Where there is a CUDA device, the table is made."""
    with intentpm.init(device="cuda:63") as pm, pytest.raises(intentpm.DeviceError, match="CUDA"):
        pm.create_table("t", 3, storage="gpu")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(intentpm.ConfigError, match="choose cuda"):
        intentpm.init(device="tpu")
