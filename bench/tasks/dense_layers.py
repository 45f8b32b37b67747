"""The dense parameters of a model on several ranks: their gradients averaged in every step, or keys of a table."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

import intentpm.optim
import intentpm.torch
from intentpm.bench.tasks.adam_rows import AdamRows

B = TypeVar("B")
WAYS = ("allreduce", "keys")


class DenseLayers:
    """Trains the dense parameters of ``model`` by Adam. Collective.

    Parameters:
        way: "allreduce": every rank steps with the mean of all ranks' gradients, at the same time (all need the same
            number of steps). "keys": the parameters are rows of a table, which every rank pulls before its step and
            steps with its own gradients.
        is_saved: there will be checkpoints: what an optimiser of PyTorch keeps needs a place in them.

    Attributes: ``tables``, those that are to be in a checkpoint; ``lr``, of the steps to come.
    """

    def __init__(
        self, model: torch.nn.Module, pm: Any, worker: Any, way: str, lr: float, decay: float = 0.0,
        is_saved: bool = False,
    ) -> None:  # fmt: skip
        self.is_in_step, self.lr = way == "allreduce", lr
        self.tables: list[Any] = []
        self.table: Any = None
        self.optimizer: Any = None
        self.rows: AdamRows | None = None
        if way == "keys":
            adam = intentpm.optim.Adam(lr=lr, **l2(decay))
            self.table = intentpm.torch.DenseTable(model, worker, "dense", adam)
            self.tables = [self.table.table]
        else:
            intentpm.torch.average_gradients(model, pm)
            self.optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=decay)
            if is_saved:
                self.rows = AdamRows(self.optimizer, pm, worker)
                self.tables = [self.rows.table]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tables that training accesses."""
        return ("dense",) if self.table is not None else ()

    def save(self) -> None:
        """Just before a checkpoint: what is not in a table anyway."""
        if self.rows is not None:
            self.rows.write()

    def restore(self) -> None:
        """After the tables were loaded."""
        if self.rows is not None:
            self.rows.read()

    def read(self) -> None:
        """Before a forward pass: the newest parameters."""
        if self.table is not None:
            self.table.pull()

    def step(self) -> None:
        """After a backward pass."""
        if self.table is not None:
            self.table.push_gradients(lr=self.lr)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr
            self.optimizer.step()
            self.optimizer.zero_grad()

    def train(
        self, batches: Iterable[B], loss_of: Callable[[B], tuple[torch.Tensor, int]], modules: Iterable[Any]
    ) -> tuple[float, int]:
        """One pass, or the rest of one; returns the sum of the losses, and of how many examples.

        Parameters:
            loss_of: the mean loss of a batch, and of how many examples: 0 where a rank has fewer than another.
            modules: what else of the model has rows in tables; their steps are with the owners when it returns.
        """
        total, examples = 0.0, 0
        for batch in batches:
            self.read()
            loss, count = loss_of(batch)
            loss.backward()
            self.step()
            if count:
                total += float(loss.detach()) * count
                examples += count
        for module in (self, *modules):
            module.settle()
        return total, examples

    def settle(self) -> None:
        """Waits until this rank's steps are with their owners."""
        if self.table is not None:
            self.table.settle()


def l2(weight: float) -> dict[str, Any]:
    """Arguments of an optimizer of rows that regularises the rows it steps, if ``weight`` is not 0."""
    return {"weight_decay": weight, "weight_decay_mode": "l2"} if weight else {}
