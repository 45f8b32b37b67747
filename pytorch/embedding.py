"""``Embedding``: torch.nn.Embedding over a table."""

from typing import Any

import torch
from torch.nn import functional

from intentpm.torch.pull import pull_distinct, pull_each
from intentpm.torch.table_module import TableModule, frozen_by, table_from


class Embedding(TableModule):
    """Looks up rows of ``table``; in a model it is what ``torch.nn.Embedding(num_keys, D, sparse=True)`` is.

    Parameters
        table: rows [D] of float32, float64, float16 or bfloat16; to be trained it needs an optimizer
            (``create_table(..., optimizer=...)``). Without one, forward works and backward raises Error.
        worker: of the thread that trains.
        padding_idx: its row gets no gradient.
        scale_grad_by_freq: gradients are divided by how often their key occurs in the call.
        freeze: rows are read and never trained.

    Input: int64 or int32 [*]. Output: [*, D] of the table's dtype, on the input's device. With a worker of a device
    (``pm.worker(device=...)``) there, on the current stream; the input may lie there or on the host. Raises
    KeyRangeError (an IndexError), DtypeError, PeerLostError.
    """

    def __init__(
        self,
        table: Any,
        worker: Any,
        padding_idx: int | None = None,
        scale_grad_by_freq: bool = False,
        freeze: bool = False,
    ) -> None:
        super().__init__(table, worker, padding_idx, freeze)
        self.scale_grad_by_freq = scale_grad_by_freq

    @torch.compiler.disable
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.scale_grad_by_freq:
            of_each = pull_each(self._gradients, input, self.padding_idx, not self.freeze)
            if of_each is not None:
                return of_each
        rows, places, padding = pull_distinct(self._gradients, input, self.padding_idx, not self.freeze)
        if self.scale_grad_by_freq:
            return functional.embedding(places, rows, padding, scale_grad_by_freq=True)
        return rows.index_select(0, places.reshape(-1)).view(
            *places.shape, self.embedding_dim
        )  # adds up its gradients fast

    @classmethod
    def from_pretrained(
        cls,
        embeddings: torch.Tensor | torch.nn.Embedding,
        worker: Any,
        name: str,
        optimizer: Any = None,
        freeze: bool | None = None,
        **arguments: Any,
    ) -> "Embedding":
        """Collective: a module on a new table ``name`` with the rows of a tensor [num_keys, D] or of a torch module.

        freeze: default as in torch: True for a tensor; for a module as its weight is (and padding_idx and
            scale_grad_by_freq are taken from it).
        arguments: padding_idx, scale_grad_by_freq.
        Raises as ``create_table``.
        """
        weight = embeddings
        if isinstance(embeddings, torch.nn.Embedding):
            weight = embeddings.weight
            arguments.setdefault("padding_idx", embeddings.padding_idx)
            arguments.setdefault("scale_grad_by_freq", embeddings.scale_grad_by_freq)
        table = table_from(weight, worker, name, optimizer)
        return cls(table, worker, freeze=frozen_by(embeddings, freeze), **arguments)

    def to_torch(self) -> torch.nn.Embedding:
        """A torch.nn.Embedding with a copy of all rows, pulled to this rank. Not collective."""
        return torch.nn.Embedding.from_pretrained(
            self.all_rows(), self.freeze, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq, sparse=True
        )
