import numpy as np
import numpy.typing as npt

MODELS: tuple[str, ...]

_Floats = npt.NDArray[np.float32]
_Indices = npt.NDArray[np.int32]

def relation_length(model: str, dim: int) -> int: ...
def queries(model: str, entity_rows: _Floats, relation_rows: _Floats, triples: _Indices, out: _Floats) -> None: ...
def add_query_gradients(
    model: str,
    entity_rows: _Floats,
    relation_rows: _Floats,
    triples: _Indices,
    made: _Floats,
    gradients: _Floats,
    regularisation: float,
    entity_gradients: _Floats,
    relation_gradients: _Floats,
) -> None: ...
def add_rows(to: _Floats, places: _Indices, rows: _Floats) -> None: ...
def adagrad(rows: _Floats, gradients: _Floats, learning_rate: float, deltas: _Floats) -> None: ...
def distances(left: _Floats, right: _Floats, out: _Floats) -> None: ...
def add_distance_gradients(
    left: _Floats, right: _Floats, slopes: _Floats, by_left: _Floats, by_right: _Floats
) -> None: ...
