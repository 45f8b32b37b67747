"""The dense parameters of a model on several ranks: their gradients averaged in every step, or keys of a table."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

import intentpm.optim
import intentpm.torch

B = TypeVar("B")
WAYS = ("allreduce", "keys")


class DenseLayers:
    """Trains the dense parameters of ``model`` by Adam. Collective.

    Parameters:
        way: "allreduce": every rank steps with the mean of all ranks' gradients, at the same time (all need the same
            number of steps). "keys": the parameters are rows of a table, which every rank pulls before its step and
            steps with its own gradients.
    """

    def __init__(self, model: torch.nn.Module, pm: Any, worker: Any, way: str, lr: float, decay: float = 0.0) -> None:
        self.table: Any = None
        self.optimizer: Any = None
        if way == "keys":
            adam = intentpm.optim.Adam(lr=lr, **l2(decay))
            self.table = intentpm.torch.DenseTable(model, worker, "dense", adam)
        else:
            intentpm.torch.average_gradients(model, pm)
            self.optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=decay)

    @property
    def names(self) -> tuple[str, ...]:
        """Of its tables."""
        return ("dense",) if self.table is not None else ()

    def read(self) -> None:
        """Before a forward pass: the newest parameters."""
        if self.table is not None:
            self.table.pull()

    def step(self) -> None:
        """After a backward pass."""
        if self.table is not None:
            self.table.push_gradients()
        else:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def train(
        self, batches: Iterable[B], loss_of: Callable[[B], tuple[torch.Tensor, int]], modules: Iterable[Any]
    ) -> float:
        """One pass; returns the sum of the losses.

        Parameters:
            loss_of: the mean loss of a batch, and of how many examples: 0 where a rank has fewer than another.
            modules: what else of the model has rows in tables; their steps are with the owners when it returns.
        """
        total = 0.0
        for batch in batches:
            self.read()
            loss, count = loss_of(batch)
            loss.backward()
            self.step()
            if count:
                total += float(loss.detach()) * count
        for module in (self, *modules):
            module.settle()
        return total

    def settle(self) -> None:
        """Waits until this rank's steps are with their owners."""
        if self.table is not None:
            self.table.settle()


def l2(weight: float) -> dict[str, Any]:
    """Arguments of an optimizer of rows that regularises the rows it steps, if ``weight`` is not 0."""
    return {"weight_decay": weight, "weight_decay_mode": "l2"} if weight else {}
