"""Rows on a device, an emulated one or CUDA's, do what the same calls do to arrays of NumPy."""

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from support.cuda import on_cuda

import intentpm.optim
from intentpm.bench.scenarios.device_rows import on_device
from intentpm.gpu.cuda import CudaDevice
from intentpm.gpu.device import Device
from intentpm.gpu.device_rows import DeviceRows
from intentpm.gpu.emulated import EmulatedDevice
from intentpm.gpu.kernel_names import RowLayout, unit_bytes
from intentpm.runtime._native.row_layout import stored_dtype
from intentpm.runtime._native.slabs import stride_for
from intentpm.runtime.device_layout import device_layout, step_numbers

DTYPES = [np.dtype(d) for d in ("f4", "f8", "f2", ml_dtypes.bfloat16, "i4", "i8")]
LENGTHS = [1, 3, 4, 8, 33, 64, 128, 4096]
ONE_LANE = [1, on_cuda("cuda")]


@pytest.fixture(params=[1, 32, on_cuda("cuda")])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """An emulated one of so many lanes, or CUDA's. Guarded: a kernel that touches what it may not ends the test run."""
    device = CudaDevice() if request.param == "cuda" else EmulatedDevice(7, lanes=request.param, guarded=True)
    yield device
    assert device.failure == ""


def rows_of(device: Device, dtype: np.dtype, length: int) -> DeviceRows:
    stored = length * dtype.itemsize
    return DeviceRows(device, RowLayout(DTYPES.index(dtype), length, stored, stride_for(stored)))


def some(rng: np.random.Generator, count: int, length: int, dtype: np.dtype) -> np.ndarray:
    """Small integers: their sums are exact in every dtype."""
    return rng.integers(-4, 5, (count, length)).astype(dtype)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", ONE_LANE, indirect=True)
