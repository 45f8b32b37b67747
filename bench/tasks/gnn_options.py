"""Options and results of ``train gnn``, apart from the model: it needs PyTorch, the command line does not."""

from dataclasses import dataclass

from intentpm.bench.tasks.epochs import EpochRow

MODELS = ("gcn", "sage")
INPUTS = ("both", "features", "embeddings")


@dataclass(frozen=True, slots=True)
class GnnOptions:
    """Hyper-parameters. The defaults were chosen on the validation nodes of Cora."""

    model: str = "gcn"
    """"gcn" or "sage"."""
    inputs: str = "both"
    """What a node begins with: the vectors of its "features", a learned vector of its own ("embeddings"), or "both"."""
    dim: int = 128
    """Of the hidden layer, and so of these vectors: they are its map's weights; GraphSAGE has two such maps."""
    fan_out: tuple[int, int] = (16, 16)
    """Neighbours sampled per node, in the first and in the second hop; 0: all."""
    dropout: float = 0.5
    lr: float = 0.01
    """Learning rate of Adam, of the dense layers and of the features' vectors."""
    embedding_lr: float = 0.001
    """Learning rate of Adam, of the nodes' own vectors."""
    reg: float = 5e-4
    """L2 regularisation of the dense layers, and of the rows that a batch touches."""
    partition: str = "auto"
    """How the training nodes are dealt to the ranks: "metis", "hash", or "auto"."""
    dense: str = "allreduce"
    """How ranks share the dense layers: "allreduce" or "keys"."""
    epochs: int = 50
    batch: int = 256
    """Nodes per step and rank."""
    look_ahead: int | str = "auto"
    """Batches prepared, and signalled to the PM, before use; 0: signal nothing; "auto": as many as it needs."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GnnRow(EpochRow):
    """Shares of the nodes whose class was predicted, from all of their neighbours."""

    valid_accuracy: float
    test_accuracy: float
