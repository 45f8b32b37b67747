"""``DenseTable``: the parameters of a module as rows of a table, for asynchronous training.

All parameters lie one after the other in one piece of memory, cut into rows: the table's. ``pull`` reads the rows
straight into the parameters.

Guarantees
    * What a rank pushes is added once to the weights of all, whatever other ranks push meanwhile.
    * A rank sees its own pushes in its next pull.
Assumption: the worker's thread alone uses it. Nobody else gives the parameters other memory (``module.to(...)`` does).
"""

from typing import Any

import numpy as np
import torch

from intentpm.foundation.errors import ConfigError, OptimizerError
from intentpm.torch.from_rank_0 import copy_from_rank_0
from intentpm.torch.table_module import table_from
from intentpm.torch.tensors import as_array

ROW_LENGTH = 1024
FOR_GOOD = 1 << 62
"""End of the intents, in clocks."""


class DenseTable:
    """Makes the parameters of ``module`` rows of a new table, which all ranks intend for good. Collective.

    Each step: ``pull()``, forward and backward, then with an optimizer of ``intentpm.optim``: ``push_gradients()``;
    without: a step of any torch optimiser, and ``push()``. No rank waits for another.

    Parameters
        module: the same on every rank; begins as it is on rank 0. Parameters that need a gradient are taken, all of one
            dtype, on the CPU. Buffers are copied from rank 0 once, and stay each rank's own.
        worker: of the thread that trains.
        name: of the table.
        optimizer: steps the weights with the gradients of all ranks, one after the other. What looks at a row as a
            whole (RowwiseAdagrad, ``clip_norm``, ``max_norm``) sees 1,024 numbers that happen to lie together.
    Raises ConfigError for a module without parameters, or of several dtypes or devices; as ``create_table``.
    """

    def __init__(self, module: torch.nn.Module, worker: Any, name: str, optimizer: Any = None) -> None:
        self.module, self.worker = module, worker
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        _check_alike(self._parameters)
        copy_from_rank_0([*module.parameters(), *module.buffers()], worker.manager)
        self._weights = _lay_out(self._parameters)
        self.table = table_from(self._weights, worker, name, optimizer)
        self._keys = np.arange(self.table.num_keys)
        self._rows = self._rows_of(self._weights)
        self._pulled = self._weights.clone()
        self._gradients = torch.zeros_like(self._weights)
        self._under_way: list[Any] = []
        worker.intent(self.table, self._keys, worker.clock, FOR_GOOD)

    def pull(self) -> None:
        """Reads the weights into the parameters. Raises PeerLostError, and what an earlier push met."""
        self._check_finished()
        self.worker.pull(self.table, self._keys, out=self._rows)
        self._pulled.copy_(self._weights)

    def push(self) -> None:
        """Adds what changed in the parameters since ``pull`` or ``push`` to the weights of all. Waits for nothing."""
        changes = self._rows_of(self._weights - self._pulled)
        self._under_way.append(self.worker.push_async(self.table, self._keys, changes))
        self._pulled.copy_(self._weights)

    def push_gradients(self, lr: float | None = None) -> None:
        """One step of the table's optimizer with the parameters' gradients, which are set to None. Waits for nothing.

        A parameter without a gradient counts as 0. lr: default: the optimizer's. Raises OptimizerError without one.
        """
        if self.table.optimizer is None:
            raise OptimizerError(
                f"table {self.table.name!r} has no optimizer: DenseTable(..., optimizer=...), or push()"
            )
        for parameter, part in zip(self._parameters, _parts(self._gradients, self._parameters), strict=True):
            if parameter.grad is None:
                part.zero_()
            else:
                part.copy_(parameter.grad)
            parameter.grad = None
        rows = self._rows_of(self._gradients)
        self._under_way.append(self.worker.push_grad_async(self.table, self._keys, rows, lr=lr))

    def settle(self) -> None:
        """Waits until all pushes of this rank are at the owners. Raises PeerLostError."""
        under_way, self._under_way = self._under_way, []
        for future in under_way:
            future.wait()
        self.worker.wait_sync()  # what a replica has not told its owner yet

    def _rows_of(self, numbers: torch.Tensor) -> Any:
        return as_array(numbers, self.table.dtype)

    def _check_finished(self) -> None:
        while self._under_way and self._under_way[0].done():
            self._under_way.pop(0).wait()


def _check_alike(parameters: list[torch.nn.Parameter]) -> None:
    kinds = {f"{parameter.dtype} on {parameter.device}" for parameter in parameters}
    if not parameters:
        raise ConfigError("the module has no parameters that need a gradient: there is nothing for a DenseTable")
    if len(kinds) > 1 or parameters[0].device.type != "cpu":
        raise ConfigError(
            f"the module has parameters of {', '.join(sorted(kinds))}: a DenseTable needs one dtype, on the CPU"
        )


def _lay_out(parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    """Moves the parameters into rows, of which they become views. Returns these."""
    count = sum(parameter.numel() for parameter in parameters)
    length = max(1, min(count, ROW_LENGTH))
    rows = torch.zeros(max(1, -(-count // length)), length, dtype=parameters[0].dtype)
    for parameter, part in zip(parameters, _parts(rows, parameters), strict=True):
        part.copy_(parameter.detach())
        parameter.data = part
    return rows


def _parts(rows: torch.Tensor, parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """The views of ``rows`` where the parameters lie."""
    sizes = [parameter.numel() for parameter in parameters]
    parts = rows.view(-1)[: sum(sizes)].split(sizes)
    return [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]