def test_set_add_and_read(device: Device, dtype: np.dtype, length: int) -> None:
    rng = np.random.default_rng(length)
    rows, expected = rows_of(device, dtype, length), some(rng, 50, length, dtype)
    rows.write(np.arange(50, dtype=np.int32), expected)
    for _ in range(3):
        slots = rng.integers(0, 50, 30).astype(np.int32)  # with duplicates
        deltas = some(rng, 30, length, dtype)
        np.add.at(expected, slots, deltas)
        rows.write(slots, deltas, "add")
        values = some(rng, 30, length, dtype)
        for slot, value in zip(slots, values, strict=True):
            expected[slot] = value
        rows.write(slots, values)
    out = np.empty((50, length), dtype)
    rows.read(np.arange(50, dtype=np.int32), out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("count", [0, 1, 10, 2**20 + 1])
@pytest.mark.parametrize("device", ONE_LANE, indirect=True)
def test_sizes(device: Device, count: int) -> None:
    rng = np.random.default_rng(count)
    rows, expected = rows_of(device, np.dtype("f4"), 2), some(rng, 1000, 2, np.dtype("f4"))
    rows.write(np.arange(1000, dtype=np.int32), expected)
    slots, deltas = rng.integers(0, 1000, count).astype(np.int32), some(rng, count, 2, np.dtype("f4"))
    rows.write(slots, deltas, "add")
    np.add.at(expected, slots, deltas)
    out = np.empty((count, 2), np.float32)
    rows.read(slots, out)
    np.testing.assert_array_equal(out, expected[slots])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lanes_share_a_row(device: Device, dtype: np.dtype) -> None:
    rng = np.random.default_rng(1)
    rows, expected = rows_of(device, dtype, 100), some(rng, 9, 100, dtype)
    rows.write(np.arange(9, dtype=np.int32), expected)
    slots, deltas = np.array([4, 4, 8, 4, 0], np.int32), some(rng, 5, 100, dtype)
    rows.write(slots, deltas, "add")
    np.add.at(expected, slots, deltas)
    out = np.empty((9, 100), dtype)
    rows.read(np.arange(9, dtype=np.int32), out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("device", ONE_LANE, indirect=True)
def test_slots_below_zero_are_skipped(device: Device) -> None:
    rows = rows_of(device, np.dtype("f4"), 4)
    rows.write(np.array([-1, 2, -1], np.int32), np.ones((3, 4), np.float32))
    rows.write(np.array([-1, 2], np.int32), np.full((2, 4), 5, np.float32), "add")
    out = np.zeros((2, 4), np.float32)
    rows.read(np.array([2, -1], np.int32), out)
    assert out[0].tolist() == [6] * 4


OPTIMISERS = [
    intentpm.optim.SGD(lr=0.5),
    intentpm.optim.SGD(lr=0.5, weight_decay=0.1, weight_decay_mode="decoupled", max_norm=2.0),
    intentpm.optim.Adagrad(lr=0.5),
    intentpm.optim.Adagrad(lr=0.5, clip_value=0.5, weight_decay=0.1, weight_decay_mode="l2"),
    intentpm.optim.RowwiseAdagrad(lr=0.5, clip_norm=1.0),
    intentpm.optim.Adam(lr=0.5),
    intentpm.optim.Adam(lr=0.5, weight_decay=0.1, weight_decay_mode="decoupled"),
    intentpm.optim.PartialRowwiseAdam(lr=0.5),
]


@pytest.mark.parametrize("length", [1, 5, 64, 100])
@pytest.mark.parametrize("dtype", DTYPES[:4], ids=str)
@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=repr)
def test_steps_are_those_of_the_host(
    device: Device, optimiser: intentpm.optim.SGD, dtype: np.dtype, length: int
) -> None:
    """Gradients that come twice are summed; several steps, each of which goes on from the state of the one before."""
    rng = np.random.default_rng(length)
    begun = rng.normal(size=(20, length)).astype(dtype)
    with intentpm.init() as pm:
        table = pm.create_table("t", 20, length, dtype=dtype, init=begun, optimizer=optimiser)
        worker = pm.worker()
        stored = np.zeros(20, stored_dtype(dtype, (length,), optimiser))
        layout = device_layout(dtype, length, stride_for(stored.itemsize), stored.dtype, optimiser)
        rows = DeviceRows(device, layout, **step_numbers(optimiser))
        stored["weights"] = begun
        rows.write(np.arange(20, dtype=np.int32), stored, "set_stored")
        for _ in range(3):
            keys = rng.integers(0, 20, 12)
            gradients = rng.integers(-2, 3, (12, length)).astype(dtype) / 4
            gradients = gradients.astype(dtype)
            worker.push_grad(table, keys, gradients)
            rows.write(keys.astype(np.int32), gradients, "step", optimiser.lr)
        expected = worker.pull(table, np.arange(20)).astype(np.float64)
        state = worker.pull_state(table, np.arange(20))
    rows.read(np.arange(20, dtype=np.int32), stored, stored=True)
    close = {"float64": 1e-12, "float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}[dtype.name]
    np.testing.assert_allclose(stored["weights"].astype(np.float64), expected, rtol=close, atol=close)
    for name, numbers_of_host in state.items():
        np.testing.assert_allclose(stored[name], numbers_of_host, rtol=1e-4, atol=1e-6)


def test_units() -> None:
    assert [unit_bytes(n) for n in (1, 2, 3, 4, 12, 16, 24, 48, 512)] == [1, 2, 1, 4, 4, 16, 8, 16, 16]


def test_an_unknown_rule_of_a_call_is_refused() -> None:
    rows = rows_of(EmulatedDevice(), np.dtype("f4"), 4)
    with pytest.raises(ValueError, match="without an optimiser"):
        rows.write(np.array([0], np.int32), np.zeros((1, 4), np.float32), "step")
    with pytest.raises(ValueError, match="bytes for 2 rows"):
        rows.write(np.array([0, 1], np.int32), np.zeros((1, 4), np.float32))


def test_a_slab_has_room_for_what_it_is_first_asked_for() -> None:
    """And for half as much again when it grows: what was written before is in the new one."""
    device = EmulatedDevice(1)
    rows = rows_of(device, np.dtype("f4"), 32)
    before = device.allocated_bytes
    rows.write(np.arange(10_000, dtype=np.int32), np.ones((10_000, 32), np.float32))
    of_exchange = 1.5 * (10_000 * 132 + 256)
    assert device.allocated_bytes - before < 10_000 * 132 + of_exchange + 10_000 * 132 + 40_000  # slab, exchange, sums
    rows.write(np.array([10_000], np.int32), np.full((1, 32), 2, np.float32))
    out = np.empty((2, 32), np.float32)
    rows.read(np.array([9_999, 10_000], np.int32), out)
    assert out[:, 0].tolist() == [1, 2]
    assert device.failure == ""


def test_the_host_runs_ahead_of_the_device() -> None:
    """And waits only when too much is under way: memory for it is bounded."""
    device = EmulatedDevice(2)
    rows, one = rows_of(device, np.dtype("f4"), 4), np.ones((1, 4), np.float32)
    rows.write(np.array([0], np.int32), one)
    waits = device.host_waits
    device.stands_still = True
    for _ in range(60):
        rows.write(np.array([0], np.int32), one, "add")
    assert device.host_waits == waits
    device.wait_limit_s = 0.02
    begun = np.zeros((1, 4), np.float32)
    with pytest.raises(MemoryError, match="has not finished using rows that it was sent within"):  # noqa: PT012
        while begun[0, 0] < 10:
            rows.write(np.array([0], np.int32), one, "add")
            begun += 1
    device.stands_still = False
    out = np.empty((1, 4), np.float32)
    rows.read(np.array([0], np.int32), out)
    assert out[0, 0] == 61 + begun[0, 0]


def test_rows_that_are_on_the_device(device: Device) -> None:
    """Slots and rows come from the device's memory and stay there; a slab filled by a pattern."""
    rng = np.random.default_rng(1)
    rows = rows_of(device, np.dtype("f4"), 24)  # 96 bytes, 128 from one to the next
    pattern = rng.integers(-4, 5, (7, 32)).astype(np.float32)
    rows.repeat(on_device(device, pattern), 40)
    expected = pattern[np.arange(40) % 7, :24].copy()
    slots, given = rng.integers(0, 40, 15).astype(np.int32), some(rng, 15, 24, np.dtype("f4"))
    there, values = on_device(device, slots), on_device(device, given)
    rows.write_on_device(there, 15, values, "add")
    np.add.at(expected, slots, given)
    rows.gather_on_device(there, 15, values)
    rows.write_on_device(there, 15, values, "set")
    rows.synchronize()
    out = np.empty((40, 24), np.float32)
    rows.read(np.arange(40, dtype=np.int32), out)
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(ValueError, match="do not fit"):
        rows.gather_on_device(there, 16, values)
