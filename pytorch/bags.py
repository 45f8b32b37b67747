"""Sums and means of bags of rows, differentiable: forward is torch's, backward adds up the rows' gradients directly.

Torch's own backward for dense rows sorts the batch; here the rows are few, those of one batch, and are simply added to.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from intentpm.torch.bag_gradients import add_to_rows


class Bags(torch.autograd.Function):
    """``apply(rows, places, offsets, per_sample_weights, mode, include_last_offset, padding)``; shapes as of
    ``torch.nn.functional.embedding_bag``, mode "sum" or "mean".
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        places: torch.Tensor,
        offsets: torch.Tensor | None,
        weights: torch.Tensor | None,
        mode: str,
        include_last_offset: bool,
        padding: int | None,
    ) -> torch.Tensor:
        ctx.shape, ctx.mode, ctx.padding = rows.shape, mode, padding
        starts = None if offsets is None or not include_last_offset else offsets[:-1]
        ctx.save_for_backward(
            rows if weights is not None else None, places, offsets if starts is None else starts, weights
        )
        return functional.embedding_bag(
            places, rows, offsets, mode=mode, per_sample_weights=weights, include_last_offset=include_last_offset,
            padding_idx=padding,
        )  # fmt: skip

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        rows, places, starts, weights = ctx.saved_tensors
        keys = places.reshape(-1)
        if ctx.mode == "mean":
            sizes = _sizes(_bag_of_each(places, starts), keys, len(gradient), ctx.padding)
            gradient = gradient / sizes.to(gradient.dtype)[:, None]
        if weights is None and gradient.device.type == "cpu" and gradient.dtype in (torch.float32, torch.float64):
            of_rows = gradient.new_zeros(ctx.shape)
            add_to_rows(of_rows.numpy(), gradient.contiguous().numpy(), keys.contiguous().numpy(), _starts(starts))
            return of_rows, None, None, None, None, None, None
        bags = _bag_of_each(places, starts)
        one_each = starts is None and places.shape[1] == 1
        of_each = gradient if one_each else gradient.index_select(0, bags)
        of_weights = None
        if weights is not None:
            if ctx.needs_input_grad[3]:
                of_weights = (of_each * rows.index_select(0, keys)).sum(1)
                of_weights = _without(of_weights, keys, ctx.padding).view_as(weights)
            of_each = of_each * weights.reshape(-1, 1)
        of_rows = gradient.new_zeros(ctx.shape).index_add_(0, keys, of_each)
        return of_rows, None, None, of_weights, None, None, None


def _starts(starts: torch.Tensor | None) -> Any:
    return None if starts is None else starts.to(torch.int64).contiguous().numpy()


def _bag_of_each(places: torch.Tensor, starts: torch.Tensor | None) -> torch.Tensor:
    """int64 [K]: in which bag each key lies. 2-dimensional ``places`` are bags of equal length."""
    if starts is None:
        return torch.arange(len(places), device=places.device).repeat_interleave(places.shape[1])
    ends = torch.cat([starts[1:], starts.new_full((1,), places.numel())])
    bags = torch.arange(len(starts), device=places.device)
    return bags.repeat_interleave(ends - starts, output_size=places.numel())  # nobody waits for the device to say


def _sizes(bags: torch.Tensor, keys: torch.Tensor, count: int, padding: int | None) -> torch.Tensor:
    """Keys in each bag but for ``padding``; 1 where there is none."""
    counted = torch.ones_like(bags) if padding is None else (keys != padding).to(bags.dtype)
    return bags.new_zeros(count).index_add_(0, bags, counted).clamp_(min=1)


def _without(numbers: torch.Tensor, keys: torch.Tensor, padding: int | None) -> torch.Tensor:
    return numbers if padding is None else numbers.masked_fill(keys == padding, 0)
