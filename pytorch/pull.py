"""The one differentiable operation: rows of a table for distinct keys. Torch's own functions do the rest with them."""

from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from intentpm.foundation.errors import DtypeError
from intentpm.torch.gradients import TableGradients
from intentpm.torch.tensors import as_tensor


def pull_distinct(
    gradients: TableGradients, wanted: torch.Tensor, padding_key: int | None, trained: bool
) -> tuple[torch.Tensor, torch.Tensor, int | None]:
    """Pulls the rows of the keys in ``wanted``, each once.

    Returns (rows [U, D], the place of each key of ``wanted`` among them, that of ``padding_key`` or None). Backward
    through ``rows`` hands their gradients, but for ``padding_key``'s, to ``gradients``; with ``trained`` False none.
    """
    if wanted.dtype not in (torch.int64, torch.int32):
        raise DtypeError(f"keys have dtype {wanted.dtype}: pass an int64 or int32 tensor")
    distinct, places = torch.unique(wanted, return_inverse=True)
    keys = distinct.to(device="cpu", dtype=torch.int64).numpy()
    padding = _place_of(keys, padding_key)
    # Autograd records a function only if some tensor that it is given needs a gradient.
    anchor = torch.empty(0, requires_grad=trained and torch.is_grad_enabled())
    rows = _Pull.apply(gradients, keys, padding, anchor)
    return rows.to(wanted.device), places, padding


def _place_of(keys: Any, key: int | None) -> int | None:
    if key is None:
        return None
    place = int(np.searchsorted(keys, key))
    return place if place < len(keys) and keys[place] == key else None


class _Pull(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: TableGradients, keys: Any, padding: int | None, anchor: torch.Tensor) -> Any:
        gradients.before_forward()
        ctx.gradients, ctx.keys, ctx.padding = gradients, keys, padding
        return as_tensor(gradients.worker.pull(gradients.table, keys))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        keys = ctx.keys
        if ctx.padding is not None:
            others = np.arange(len(keys)) != ctx.padding
            keys, gradient = keys[others], gradient[torch.from_numpy(others).to(gradient.device)]
        if len(keys):
            ctx.gradients.add(keys, gradient)
        return None, None, None, None
