"""Rows as torch's tensors and as numpy's arrays, over the same memory; bfloat16 too, which numpy has from ml_dtypes."""

from typing import Any

import numpy as np
import torch

from intentpm.foundation.errors import DtypeError

TORCH_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
INTEGER_DTYPES = {"int32": torch.int32, "int64": torch.int64}


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """Raises DtypeError for integers, which have no gradient."""
    if dtype.name not in TORCH_DTYPES:
        raise DtypeError(f"rows of {dtype.name} cannot be an embedding: choose one of {', '.join(TORCH_DTYPES)}")
    return TORCH_DTYPES[dtype.name]


def as_tensor(rows: Any) -> torch.Tensor:
    """The memory of ``rows`` (writable) as a tensor."""
    if rows.dtype.name == "bfloat16":
        return torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(rows)


def as_array(tensor: torch.Tensor, dtype: Any) -> Any:
    """A tensor of any device and number type as a contiguous array of ``dtype``; the same memory where that can be."""
    here = tensor.detach().to(device="cpu", dtype=(TORCH_DTYPES | INTEGER_DTYPES)[np.dtype(dtype).name]).contiguous()
    if here.dtype == torch.bfloat16:
        return here.view(torch.int16).numpy().view(dtype)
    return here.numpy()


def nbytes_of(batch: Any) -> int:
    """Bytes of the tensors and arrays in a batch: nested tuples, lists and mappings of them."""
    if isinstance(batch, torch.Tensor | np.ndarray):
        return batch.nbytes
    if isinstance(batch, dict):
        return sum(map(nbytes_of, batch.values()))
    return sum(map(nbytes_of, batch)) if isinstance(batch, list | tuple) else 0
