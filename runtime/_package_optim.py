"""Row optimisers, for ``pm.create_table(..., optimizer=intentpm.optim.Adagrad(lr=0.1))`` and ``worker.push_grad``."""

from intentpm.runtime.optimisers import SGD, Adagrad, Adam, PartialRowwiseAdam, RowwiseAdagrad

__all__ = ["SGD", "Adagrad", "Adam", "PartialRowwiseAdam", "RowwiseAdagrad"]
