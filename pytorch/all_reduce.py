"""Sums of arrays over the ranks, by whatever the job has: torch.distributed, else MPI, else the parameter manager.

A sum that was begun travels while the caller computes, and is there once it was finished. All ranks begin the same sums
in the same order.
"""

import sys
import threading
from typing import Any, Protocol

import numpy as np
import torch


class Sum(Protocol):
    """One that was begun."""

    def done(self) -> bool:
        """Whether it is there, but for ``finish``. Does what progress needs of the caller; waits for nothing."""
        ...

    def finish(self) -> None:
        """Waits for it. Raises what went wrong."""
        ...


class AllReduce(Protocol):
    """One way to sum over the ranks. One thread at a time."""

    name: str

    def start(self, tensor: torch.Tensor) -> Sum:
        """Collective. ``tensor`` (contiguous) holds the sum once what is returned was finished; not before."""
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
    """Over the default process group, in its threads."""

    name = "torch.distributed"

    def start(self, tensor: torch.Tensor) -> Sum:
        return _TorchSum(torch.distributed.all_reduce(tensor, async_op=True))


class _TorchSum:
    def __init__(self, work: Any) -> None:
        self._work = work

    def done(self) -> bool:
        return bool(self._work.is_completed())

    def finish(self) -> None:
        self._work.wait()


class MpiAllReduce:
    """Over a communicator of its own. MPI moves what is under way when it is called, and ``done`` calls it."""

    name = "MPI"

    def __init__(self, mpi: Any) -> None:
        """Collective."""
        self._communicator, self._in_place = mpi.COMM_WORLD.Dup(), mpi.IN_PLACE

    def start(self, tensor: torch.Tensor) -> Sum:
        numbers = _in_host_numbers(tensor)
        return _MpiSum(self._communicator.Iallreduce(self._in_place, numbers), numbers, tensor)


class _MpiSum:
    def __init__(self, request: Any, numbers: Any, tensor: torch.Tensor) -> None:
        self._request, self._numbers, self._tensor = request, numbers, tensor

    def done(self) -> bool:
        return bool(self._request.Test())

    def finish(self) -> None:
        self._request.Wait()
        self._tensor.copy_(torch.from_numpy(self._numbers))


class ManagerAllReduce:
    """Over ``pm.allgather``, in a thread, in rank order. Rank 0 gathers it all: for small models."""

    name = "intentpm"

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._last: _ManagerSum | None = None

    def start(self, tensor: torch.Tensor) -> Sum:
        self._last = _ManagerSum(self._manager, _in_host_numbers(tensor), tensor, self._last)
        return self._last


class _ManagerSum:
    """A thread that begins when that of the sum before it has ended: collective calls are made in one order."""

    def __init__(self, manager: Any, numbers: Any, tensor: torch.Tensor, before: "_ManagerSum | None") -> None:
        self._manager, self._numbers, self._tensor = manager, numbers, tensor
        self._problem: BaseException | None = None
        after = None if before is None else before.thread
        self.thread: threading.Thread = threading.Thread(
            target=self._run, args=(after,), name="intentpm-all-reduce", daemon=True
        )
        self.thread.start()

    def _run(self, after: threading.Thread | None) -> None:
        try:
            if after is not None:
                after.join()  # it ends: allgather raises when a rank is lost
            self._numbers = self._sum(self._numbers)
        except BaseException as problem:
            self._problem = problem

    def _sum(self, numbers: Any) -> Any:
        total = np.zeros_like(numbers)
        for part in self._manager.allgather(numbers.tobytes()):
            total += np.frombuffer(part, numbers.dtype).reshape(numbers.shape)
        return total

    def done(self) -> bool:
        return not self.thread.is_alive()

    def finish(self) -> None:
        self.thread.join()
        if self._problem is not None:
            raise self._problem
        self._tensor.copy_(torch.from_numpy(self._numbers))


def _in_host_numbers(tensor: torch.Tensor) -> Any:
    """A copy that numpy and MPI can add: 16-bit numbers as float32."""
    return tensor.detach().to("cpu", torch.promote_types(tensor.dtype, torch.float32), copy=True).numpy()
