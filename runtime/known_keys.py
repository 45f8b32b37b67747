"""What keys on a device are, where the host has been told before: so that nobody waits for the device to say."""

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intentpm.gpu.device_arrays import DeviceArray

Place = tuple[int, tuple[int, ...], tuple[int, ...], str]
"""Address, shape, strides and dtype: two views that begin at one key may go on with others."""


@dataclass(frozen=True, slots=True)
class _Known:
    array: Any
    """Kept: while it is, its memory is nobody else's."""
    version: int
    keys: npt.NDArray[np.int64]
    end: int


class KnownKeys:
    """Of one worker, whose thread alone uses it. An entry ends with the window it was announced for.

    Only arrays that count their changes (``_version``: PyTorch's tensors, all views of one storage together) are known
    again: of any other nobody could tell whether it still holds the same keys.
    """

    def __init__(self) -> None:
        self._known: dict[Place, _Known] = {}
        self._ends: list[tuple[int, Place]] = []
        """A heap, of all that were noted."""

    def note(self, array: DeviceArray, keys: npt.NDArray[np.int64], end: int) -> None:
        """``array`` holds ``keys`` [K]; until the worker's clock is ``end``."""
        version = _version_of(array.given)
        if version is not None:
            place = _place_of(array)
            self._known[place] = _Known(array.given, version, keys, end)
            heapq.heappush(self._ends, (end, place))

    def find(self, array: DeviceArray) -> npt.NDArray[np.int64] | None:
        """Its keys; None: they are not known, or the array has been changed since."""
        known = self._known.get(_place_of(array))
        return known.keys if known is not None and known.version == _version_of(array.given) else None

    def clear(self) -> None:
        self._known.clear()
        self._ends.clear()

    def expire(self, clock: int) -> None:
        """Forgets those whose window is over."""
        while self._ends and self._ends[0][0] <= clock:
            _, place = heapq.heappop(self._ends)
            known = self._known.get(place)
            if known is not None and known.end <= clock:
                del self._known[place]


def _place_of(array: DeviceArray) -> Place:
    return array.address, array.shape, array.strides, array.dtype.str


def _version_of(given: Any) -> int | None:
    try:
        return int(given._version)
    except (AttributeError, RuntimeError):  # tensors of inference mode count nothing
        return None
