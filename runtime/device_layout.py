"""How a table's rows lie in the memory of a device: what ``gpu/`` is told of them."""

import math
from typing import Any

import numpy as np

from intentpm.gpu.kernel_names import DTYPES, RowLayout
from intentpm.runtime.optimisers import RowOptimiser

_DECAYS = ("none", "l2", "decoupled")  # Decay of gpu/kernel_arguments.hpp


def dtype_code(dtype: np.dtype[Any]) -> int:
    """Its number in Table.DTYPES."""
    return [name.lower() for name in DTYPES].index(dtype.name)


def device_layout(
    dtype: np.dtype[Any],
    items: int,
    stride_bytes: int,
    stored: np.dtype[Any] | None,
    optimiser: RowOptimiser | None,
) -> RowLayout:
    """Rows of ``items`` weights; with an ``optimiser``, of ``stored``, the structure that has its state."""
    if optimiser is None or stored is None:
        return RowLayout(dtype_code(dtype), items, items * dtype.itemsize, stride_bytes)
    state = (stored.names or ())[1:]
    fields = stored.fields
    offset = fields[state[0]][1] if fields is not None and state else stored.itemsize
    return RowLayout(dtype_code(dtype), items, stored.itemsize, stride_bytes, optimiser.rule, offset)


def step_numbers(optimiser: RowOptimiser) -> dict[str, float | int]:
    """Those of StepNumbers, but for the offset of the state and the rate, which each call brings."""
    beta1, beta2 = getattr(optimiser, "betas", (0.0, 0.0))
    return {
        "lr": optimiser.lr,
        "eps": getattr(optimiser, "eps", 0.0),
        "beta1": beta1,
        "beta2": beta2,
        "log_beta1": math.log(beta1) if beta1 > 0 else -math.inf,
        "log_beta2": math.log(beta2) if beta2 > 0 else -math.inf,
        "weight_decay": optimiser.weight_decay,
        "max_norm": _limit(optimiser.max_norm),
        "clip_value": _limit(optimiser.clip_value),
        "clip_norm": _limit(optimiser.clip_norm),
        "decay": _DECAYS.index(optimiser.weight_decay_mode),
    }


def _limit(given: float | None) -> float:
    return math.inf if given is None else given
