"""What Embedding and EmbeddingBag have in common: a table instead of a weight, and its place in a state_dict."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from intentpm.foundation.errors import Error, ShapeError
from intentpm.torch.gradients import gradients_of
from intentpm.torch.tensors import as_array, as_tensor, torch_dtype

ROWS_A_CALL = 65536


class TableModule(torch.nn.Module):
    """A module whose weight is a table of the parameter manager. It has no parameters: nothing for an optimiser or
    DistributedDataParallel to do.

    One thread at a time, the worker's. Gradients of one backward pass are one step of the table's optimiser.
    """

    def __init__(self, table: Any, worker: Any, padding_idx: int | None, freeze: bool) -> None:
        super().__init__()
        if len(table.row_shape) != 1:
            raise ShapeError(
                f"table {table.name!r} has rows of shape {table.row_shape}: an embedding needs one dimension"
            )
        torch_dtype(np.dtype(table.dtype))
        self.table, self.worker, self.freeze = table, worker, freeze
        self.num_embeddings: int = table.num_keys
        self.embedding_dim: int = table.row_shape[0]
        self.padding_idx = _checked_padding(padding_idx, table)
        self._gradients = gradients_of(table, worker)

    @property
    def lr(self) -> float | None:
        """Learning rate of the next steps on this worker's table; None: the optimiser's own. Set it for a schedule."""
        return self._gradients.lr

    @lr.setter
    def lr(self, lr: float | None) -> None:
        self._gradients.lr = lr

    def accumulate(self) -> None:
        """From now on backward keeps the gradients of this worker's table (of all modules on it), until ``apply()``."""
        self._gradients.accumulate()

    def apply(self, fn: Callable[[torch.nn.Module], Any] | None = None) -> Any:
        """One step with the sum of the gradients kept since ``accumulate()``. With ``fn``: torch's own ``apply``."""
        if fn is not None:
            return super().apply(fn)
        self._gradients.apply()
        return self

    def settle(self) -> None:
        """Waits until every step of this worker's table is at the rows' owners. Raises PeerLostError."""
        self._gradients.settle()

    def all_rows(self) -> torch.Tensor:
        """All rows, pulled to this rank: [num_embeddings, embedding_dim]. Not collective."""
        rows = np.empty((self.num_embeddings, self.embedding_dim), self.table.dtype)
        for start in range(0, self.num_embeddings, ROWS_A_CALL):
            part = rows[start : start + ROWS_A_CALL]
            self.worker.pull(self.table, np.arange(start, start + len(part)), out=part)
        return as_tensor(rows)

    def fill(self, weight: torch.Tensor) -> None:
        """Collective: overwrites all rows with ``weight`` [num_embeddings, embedding_dim], the same on every rank.

        Raises ShapeError, before anything is written; as ``pm.barrier``.
        """
        expected = (self.num_embeddings, self.embedding_dim)
        if tuple(weight.shape) != expected:
            raise ShapeError(f"weight has shape {tuple(weight.shape)}, table {self.table.name!r} needs {expected}")
        self.settle()
        manager = self.worker.manager
        manager.barrier()  # nobody's step comes between
        mine = np.arange(manager.rank, self.num_embeddings, manager.size)
        for start in range(0, len(mine), ROWS_A_CALL):
            keys = mine[start : start + ROWS_A_CALL]
            self.worker.set(self.table, keys, as_array(weight[torch.from_numpy(keys)], self.table.dtype))
        self.worker.wait_sync()
        manager.barrier()

    def get_extra_state(self) -> dict[str, Any]:
        """In a state_dict in place of the rows: where they are."""
        return {
            "rows_in": "a table of intentpm's parameter manager, not in this state_dict: module.to_torch() copies them",
            "table": self.table.name,
            "shape": (self.num_embeddings, self.embedding_dim),
            "dtype": np.dtype(self.table.dtype).name,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The rows stay as they are in the table; one of another shape is refused (ShapeError)."""
        mine = (self.num_embeddings, self.embedding_dim)
        if tuple(state["shape"]) != mine:
            raise ShapeError(f"the state is of table {state['table']!r} with {state['shape']}, this one has {mine}")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, missing: Any, unexpected: Any,
        errors: list[str],
    ) -> None:  # fmt: skip
        """A plain torch model has "weight" here: it fills the table (collective)."""
        weight = state_dict.get(prefix + "weight")
        if weight is None:
            super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
            return
        try:
            self.fill(weight)
        except Error as problem:
            errors.append(f"{prefix}weight: {problem}")

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}, table={self.table.name!r}{padding}"


def _checked_padding(padding_idx: int | None, table: Any) -> int | None:
    if padding_idx is None:
        return None
    if not -table.num_keys <= padding_idx < table.num_keys:
        raise ShapeError(f"padding_idx={padding_idx}: table {table.name!r} has {table.num_keys} keys")
    return padding_idx % table.num_keys


def table_from(weight: torch.Tensor, worker: Any, name: str, optimizer: Any) -> Any:
    """Collective: a new table with the rows of ``weight`` [num_keys, D]."""
    dtype = str(weight.dtype).removeprefix("torch.")
    rows = as_array(weight, np.dtype(dtype if dtype != "bfloat16" else _bfloat16()))
    more = {} if optimizer is None else {"optimizer": optimizer}
    return worker.manager.create_table(name, len(rows), rows.shape[1:], rows.dtype, init=rows, **more)


def _bfloat16() -> Any:
    import ml_dtypes

    return ml_dtypes.bfloat16


def frozen_by(source: Any, freeze: bool | None) -> bool:
    """Torch's rule: a tensor is frozen unless asked otherwise; a module as its weight is."""
    if freeze is not None:
        return freeze
    return not source.weight.requires_grad if isinstance(source, torch.nn.Module) else True
