from typing import final

import numpy as np
import numpy.typing as npt

@final
class DistinctKeys: ...

def distinct_keys(keys: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...
