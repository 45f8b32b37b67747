"""The one differentiable operation: rows of a table for some keys. Torch's own functions do the rest with them."""

from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from intentpm.foundation.errors import DtypeError
from intentpm.runtime._native.distinct import distinct_keys
from intentpm.torch.gradients import TableGradients
from intentpm.torch.on_device import device_of, empty_on, indices_on
from intentpm.torch.tensors import as_tensor, torch_dtype


def pull_distinct(
    gradients: TableGradients, wanted: torch.Tensor, padding_key: int | None, trained: bool
) -> tuple[torch.Tensor, torch.Tensor, int | None]:
    """Pulls the rows of the keys in ``wanted``, each once.

    Returns (rows [U, D], the place of each key of ``wanted`` among them, that of ``padding_key`` or None), on the
    device of the worker, or of ``wanted`` with a worker of the host. Backward through ``rows`` hands their gradients,
    but for ``padding_key``'s, to ``gradients``; with ``trained`` False none.
    """
    _check(wanted)
    device = device_of(gradients.worker)
    if device is None:
        keys, found = distinct_keys(wanted.detach().reshape(-1).to(device="cpu", dtype=torch.int64).numpy())
        places = torch.from_numpy(found).view(wanted.shape).to(wanted.device)
    else:  # by the host, which knows the keys, or is told once: the device would be waited for
        keys, found = distinct_keys(_keys_on_host(gradients, wanted))
        places = indices_on(device, found.reshape(tuple(wanted.shape)))
    padding = _place_of(keys, padding_key)
    rows = _Pull.apply(gradients, keys, padding, _anchor(trained))
    return (rows if device is not None else rows.to(wanted.device)), places, padding


def pull_each(
    gradients: TableGradients, wanted: torch.Tensor, padding_key: int | None, trained: bool
) -> torch.Tensor | None:
    """The rows of the keys in ``wanted`` [..., D], one for each, in the memory of the worker's device, which adds up
    the gradients of those that come twice. None: with a worker of the host; where there is a ``padding_key``.
    """
    _check(wanted)
    if device_of(gradients.worker) is None or padding_key is not None:
        return None
    rows = _Pull.apply(gradients, _keys_on_host(gradients, wanted), None, _anchor(trained))
    return rows.view(*wanted.shape, rows.shape[-1])


def _check(wanted: torch.Tensor) -> None:
    if wanted.dtype not in (torch.int64, torch.int32):
        raise DtypeError(f"keys have dtype {wanted.dtype}: pass an int64 or int32 tensor")


def _anchor(trained: bool) -> torch.Tensor:
    """Autograd records a function only if some tensor that it is given needs a gradient."""
    return torch.empty(0, requires_grad=trained and torch.is_grad_enabled())


def _keys_on_host(gradients: TableGradients, wanted: torch.Tensor) -> Any:
    return np.asarray(gradients.worker.keys_on_host(wanted.reshape(-1)), np.int64)


def _place_of(keys: Any, key: int | None) -> int | None:
    if key is None:
        return None
    places = np.flatnonzero(keys == key)
    return int(places[0]) if len(places) else None


class _Pull(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: TableGradients, keys: Any, padding: int | None, anchor: torch.Tensor) -> Any:
        gradients.before_forward()
        ctx.gradients, ctx.keys, ctx.padding = gradients, keys, padding
        table, device = gradients.table, device_of(gradients.worker)
        if device is None:
            return as_tensor(gradients.worker.pull(table, keys))
        rows = empty_on(device, (len(keys), *table.row_shape), torch_dtype(table.dtype))
        return gradients.worker.pull(table, keys, out=rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        keys = ctx.keys
        if ctx.padding is not None:
            others = np.delete(np.arange(len(keys)), ctx.padding)
            keys = keys[others]
            gradient = gradient.index_select(0, torch.from_numpy(others).to(gradient.device, non_blocking=True))
        if len(keys):
            ctx.gradients.add(keys, gradient)
        return None, None, None, None
