from typing import Any

import numpy as np
import numpy.typing as npt

def add_to_rows(
    rows: npt.NDArray[Any], bags: npt.NDArray[Any], places: npt.NDArray[np.int64], starts: npt.NDArray[np.int64] | None
) -> None: ...
