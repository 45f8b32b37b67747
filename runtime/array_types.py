"""What users may pass as arrays, as types; what they are at run time, the docstrings say."""

from collections.abc import Sequence
from typing import Any, Protocol, SupportsIndex

import numpy as np
import numpy.typing as npt


class IntegerArray(Protocol):
    """What numpy takes for an array of integers: its own, tensors in host memory, columns of a frame."""

    def __array__(self) -> npt.NDArray[np.integer[Any]]: ...


class NumberArray(Protocol):
    """The same of any numbers."""

    def __array__(self) -> npt.NDArray[Any]: ...


# Not ``npt.ArrayLike``: a text is one too.
Keys = Sequence[SupportsIndex] | IntegerArray
"""K integers."""
Weights = Sequence[float] | NumberArray
"""A number for each key of a table."""
