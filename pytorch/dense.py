"""``average_gradients``: dense parameters, which every rank has whole, are trained in step.

Guarantees
    * After each backward pass, ``grad`` of every parameter is the mean over the ranks of what it is on each; one
      that a rank's pass did not reach counts as 0 there.
    * All ranks sum the same buckets in the same order: one is begun when its last gradient is there and those before it
      have begun, so that it travels while backward goes on; what is left is begun at the end of the pass.
Assumption: every rank makes the same number of backward passes that reach a parameter.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from intentpm.foundation.errors import ConfigError
from intentpm.torch.all_reduce import AllReduce, Sum, choose_all_reduce
from intentpm.torch.from_rank_0 import copy_from_rank_0

BUCKET_BYTES = 1 << 20


def average_gradients(module: torch.nn.Module, manager: Any) -> "DenseGradients":
    """Collective: gives ``module`` the parameters and buffers of rank 0; every backward pass from now on leaves the
    mean gradients of all ranks in them, for any torch optimiser. Embeddings over tables have no parameters.

    Parameters
        manager: of the job. The sums go over torch.distributed where it is initialised, else over MPI where mpi4py is
            in use, else over the manager itself, which is for small models: these go over it in place of
            torch.distributed where all ranks are on one host.
    Raises ConfigError for a DistributedDataParallel, which does the same; as ``pm.barrier``.
    """
    if isinstance(module, torch.nn.parallel.DistributedDataParallel):
        raise ConfigError("DistributedDataParallel averages its gradients itself: do not call average_gradients on it")
    return DenseGradients(module, manager, choose_all_reduce(manager, trained_parameters(module)))


def trained_parameters(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


class DenseGradients:
    """Made by ``average_gradients``; the parameters' hooks keep it. Backward passes of one thread at a time."""

    def __init__(self, module: torch.nn.Module, manager: Any, all_reduce: AllReduce) -> None:
        self._all_reduce, self._size = all_reduce, manager.size
        parameters = trained_parameters(module)
        self._buckets = _buckets_of(parameters[::-1])  # backward reaches the last ones first
        self._bucket_of = {parameter: number for number, bucket in enumerate(self._buckets) for parameter in bucket}
        self._active, self._pass = True, -1
        self._missing: list[int] = []
        self._begun: list[tuple[torch.Tensor, Sum]] = []
        self._there = 0
        """How many of the sums begun are known to be there, from the first on."""
        self._hooks: list[Any] = []
        if manager.size > 1:
            copy_from_rank_0([*module.parameters(), *module.buffers()], manager)
            self._hooks = [parameter.register_post_accumulate_grad_hook(self._reached) for parameter in parameters]

    @property
    def over(self) -> str:
        """What the sums go over: "torch.distributed", "MPI" or "intentpm"."""
        return self._all_reduce.name

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes in here leave each rank its own gradients; the next one outside averages their sum."""
        self._active = False
        try:
            yield
        finally:
            self._active = True

    def remove(self) -> None:
        """Ends it: gradients are each rank's own again. Every rank must call it at the same point."""
        for hook in self._hooks:
            hook.remove()

    def _reached(self, parameter: torch.Tensor) -> None:
        """A gradient is complete."""
        if not self._active:
            return
        current = torch._C._current_graph_task_id()
        if current != self._pass:
            self._pass, self._begun, self._there = current, [], 0
            self._missing = [len(bucket) for bucket in self._buckets]
            torch.autograd.Variable._execution_engine.queue_callback(self._end_pass)
        self._missing[self._bucket_of[parameter]] -= 1
        while len(self._begun) < len(self._buckets) and self._missing[len(self._begun)] == 0:
            self._begin_next()
        self._look_at_sums()

    def _look_at_sums(self) -> None:
        """MPI makes progress when it is asked: at every parameter that backward reaches."""
        while self._there < len(self._begun) and self._begun[self._there][1].done():
            self._there += 1

    def _begin_next(self) -> None:
        bucket = self._buckets[len(self._begun)]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([part.detach().reshape(-1) for part in parts])
        is_last = len(self._begun) == len(self._buckets) - 1
        self._begun.append((flat, self._all_reduce.start(flat, soon=is_last)))

    def _end_pass(self) -> None:
        while len(self._begun) < len(self._buckets):
            self._begin_next()
        begun, self._begun, self._pass = self._begun, [], -1
        for bucket, (flat, total) in zip(self._buckets, begun, strict=True):
            total.finish()
            flat /= self._size
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                mean = part.view_as(parameter)
                if parameter.grad is None:
                    parameter.grad = mean.clone()
                else:
                    parameter.grad.copy_(mean)


def _buckets_of(parameters: list[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """In order, of one dtype and device and up to BUCKET_BYTES each (or one parameter)."""
    buckets: list[list[torch.nn.Parameter]] = []
    nbytes = 0
    for parameter in parameters:
        last = buckets[-1][-1] if buckets else None
        alike = last is not None and (last.dtype, last.device) == (parameter.dtype, parameter.device)
        if not alike or nbytes + parameter.nbytes > BUCKET_BYTES:
            buckets.append([])
            nbytes = 0
        buckets[-1].append(parameter)
        nbytes += parameter.nbytes
    return buckets
