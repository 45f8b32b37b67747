"""Dense parameters and what Adam keeps of them, written into a table where a checkpoint is to have them."""

from typing import Any

import numpy as np
import torch

ROW_LENGTH = 1_024


class AdamRows:
    """A table with a model's parameters, both of Adam's moments, and how many steps were made. Collective.

    It holds what rank 0 wrote last; in training nobody reads it. All ranks' parameters are alike.

    Parameters:
        optimizer: torch.optim.Adam of float32 parameters on the CPU.
    """

    def __init__(self, optimizer: torch.optim.Adam, pm: Any, worker: Any) -> None:
        self.optimizer, self.pm, self.worker = optimizer, pm, worker
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbers = 1 + 3 * sum(parameter.numel() for parameter in self.parameters)
        self.rows = torch.zeros(-(-numbers // ROW_LENGTH), ROW_LENGTH)
        self.keys = np.arange(len(self.rows))
        self.table = pm.create_table("dense_state", len(self.rows), ROW_LENGTH, dtype="float32", init=0.0)

    def write(self) -> None:
        """On rank 0: returns when it is in the table."""
        if self.pm.rank:
            return
        states = [self.optimizer.state.get(parameter) or {"step": 0.0} for parameter in self.parameters]
        self.rows.view(-1)[0] = max(float(state["step"]) for state in states)
        for source, part in zip(self._tensors(), self._parts(), strict=True):
            part.copy_(source)
        self.worker.set(self.table, self.keys, self.rows.numpy())

    def read(self) -> None:
        """On every rank, into the parameters and the optimizer."""
        self.worker.pull(self.table, self.keys, out=self.rows.numpy())
        steps = self.rows.view(-1)[0]
        for parameter in self.parameters:
            self.optimizer.state[parameter] = {
                "step": steps.clone(), "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }  # fmt: skip
        for target, part in zip(self._tensors(), self._parts(), strict=True):
            target.copy_(part)

    def _tensors(self) -> list[torch.Tensor]:
        """Of each parameter itself and its moments, zeros before the first step."""
        found = []
        for parameter in self.parameters:
            state = self.optimizer.state.get(parameter) or {}
            moments = [state.get(name, torch.zeros_like(parameter)) for name in ("exp_avg", "exp_avg_sq")]
            found += [parameter.detach(), *moments]
        return found

    def _parts(self) -> list[torch.Tensor]:
        """The views of the rows where these lie."""
        sizes = [parameter.numel() for parameter in self.parameters for _ in range(3)]
        parts = self.rows.view(-1)[1 : 1 + sum(sizes)].split(sizes)
        shapes = [parameter.shape for parameter in self.parameters for _ in range(3)]
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
