import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
_Indices = npt.NDArray[np.int32]
_Counts = npt.NDArray[np.uint8]

def train_batch(
    input_rows: _Floats,
    output_rows: _Floats,
    tokens: _Indices,
    first: int,
    before: _Counts,
    after: _Counts,
    outputs: _Indices,
    input_deltas: _Floats,
    output_deltas: _Floats,
    learning_rate: float,
) -> float: ...
