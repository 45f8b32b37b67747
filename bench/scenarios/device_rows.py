"""Rows in device memory: gathers, additions and steps of optimisers, beside the card's own copy, in one run.

Look-ups are drawn by a power law, with duplicates; several batches of them take turns, so that none is in the cache.
Times are those of the device's own clock between events, on an emulated device those of the host.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from intentpm.gpu.device import Device
from intentpm.gpu.device_rows import DeviceRows
from intentpm.gpu.handles import Event, Memory, Stream
from intentpm.gpu.kernel_names import RowLayout
from intentpm.runtime import optimisers
from intentpm.runtime._native.row_layout import stored_dtype
from intentpm.runtime._native.slabs import stride_for
from intentpm.runtime.device_layout import device_layout, step_numbers

POWER = 1.05
BATCHES = 4
PATTERN_BYTES = 64 << 20


@dataclass(frozen=True)
class Sizes:
    """``rows`` of ``items`` numbers in the slab, ``lookups`` in a batch, ``times`` that each is measured."""

    rows: int = 8_388_608
    items: int = 128
    lookups: int = 1_048_576
    copied_bytes: int = 1 << 30
    times: int = 20


SMALL = Sizes(rows=2000, items=128, lookups=1000, copied_bytes=1 << 20, times=3)
"""For an emulated device."""


@dataclass(frozen=True)
class Measured:
    """One operation: milliseconds of each repetition, and the bytes that it cannot avoid to move."""

    name: str
    by: str
    ms: list[float]
    moved_bytes: int

    @property
    def median_ms(self) -> float:
        return float(np.median(self.ms))

    def describe(self) -> dict[str, Any]:
        gb_s = self.moved_bytes / self.median_ms / 1e6
        return {"name": self.name, "by": self.by, "median_ms": self.median_ms, "gb_s": gb_s, "ms": self.ms}


Timer = Callable[[DeviceRows, Callable[[int], None], int], list[float]]


def measure(device: Device, sizes: Sizes) -> list[Measured]:
    """All operations of this package. Raises MemoryError where the device is too small."""
    timer = _time_by_host if device.name.startswith("emulated") else _time_by_device
    rng = np.random.default_rng(1)
    batches = [power_law(rng, sizes) for _ in range(BATCHES)]
    row_bytes = 4 * sizes.items
    copied = [_copy(device, sizes, timer)]
    rows = _rows(device, sizes, None)
    moves = 2 * sizes.lookups * row_bytes
    copied.append(Measured("gather", "intentpm", _moves(rows, batches, timer, sizes, "gather"), moves))
    distinct = int(np.mean([len(np.unique(slots)) for slots in batches]))
    added = sizes.lookups * row_bytes + 2 * distinct * row_bytes
    copied.append(Measured("add", "intentpm", _moves(rows, batches, timer, sizes, "add"), added))
    del rows
    for optimiser in (optimisers.SGD, optimisers.RowwiseAdagrad, optimisers.Adagrad, optimisers.Adam):
        rows = _rows(device, sizes, optimiser(lr=1e-6))
        stepped = sizes.lookups * row_bytes + 2 * distinct * rows.layout.stored_bytes
        times = _moves(rows, batches, timer, sizes, "step")
        copied.append(Measured(f"step, {optimiser.__name__}", "intentpm", times, stepped))
        del rows
    return copied


def power_law(rng: np.random.Generator, sizes: Sizes) -> np.ndarray:
    """Slots of a batch: P(rank of a row) ~ 1 / rank^POWER, the ranks spread over the slab."""
    ranks = np.arange(1, sizes.rows + 1, dtype=np.float64) ** -POWER
    drawn = np.searchsorted(np.cumsum(ranks / ranks.sum()), rng.random(sizes.lookups))
    spread = np.random.default_rng(0).permutation(sizes.rows)
    slots: np.ndarray = spread[np.minimum(drawn, sizes.rows - 1)].astype(np.int32)
    return slots


def _rows(device: Device, sizes: Sizes, optimiser: optimisers.RowOptimiser | None) -> DeviceRows:
    """Rows of random numbers between 0 and 1, state too."""
    if optimiser is None:
        stored, numbers, size = None, {}, 4 * sizes.items
        layout = RowLayout(0, sizes.items, size, stride_for(size))
    else:
        stored, numbers = stored_dtype(np.dtype("f4"), (sizes.items,), optimiser), step_numbers(optimiser)
        layout = device_layout(np.dtype("f4"), sizes.items, stride_for(stored.itemsize), stored, optimiser)
    rows = DeviceRows(device, layout, **numbers)
    pattern_rows = min(sizes.rows, max(1, PATTERN_BYTES // layout.stride_bytes))
    random = np.random.default_rng(2).random(pattern_rows * layout.stride_bytes // 4, dtype=np.float32)
    rows.repeat(on_device(device, random), sizes.rows)
    return rows


def on_device(device: Device, numbers: np.ndarray) -> Memory:
    """A copy in the device's memory."""
    pinned, memory = Memory(device, numbers.nbytes, pinned=True), Memory(device, numbers.nbytes)
    stream, done = Stream(device), Event(device)
    pinned.write(numbers.view(np.uint8).reshape(-1))
    stream.copy(memory, pinned, numbers.nbytes)
    stream.record(done)
    done.synchronize()
    return memory


def _moves(rows: DeviceRows, batches: list[np.ndarray], timer: Timer, sizes: Sizes, how: str) -> list[float]:
    slots = [on_device(rows.device, batch) for batch in batches]
    numbers = np.random.default_rng(3).random(sizes.lookups * sizes.items, dtype=np.float32)
    given = on_device(rows.device, numbers)

    def run(turn: int) -> None:
        if how == "gather":
            rows.gather_on_device(slots[turn % BATCHES], sizes.lookups, given)
        else:
            rows.write_on_device(slots[turn % BATCHES], sizes.lookups, given, how, 1e-6)

    return timer(rows, run, sizes.times)


def _copy(device: Device, sizes: Sizes, timer: Timer) -> Measured:
    """The card's own copy, on the stream of some rows."""
    rows = DeviceRows(device, RowLayout(0, 4, 16, 16))
    source = on_device(device, np.random.default_rng(4).random(sizes.copied_bytes // 4, dtype=np.float32))
    to = Memory(device, sizes.copied_bytes)
    times = timer(rows, lambda turn: rows.copy_on_device(to, source, sizes.copied_bytes), sizes.times)
    return Measured("copy, device to device", "the driver", times, 2 * sizes.copied_bytes)


def _time_by_host(rows: DeviceRows, run: Callable[[int], None], times: int) -> list[float]:
    took = []
    for turn in range(times):
        began = time.perf_counter()
        run(turn)
        rows.synchronize()
        took.append(1e3 * (time.perf_counter() - began))
    return took


def _time_by_device(rows: DeviceRows, run: Callable[[int], None], times: int) -> list[float]:
    import cupy

    stream = cupy.cuda.ExternalStream(rows.stream_address)
    marks = [(cupy.cuda.Event(), cupy.cuda.Event()) for _ in range(times)]
    for turn in range(BATCHES):  # modules are loaded, scratch is allocated
        run(turn)
    for turn, (before, after) in enumerate(marks):
        before.record(stream)
        run(turn)
        after.record(stream)
    rows.synchronize()
    return [float(cupy.cuda.get_elapsed_time(before, after)) for before, after in marks]
