import numpy as np
import numpy.typing as npt

LOSSES: tuple[str, ...]

_Floats = npt.NDArray[np.float32]
_Indices = npt.NDArray[np.int32]

def train_batch(
    entity_rows: _Floats,
    relation_rows: _Floats,
    triples: _Indices,
    negatives: _Indices,
    entity_deltas: _Floats,
    relation_deltas: _Floats,
    learning_rate: float,
    l2: float,
    loss: str,
) -> float: ...
