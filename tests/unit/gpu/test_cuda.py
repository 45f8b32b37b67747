"""The CUDA device, on a library with the driver's C interface that computes on the host (support/fake_libcuda.cpp)."""

import ctypes
import shutil
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from intentpm.foundation.errors import DeviceError
from intentpm.gpu.cuda import CudaDevice, count_devices
from intentpm.gpu.device_arrays import as_device_array
from intentpm.gpu.device_rows import DeviceRows
from intentpm.gpu.emulated import EmulatedDevice
from intentpm.gpu.handles import Event, Memory, Stream
from intentpm.gpu.kernel_names import RowLayout

ROOT = Path(__file__).resolve().parents[3]


class Driver:
    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.calls = ctypes.CDLL(self.path)
        self.calls.fake_kernel.restype = ctypes.c_void_p
        self.calls.fake_current.restype = ctypes.c_void_p
        self.calls.fake_current.argtypes = [ctypes.c_void_p]

    def compile(self, ordinal: int, names: Iterable[str]) -> dict[str, int]:
        return {name: self.calls.fake_kernel(name.encode()) for name in names}

    def device(self) -> CudaDevice:
        return CudaDevice(0, library=self.path, compile_kernels=self.compile)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    out = tmp_path_factory.mktemp("driver") / "libcuda.so"
    source = ROOT / "tests" / "support" / "fake_libcuda.cpp"
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-w", f"-I{ROOT}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(out)], check=True, timeout=300)
    return Driver(out)


def test_the_device_is_described(driver: Driver) -> None:
    device = driver.device()
    assert (device.name, device.multiprocessors, device.most_lanes) == ("Fake 40", 3, 32)
    assert device.free_memory() == 2**30
    assert device.failure == ""


def test_there_and_back(driver: Driver) -> None:
    device = driver.device()
    here, there, back = Memory(device, 64, pinned=True), Memory(device, 64), Memory(device, 64, pinned=True)
    stream, other, done = Stream(device), Stream(device), Event(device)
    here.write(bytes(range(64)))
    stream.copy(there, here, 64)
    stream.record(done)
    other.wait(done)
    other.copy(back, there, 32)
    other.record(done)
    assert not done.has_happened()
    done.synchronize()
    assert done.has_happened()
    assert back.read()[:32] == bytes(range(32))
    stream.fill(there, 9)
    stream.copy(back, there, 64)
    assert back.read() == b"\t" * 64
    assert device.failure == ""


def test_rows(driver: Driver) -> None:
    """As on the emulated device, from a thread that the context is not current in."""
    rows = DeviceRows(driver.device(), RowLayout(0, 100, 400, 448))
    rng = np.random.default_rng(0)
    expected = rng.integers(-4, 5, (30, 100)).astype(np.float32)
    slots, deltas = rng.integers(0, 30, 50).astype(np.int32), rng.integers(-4, 5, (50, 100)).astype(np.float32)
    out = np.empty_like(expected)

    def use() -> None:
        rows.write(np.arange(30, dtype=np.int32), expected)
        rows.write(slots, deltas, "add")
        rows.read(np.arange(30, dtype=np.int32), out)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(60)
    np.add.at(expected, slots, deltas)
    np.testing.assert_array_equal(out, expected)
    assert rows.device.failure == ""


def test_the_callers_context_is_left_as_it_was(driver: Driver) -> None:
    """A thread may be at work on another device, with another library."""
    rows = DeviceRows(driver.device(), RowLayout(0, 4, 16, 16))
    driver.calls.fake_current(77)
    rows.write(np.arange(3, dtype=np.int32), np.zeros((3, 4), np.float32))
    rows.read(np.arange(3, dtype=np.int32), np.empty((3, 4), np.float32))
    assert driver.calls.fake_current(None) == 77
    assert rows.device.failure == ""


def test_a_device_that_does_not_finish(driver: Driver) -> None:
    device = driver.device()
    device.wait_limit_s = 0.05
    rows = DeviceRows(device, RowLayout(0, 4, 16, 16))
    rows.write(np.arange(3, dtype=np.int32), np.zeros((3, 4), np.float32))
    driver.calls.fake_stuck(1)
    try:
        with pytest.raises(MemoryError, match=r"not finished sending rows to the host within 0\.05 s"):
            rows.read(np.arange(3, dtype=np.int32), np.empty((3, 4), np.float32))
    finally:
        driver.calls.fake_stuck(0)


def test_handles_are_given_back(driver: Driver) -> None:
    before = driver.calls.fake_handles()
    device = driver.device()
    rows = DeviceRows(device, RowLayout(0, 4, 16, 16))
    rows.write(np.arange(30, dtype=np.int32), np.zeros((30, 4), np.float32))
    assert driver.calls.fake_handles() > before
    del rows
    device.free_memory()  # the driver has said once that an event is still to come
    assert driver.calls.fake_handles() == before


def test_no_memory_is_told(driver: Driver) -> None:
    device = driver.device()
    with pytest.raises(MemoryError, match="are not to be had"):
        Memory(device, 1 << 41)
    assert device.failure == "out of memory (CUDA error 2)"


def test_a_launch_that_is_refused(driver: Driver) -> None:
    rows = DeviceRows(driver.device(), RowLayout(0, 4, 16, 16))
    driver.calls.fake_failure(719)
    try:
        with pytest.raises(MemoryError, match="CUDA error 719"):
            rows.write(np.arange(3, dtype=np.int32), np.zeros((3, 4), np.float32))
    finally:
        driver.calls.fake_failure(0)


def test_whose_memory_it_is(driver: Driver) -> None:
    """Of arrays that only have the interface, which does not say: Numba's."""
    device, other = driver.device(), EmulatedDevice()

    def array_at(address: int, strides: tuple[int, ...] | None = None) -> Any:
        interface = {"data": (address, False), "shape": (4, 2), "typestr": "<f4", "version": 3, "strides": strides}
        return SimpleNamespace(__cuda_array_interface__=interface)

    memory, elsewhere = Memory(device, 64), Memory(other, 64)
    found = as_device_array(array_at(memory.address + 32), device)
    assert found is not None
    assert (found.address, found.shape, found.is_contiguous) == (memory.address + 32, (4, 2), True)
    strided = as_device_array(array_at(memory.address, (12, 4)), device)
    assert strided is not None
    assert (strided.strides, strided.is_contiguous) == ((12, 4), False)
    with pytest.raises(DeviceError, match="does not lie on Fake 40"):
        as_device_array(array_at(elsewhere.address), device)
    with pytest.raises(DeviceError, match="does not lie on emulated"):
        as_device_array(array_at(memory.address), other)
    assert device.failure == ""


def test_waits_are_counted(driver: Driver) -> None:
    device = driver.device()
    stream, done = Stream(device), Event(device)
    stream.record(done)
    done.synchronize()
    done.synchronize()  # it has happened
    assert device.host_waits == 1


def test_devices_are_counted(driver: Driver) -> None:
    assert count_devices(driver.path) == 1
    assert count_devices("libthere-is-none.so") == 0


def test_no_such_device(driver: Driver) -> None:
    with pytest.raises(DeviceError, match=r"CUDA device 1 cannot be used: some error \(CUDA error 101\)"):
        CudaDevice(1, library=driver.path)


def test_no_driver(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="there is no CUDA driver"):
        CudaDevice(0, library=str(tmp_path / "libcuda.so.1"))


def test_a_driver_that_lacks_a_function() -> None:
    with pytest.raises(DeviceError, match=r"has no cuGetErrorString"):
        CudaDevice(0, library="libc.so.6")
