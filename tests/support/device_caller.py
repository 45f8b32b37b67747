"""A program with arrays on an emulated device, whose stream may be late or stand still."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import intentpm
from intentpm.gpu.device_arrays import EmulatedArray
from intentpm.gpu.emulated import EmulatedDevice
from intentpm.gpu.handles import Stream

WAIT_S = 60.0
KEYS, LENGTH = 40, 6
"""Of the tables that tests make."""


def rows_of(count: int, seed: int = 0) -> np.ndarray:
    """Small whole numbers: sums of them are exact."""
    return np.random.default_rng(seed).integers(-4, 5, (count, LENGTH)).astype(np.float32)


class Caller:
    """A program with arrays on the device of a worker: what it does with them is work of its stream."""

    def __init__(self, worker: intentpm.Worker) -> None:
        self.worker, self.device = worker, worker.device
        assert isinstance(self.device, EmulatedDevice)
        self.stream = Stream(self.device)
        self.kept: list[Any] = []
        """What its stream may still use."""

    def array(self, values: np.ndarray) -> EmulatedArray:
        made = self.device.new_array(values.shape, values.dtype)
        made.set(values, self.stream)
        return made

    def late(self, values: np.ndarray) -> EmulatedArray:
        """Not there yet: its values come from another array, on the stream."""
        source = self.array(values)
        made = self.device.new_array(values.shape, values.dtype)
        self.stream.copy(made.memory, source.memory, values.nbytes)
        self.kept.append(source)
        return made

    def get(self, array: EmulatedArray) -> np.ndarray:
        return array.get(self.stream)

    @contextmanager
    def at_work(self) -> Iterator["Caller"]:
        """The calling thread works on its stream; at the end nothing was used wrongly."""
        with self.device.using(self.stream):
            yield self
        self.stream.synchronize()
        self.kept.clear()
        assert self.device.defects == []


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {WAIT_S:g} s"
        time.sleep(0.001)


@contextmanager
def held(caller: Caller) -> Iterator[None]:
    """The caller's stream stands still, as if it waited for another rank; there is something that it has not done."""
    caller.device.held = caller.stream.address
    caller.kept.append(caller.device.new_array((4,), np.float32))
    caller.stream.fill(caller.kept[-1].memory, 0)
    try:
        yield
    finally:
        caller.device.held = 0
