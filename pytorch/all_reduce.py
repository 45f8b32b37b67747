"""Sums of arrays over the ranks, by whatever the job has: torch.distributed, else MPI, else the parameter manager; of
small models on one host by the manager in place of torch.distributed.

A sum that was begun travels while the caller computes, and is there once it was finished. All ranks begin the same sums
in the same order.
"""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from intentpm.foundation.errors import WaitTimeoutError
from intentpm.launch.introduction import boot_id

SUM_S = 1800.0
"""For which sums wait for the other ranks, as torch.distributed's do. That a rank is lost shows before."""
POLLED_S = 0.05
"""Of a wait, without pauses."""
SMALL_BYTES = 256 << 10
"""Of all parameters. Up to here, on one host, the manager's sum takes 0.1 to 0.3 ms with 2 ranks and 0.3 to 1 with 4 on
two cores, gloo's 0.4 to 2 and 5 to 7; with 1 MB it is the other way round (docs/torch.md)."""


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

    def start(self, tensor: torch.Tensor, soon: bool = False) -> Sum:
        """Collective. ``tensor`` (contiguous) holds the sum once what is returned was finished; not before.

        soon: that will be next, so nothing is gained if it travels meanwhile.
        """
        ...


def choose_all_reduce(manager: Any, parameters: Sequence[torch.Tensor]) -> AllReduce:
    """Collective. The first that reaches exactly the ranks of ``manager``; for gradients of ``parameters``."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() == manager.size:
        return ManagerAllReduce(manager) if _is_small_job(manager, parameters) else TorchAllReduce()
    mpi = getattr(sys.modules.get("mpi4py"), "MPI", None)  # a job that does not use MPI must not start it
    if (
        mpi is not None
        and mpi.Is_initialized()
        and not mpi.Is_finalized()
        and mpi.COMM_WORLD.Get_size() == manager.size
    ):
        return MpiAllReduce(mpi, manager)
    return ManagerAllReduce(manager)


def _is_small_job(manager: Any, parameters: Sequence[torch.Tensor]) -> bool:
    is_small = sum(p.nbytes for p in parameters) <= SMALL_BYTES and all(p.device.type == "cpu" for p in parameters)
    answers = set(manager.allgather(boot_id() + bytes([is_small])))
    return len(answers) == 1 and is_small


class TorchAllReduce:
    """Over the default process group, in its threads."""

    name = "torch.distributed"

    def start(self, tensor: torch.Tensor, soon: bool = False) -> Sum:
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

    def __init__(self, mpi: Any, manager: Any) -> None:
        """Collective. Raises as ``Sum.finish``."""
        self._manager = manager
        self._communicator, made = mpi.COMM_WORLD.Idup()
        self._in_place = mpi.IN_PLACE
        _wait(manager, made.Test, "the communicator of dense gradients")

    def start(self, tensor: torch.Tensor, soon: bool = False) -> Sum:
        numbers = _in_host_numbers(tensor)
        request = self._communicator.Iallreduce(self._in_place, numbers)
        return _MpiSum(self._manager, request, numbers, tensor)


class _MpiSum:
    """Polled, as ``Request.Wait`` would wait for ever for a rank that never comes."""

    under_way: ClassVar[set[Any]] = set()
    """MPI may still write to their numbers, also when nobody waits for them any more. Guarded by: GIL."""

    def __init__(self, manager: Any, request: Any, numbers: Any, tensor: torch.Tensor) -> None:
        self._manager, self._request, self._numbers, self._tensor = manager, request, numbers, tensor
        self.under_way.add(self)

    def done(self) -> bool:
        there = bool(self._request.Test())
        if there:
            self.under_way.discard(self)
        return there

    def finish(self) -> None:
        """Raises PeerLostError; WaitTimeoutError after SUM_S."""
        _wait(self._manager, self.done, "a sum of dense gradients")
        self._tensor.copy_(torch.from_numpy(self._numbers))


def _wait(manager: Any, is_there: Callable[[], bool], what: str) -> None:
    """As ``Sum.finish``. MPI gets on when it is asked: without a pause for as long as a sum usually takes."""
    began = time.monotonic()
    while not is_there():
        manager.check()
        waited_s = time.monotonic() - began
        if waited_s >= SUM_S:
            raise WaitTimeoutError(
                f"rank {manager.rank}: not all {manager.size} ranks came to {what} within {SUM_S:g} s: every rank must "
                "make the same number of backward passes"
            )
        time.sleep(0.0 if waited_s < POLLED_S else 1e-3)


class ManagerAllReduce:
    """Over ``pm.allgather``, in rank order; in a thread, or by who finishes a sum that was to be there soon. Rank 0
    gathers it all: for small models."""

    name = "intentpm"

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._last: _ManagerSum | None = None

    def start(self, tensor: torch.Tensor, soon: bool = False) -> Sum:
        self._last = _ManagerSum(self._manager, tensor, None if self._last is None else self._last.thread, soon)
        return self._last


class _ManagerSum:
    """Made after the one before it has ended: collective calls are made in one order."""

    def __init__(self, manager: Any, tensor: torch.Tensor, after: threading.Thread | None, soon: bool) -> None:
        self._manager, self._numbers, self._tensor = manager, _in_host_numbers(tensor), tensor
        self._after = after
        # Of the thread until it has ended, then of whoever finishes.
        self._total: Any = None
        self._problem: BaseException | None = None
        self.thread: threading.Thread | None = None
        if not soon:
            self.thread = threading.Thread(target=self._run, name="intentpm-all-reduce", daemon=True)
            self.thread.start()

    def _run(self) -> None:
        try:
            self._total = self._sum()
        except BaseException as problem:
            self._problem = problem

    def _sum(self) -> Any:
        if self._after is not None:
            self._after.join()  # it ends, as its wait does
        total = np.zeros_like(self._numbers)
        for part in self._manager.allgather(self._numbers.tobytes(), SUM_S):
            total += np.frombuffer(part, total.dtype).reshape(total.shape)
        return total

    def done(self) -> bool:
        return self.thread is not None and not self.thread.is_alive()

    def finish(self) -> None:
        """After WaitTimeoutError, goes on waiting."""
        if self.thread is not None:
            self.thread.join()
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem
        if self._total is None:
            self._total = self._sum()
        self._tensor.copy_(torch.from_numpy(self._total))


def _in_host_numbers(tensor: torch.Tensor) -> Any:
    """A copy that numpy and MPI can add: 16-bit numbers as float32."""
    return tensor.detach().to("cpu", torch.promote_types(tensor.dtype, torch.float32), copy=True).numpy()
