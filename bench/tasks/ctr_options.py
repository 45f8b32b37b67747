"""Options and results of ``train ctr``, apart from the model: it needs PyTorch, the command line does not."""

from dataclasses import dataclass

from intentpm.bench.tasks.epochs import EpochRow


@dataclass(frozen=True, slots=True)
class CtrOptions:
    """Hyper-parameters. The defaults were chosen on the validation rows of Adult."""

    dim: int = 16
    """Length of the embedding of a category."""
    hidden: int = 1_024
    """Width of the two hidden layers."""
    dropout: float = 0.5
    lr: float = 0.001
    """Learning rate of the dense layers' Adam. This and the next fall linearly over the epochs."""
    embedding_lr: float = 0.04
    """Learning rate of the AdaGrad of the categories' rows."""
    final_lr_share: float = 0.01
    """Of the learning rates: the least that they fall to."""
    reg: float = 1e-5
    """L2 regularisation of the rows that a batch touches."""
    dense: str = "allreduce"
    """How ranks share the dense layers: "allreduce" or "keys"."""
    epochs: int = 5
    batch: int = 256
    """Examples per step and rank."""
    look_ahead: int | str = "auto"
    """Batches prepared, and signalled to the PM, before use; 0: signal nothing; "auto": as many as it needs."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CtrRow(EpochRow):
    """Area under the ROC curve, and mean log loss. ``reachable_auc``: that of the hidden model, of generated data."""

    valid_auc: float
    test_auc: float
    reachable_auc: float
    valid_log_loss: float
    test_log_loss: float
