import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
_Indices = npt.NDArray[np.int32]

def train_batch(
    user_rows: _Floats,
    item_rows: _Floats,
    user_index: _Indices,
    item_index: _Indices,
    ratings: _Floats,
    user_deltas: _Floats,
    item_deltas: _Floats,
    learning_rate: float,
    l2: float,
) -> float: ...
def squared_error(
    user_rows: _Floats, item_rows: _Floats, user_index: _Indices, item_index: _Indices, ratings: _Floats
) -> float: ...
