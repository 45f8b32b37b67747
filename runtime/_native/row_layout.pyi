from typing import Any

import numpy as np
import numpy.typing as npt

from intentpm.runtime.optimisers import RowOptimiser

COUNTS: tuple[str, ...]
PER_ITEM: str
WEIGHTS: str

def stored_dtype(dtype: np.dtype[Any], row_shape: tuple[int, ...], optimiser: RowOptimiser) -> np.dtype[Any]: ...
def initial_state(stored: np.dtype[Any] | None, optimiser: RowOptimiser | None) -> npt.NDArray[np.uint8] | None: ...
