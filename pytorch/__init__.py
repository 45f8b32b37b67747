"""intentpm in a PyTorch script: modules over tables, a loader that announces its batches (extra ``torch``).

with intentpm.init() as pm:
    table = pm.create_table("items", 1_000_000, 64, optimizer=intentpm.optim.Adagrad(lr=0.1))
    worker = pm.worker()
    items = intentpm.torch.Embedding(table, worker)
    for batch in intentpm.torch.IntentLoader(worker, loader, {table: lambda batch: batch["item"]}):
        loss_of(items(batch["item"])).backward()
"""

from typing import Any

from intentpm.torch.dense import average_gradients
from intentpm.torch.dense_table import DenseTable
from intentpm.torch.embedding import Embedding
from intentpm.torch.embedding_bag import EmbeddingBag
from intentpm.torch.loader import IntentLoader


def __getattr__(name: str) -> Any:
    """Loads torch_geometric for those who use it only; not even for ``import *``."""
    if name != "FeatureStore":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from intentpm.torch.feature_store import FeatureStore

    return FeatureStore


__all__ = ["DenseTable", "Embedding", "EmbeddingBag", "IntentLoader", "average_gradients"]
