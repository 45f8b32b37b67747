"""What programs pass as keys and values, as flat arrays over the same memory: of torch tensors and numpy arrays.

torch is not imported here: who passes tensors has it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from intentpm.adapm.key_space import Integers, KeySpace, Part
from intentpm.foundation.errors import DtypeError, ShapeError
from intentpm.runtime.arguments import as_array, as_keys, is_tensor

Floats = npt.NDArray[np.float32]


def plain(value: Any) -> npt.NDArray[Any] | None:
    """A numpy array, or a tensor's memory as one; None for what is neither, or not that simple."""
    if type(value) is np.ndarray:
        return value
    if is_tensor(value):
        try:
            return value.numpy()
        except (TypeError, RuntimeError):  # another device, a gradient, a layout
            return None
    return None


def flat_keys(keys: Any) -> Integers:
    """Integers of any shape as int64 [K]. Raises DtypeError, ShapeError."""
    return as_keys(as_array(keys, "keys", "iuf").reshape(-1))


def flat_values(values: Any) -> Floats:
    """float32 of any shape, to read from: [elements], contiguous. Raises DtypeError."""
    return np.ascontiguousarray(_of_dtype(values, np.float32, "vals")).reshape(-1)


class Target:
    """Memory of the program's that is written to.

    ``flat``: [elements]: that memory, or where it is not contiguous, another that ``finish`` copies into it.
    """

    __slots__ = ("_scattered", "flat")

    def __init__(self, values: Any, dtype: Any, what: str) -> None:
        """Raises DtypeError for what is of another dtype, or cannot be written to."""
        if not isinstance(values, np.ndarray) and not is_tensor(values):
            raise DtypeError(f"{what} must be a torch tensor or a numpy array, not {type(values).__name__}")
        array = _of_dtype(values, dtype, what)
        if not array.flags.writeable:
            raise DtypeError(f"{what} is read-only")
        self._scattered = None if array.flags.c_contiguous else array
        self.flat: Any = array.reshape(-1) if self.is_direct else np.empty(array.size, dtype)

    @property
    def is_direct(self) -> bool:
        return self._scattered is None

    def finish(self) -> None:
        if self._scattered is not None:
            self._scattered[...] = self.flat.reshape(self._scattered.shape)


class Layout:
    """Where the values of a call's keys lie in its flat buffer: one after the other, in the order of the keys.

    ``parts``: of the call, table by table.
    """

    __slots__ = ("_lengths", "_offsets", "parts")

    def __init__(self, space: KeySpace, keys: Integers, elements: int) -> None:
        """Raises ShapeError unless the keys' values are ``elements`` floats together."""
        self._lengths = space.lengths
        self.parts = list(space.parts(keys))
        needed = sum(len(part.rows) * int(space.lengths[part.table]) for part in self.parts)
        if needed != elements:
            raise ShapeError(f"vals has {elements} values: the {keys.size} keys have {needed} together")
        self._offsets: Any = None  # of each key's values; of several parts only
        if len(self.parts) > 1:
            lengths = space.lengths_of(keys)
            self._offsets = np.cumsum(lengths) - lengths

    def rows(self, part: Part, flat: Floats) -> Floats | None:
        """The memory of a part as [k, length]; None where other keys' values lie in between."""
        if part.positions is None:
            return flat.reshape(len(part.rows), -1) if len(part.rows) else flat.reshape(0, self._length(part))
        first, last = int(part.positions[0]), int(part.positions[-1])
        if last - first + 1 != len(part.positions):
            return None
        begin = int(self._offsets[first])
        return flat[begin : begin + len(part.rows) * self._length(part)].reshape(len(part.rows), -1)

    def indices(self, part: Part) -> Integers:
        """Of a part's values in the flat buffer: [k, length]."""
        return self._offsets[part.positions][:, np.newaxis] + np.arange(self._length(part))

    def _length(self, part: Part) -> int:
        return int(self._lengths[part.table])


def _of_dtype(values: Any, dtype: Any, what: str) -> Any:
    array = as_array(values, what)
    if array.dtype != dtype:
        raise DtypeError(f"{what} has dtype {array.dtype}: needs {np.dtype(dtype).name}")
    return array
