"""Tensors that every rank has whole begin alike: as they are on rank 0."""

from typing import Any

import torch

from intentpm.foundation.errors import ConfigError


@torch.no_grad()
def copy_from_rank_0(tensors: list[torch.Tensor], manager: Any) -> None:
    """Collective: overwrites ``tensors`` with rank 0's. Raises ConfigError when they differ in bytes."""
    mine = b"".join(_bytes_of(tensor) for tensor in tensors)
    data = bytearray(manager.allgather(mine if manager.rank == 0 else b"")[0])
    if len(data) != len(mine):
        raise ConfigError(f"the module has {len(mine)} bytes of parameters and buffers, and {len(data)} on rank 0")
    at = 0
    for tensor in tensors:
        if tensor.nbytes:
            part = torch.frombuffer(data, dtype=torch.uint8, count=tensor.nbytes, offset=at)
            tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))
        at += tensor.nbytes


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
