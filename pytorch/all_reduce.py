"""Sums of arrays over the ranks, by whatever the job has: torch.distributed, else MPI, else the parameter manager.

A sum is begun with ``start`` and is there once what that returns was called. All ranks start the same sums in the same
order.
"""

import sys
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

Finish = Callable[[], None]


class AllReduce(Protocol):
    """One way to sum over the ranks. One thread at a time."""

    name: str

    def start(self, tensor: torch.Tensor) -> Finish:
        """Collective. ``tensor`` (contiguous) holds the sum once what is returned was called; leave it alone before."""
        ...


def choose_all_reduce(manager: Any) -> AllReduce:
    """The first that reaches exactly the ranks of ``manager``."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() == manager.size:
        return TorchAllReduce()
    mpi = getattr(sys.modules.get("mpi4py"), "MPI", None)  # a job that does not use MPI must not start it
    if (
        mpi is not None
        and mpi.Is_initialized()
        and not mpi.Is_finalized()
        and mpi.COMM_WORLD.Get_size() == manager.size
    ):
        return MpiAllReduce(mpi)
    return ManagerAllReduce(manager)


class TorchAllReduce:
    """Over the default process group; runs beside the backward pass."""

    name = "torch.distributed"

    def start(self, tensor: torch.Tensor) -> Finish:
        work = torch.distributed.all_reduce(tensor, async_op=True)
        return lambda: work.wait()


class MpiAllReduce:
    """Over a communicator of its own; runs beside the backward pass as far as the MPI library works uncalled."""

    name = "MPI"

    def __init__(self, mpi: Any) -> None:
        """Collective."""
        self._communicator, self._in_place = mpi.COMM_WORLD.Dup(), mpi.IN_PLACE

    def start(self, tensor: torch.Tensor) -> Finish:
        numbers = _in_host_numbers(tensor)
        request = self._communicator.Iallreduce(self._in_place, numbers)

        def finish() -> None:
            request.Wait()
            tensor.copy_(torch.from_numpy(numbers))

        return finish


class ManagerAllReduce:
    """Over ``pm.allgather``, when the sum is asked for, in rank order. Rank 0 gathers it all: for small models."""

    name = "intentpm"

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def start(self, tensor: torch.Tensor) -> Finish:
        return lambda: self._sum(tensor)

    def _sum(self, tensor: torch.Tensor) -> None:
        numbers = _in_host_numbers(tensor)
        total = np.zeros_like(numbers)
        for part in self._manager.allgather(numbers.tobytes()):
            total += np.frombuffer(part, numbers.dtype).reshape(numbers.shape)
        tensor.copy_(torch.from_numpy(total))


def _in_host_numbers(tensor: torch.Tensor) -> Any:
    """A copy that numpy and MPI can add: 16-bit numbers as float32."""
    return tensor.detach().to("cpu", torch.promote_types(tensor.dtype, torch.float32), copy=True).numpy()
