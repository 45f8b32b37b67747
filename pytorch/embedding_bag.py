"""``EmbeddingBag``: torch.nn.EmbeddingBag over a table."""

from typing import Any

import torch
from torch.nn import functional

from intentpm.torch.bags import Bags
from intentpm.torch.pull import pull_distinct
from intentpm.torch.table_module import TableModule, frozen_by, table_from


class EmbeddingBag(TableModule):
    """Sums or means of bags of rows; in a model it is what ``torch.nn.EmbeddingBag(num_keys, D, sparse=True)`` is.

    Parameters
        table, worker, padding_idx, scale_grad_by_freq, freeze: as of ``Embedding``; rows of ``padding_idx`` are no part
            of a bag.
        mode: "sum", "mean" or "max" (which takes no gradient by frequency).
        include_last_offset: ``offsets`` has one entry more, the length of the input.
    """

    def __init__(
        self,
        table: Any,
        worker: Any,
        mode: str = "mean",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        scale_grad_by_freq: bool = False,
        freeze: bool = False,
    ) -> None:
        super().__init__(table, worker, padding_idx, freeze)
        self.mode, self.include_last_offset = mode, include_last_offset
        self.scale_grad_by_freq = scale_grad_by_freq

    @torch.compiler.disable
    def forward(
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``input``: keys [B, L] (bags of L), or [K] with ``offsets`` [B], the place where each bag starts.

        per_sample_weights: as ``input``, of the table's dtype; mode "sum" only. Gradients reach them too.
        Returns [B, D]; an empty bag is 0.
        """
        rows, places, padding = pull_distinct(self._gradients, input, self.padding_idx, not self.freeze)
        to_device = places.is_cuda  # towards the host nobody would wait for what is copied
        offsets = offsets if offsets is None else offsets.to(places.device, places.dtype, non_blocking=to_device)
        if per_sample_weights is not None:
            per_sample_weights = per_sample_weights.to(places.device, non_blocking=to_device)
        if self.mode in ("sum", "mean") and not self.scale_grad_by_freq:
            return Bags.apply(rows, places, offsets, per_sample_weights, self.mode, self.include_last_offset, padding)
        return functional.embedding_bag(
            places,
            rows,
            offsets,
            mode=self.mode,
            scale_grad_by_freq=self.scale_grad_by_freq,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )

    @classmethod
    def from_pretrained(
        cls,
        embeddings: torch.Tensor | torch.nn.EmbeddingBag,
        worker: Any,
        name: str,
        optimizer: Any = None,
        freeze: bool | None = None,
        **arguments: Any,
    ) -> "EmbeddingBag":
        """Collective: as ``Embedding.from_pretrained``; ``arguments``: what the constructor takes."""
        weight = embeddings
        if isinstance(embeddings, torch.nn.EmbeddingBag):
            weight = embeddings.weight
            for name_of in ("mode", "padding_idx", "include_last_offset", "scale_grad_by_freq"):
                arguments.setdefault(name_of, getattr(embeddings, name_of))
        table = table_from(weight, worker, name, optimizer)
        return cls(table, worker, freeze=frozen_by(embeddings, freeze), **arguments)

    def to_torch(self) -> torch.nn.EmbeddingBag:
        """A torch.nn.EmbeddingBag with a copy of all rows, pulled to this rank. Not collective."""
        return torch.nn.EmbeddingBag.from_pretrained(
            self.all_rows(),
            self.freeze,
            scale_grad_by_freq=self.scale_grad_by_freq,
            mode=self.mode,
            sparse=self.mode != "max",
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}"
