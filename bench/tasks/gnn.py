"""Graph networks: GCN and GraphSAGE with neighbour sampling, data-parallel over ranks, with ``intentpm.torch``.

The input vectors are tables: one row per node, and one per feature, of which a node's are averaged; both are added up.
A batch is some of the rank's training nodes with sampled neighbours, and neighbours of these. The loader samples ahead
of use, and announces the nodes and features of the coming batches to the parameter manager.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

import intentpm.optim
import intentpm.torch
from intentpm.bench.tasks.checkpoints import CheckpointOptions, Progress
from intentpm.bench.tasks.dense_layers import DenseLayers, l2
from intentpm.bench.tasks.epochs import EpochMeter, check_finite, mean
from intentpm.bench.tasks.even_batches import batches_per_epoch, even_batches
from intentpm.bench.tasks.gnn_options import GnnOptions, GnnRow
from intentpm.bench.tasks.graph_data import Graph
from intentpm.bench.tasks.initial_rows import NormalRows
from intentpm.bench.tasks.neighbour_sampling import Hop, sample_neighbourhood
from intentpm.bench.tasks.node_partition import training_nodes_of

Int64 = NDArray[np.int64]

SUMS = ("loss", "count", "valid", "valid_count", "test", "test_count")
EVALUATION_BATCH = 1_024
INITIAL_DEVIATION = 0.1
"""Of the features' vectors. Beside these, those of nodes begin at 0: what no training node is near stays there."""


@dataclass(frozen=True, slots=True)
class NodeBatch:
    """Nodes to predict, and what that takes."""

    nodes: torch.Tensor
    """int64 [S]: all nodes whose inputs are needed."""
    features: torch.Tensor
    """int64: the features of these nodes, one list after the other."""
    offsets: torch.Tensor
    """int64 [S]: where each list begins."""
    shares: torch.Tensor
    """float32, as ``features``: of each in the mean over its node's."""
    hops: tuple["HopTensors", "HopTensors"]
    label: torch.Tensor
    """int64 [T], of the nodes to predict."""


class HopTensors:
    """A Hop as the layers use it."""

    def __init__(self, hop: Hop) -> None:
        self.targets = len(hop.itself)
        self.itself, self.source, self.target = map(torch.from_numpy, (hop.itself, hop.source, hop.target))
        self.weight, self.symmetric, self.loop = map(torch.from_numpy, (hop.weight, hop.symmetric, hop.loop))

    def gather(self, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Weighted sums over the edges of each target: [S, D] to [T, D]."""
        sums = values.new_zeros(self.targets, values.shape[1])
        return sums.index_add(0, self.target, values[self.source] * weight[:, None])


class GcnLayer(torch.nn.Module):
    """Kipf and Welling 2017: sums over neighbours and the node itself, normalised by the roots of both degrees.

    It takes values that were mapped already: by ``Linear(.., width(outputs))``, or as the input vectors are.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(outputs))

    @staticmethod
    def width(outputs: int) -> int:
        """Length of the values it takes."""
        return outputs

    def forward(self, values: torch.Tensor, hop: HopTensors) -> torch.Tensor:
        return hop.gather(values, hop.symmetric) + values[hop.itself] * hop.loop[:, None] + self.bias


class SageLayer(GcnLayer):
    """Hamilton et al. 2017: one map of the node, another of the mean of its neighbours, side by side in the values."""

    @staticmethod
    def width(outputs: int) -> int:
        return 2 * outputs

    def forward(self, values: torch.Tensor, hop: HopTensors) -> torch.Tensor:
        own, neighbours = values.chunk(2, dim=1)
        return own[hop.itself] + hop.gather(neighbours, hop.weight) + self.bias


LAYERS = {"gcn": GcnLayer, "sage": SageLayer}


class GraphNetwork(torch.nn.Module):
    """Two layers. The input vectors are what the first layer's map makes of a node: their tables are its weights.

    Parameters:
        embeddings: module on the table of nodes, or None. features: on the table of features, or None.
    """

    def __init__(self, embeddings: Any, features: Any, classes: int, options: GnnOptions) -> None:
        super().__init__()
        self.embeddings, self.features = embeddings, features
        layer = LAYERS[options.model]
        self.first, self.second = layer(options.dim), layer(classes)
        self.map = torch.nn.Linear(options.dim, layer.width(classes), bias=False)
        self.dropout = torch.nn.Dropout(options.dropout)

    def forward(self, batch: NodeBatch) -> torch.Tensor:
        """Logits [T, classes]."""
        hidden = functional.relu(self.first(self._inputs(batch), batch.hops[0]))
        logits: torch.Tensor = self.second(self.map(self.dropout(hidden)), batch.hops[1])
        return logits

    def _inputs(self, batch: NodeBatch) -> torch.Tensor:
        parts = []
        if self.embeddings is not None:
            parts.append(self.dropout(self.embeddings(batch.nodes)))
        if self.features is not None:
            shares = self.dropout(batch.shares)  # whole features are left out
            parts.append(self.features(batch.features, batch.offsets, shares))
        return torch.stack(parts).sum(0)


class NodeBatches:
    """Batches of a rank's training nodes, shuffled and sampled anew in each epoch."""

    def __init__(self, graph: Graph, nodes: Int64, batches: int, options: GnnOptions, rank: int) -> None:
        self.graph, self.nodes, self.batches, self.options, self.rank = graph, nodes, batches, options, rank
        self.epoch, self.first = 0, 0

    def begin(self, epoch: int, first: int) -> None:
        """What is iterated over next: an epoch from its batch ``first`` on."""
        self.epoch, self.first = epoch, first

    def __iter__(self) -> Iterator[NodeBatch]:
        random = np.random.default_rng([self.options.seed, self.epoch, self.rank])
        for places in islice(even_batches(len(self.nodes), self.batches, random), self.first, None):
            yield node_batch(self.graph, self.nodes[places], self.options.fan_out, random)


def node_batch(graph: Graph, targets: Int64, fan_out: tuple[int, int], random: np.random.Generator) -> NodeBatch:
    """What it takes to predict ``targets``."""
    around = sample_neighbourhood(graph, targets, fan_out, random)
    features, begins = graph.features.of(around.nodes)
    lengths = np.diff(begins)
    shares = np.repeat(1 / np.maximum(lengths, 1), lengths).astype(np.float32)
    first, second = (HopTensors(hop) for hop in around.hops)
    return NodeBatch(
        torch.from_numpy(around.nodes), torch.from_numpy(features.astype(np.int64)), torch.from_numpy(begins[:-1]),
        torch.from_numpy(shares), (first, second), torch.from_numpy(graph.label[targets]),
    )  # fmt: skip


class GraphTraining:
    """One rank's part of the training. Construct and use it on every rank alike; one thread.

    Parameters:
        pm: the parameter manager.
        graph: the whole graph (every rank has its structure and features; their vectors are in the tables).
        options: hyper-parameters, the same on every rank.
        checkpoints: when and where they are made, and whether to go on from one.
    """

    def __init__(
        self, pm: Any, graph: Graph, options: GnnOptions, checkpoints: CheckpointOptions | None = None
    ) -> None:
        self.pm, self.graph, self.options = pm, graph, options
        torch.manual_seed(options.seed)
        self.worker = pm.worker()
        embeddings = features = None
        keys: dict[Any, Any] = {}
        if options.inputs in ("both", "embeddings"):
            deviation = 0.0 if options.inputs == "both" else INITIAL_DEVIATION
            table = self._create_table("nodes", graph.nodes, deviation, options.embedding_lr)
            embeddings = intentpm.torch.Embedding(table, self.worker)
            keys[table] = lambda batch: batch.nodes
        if options.inputs in ("both", "features"):
            table = self._create_table("features", graph.feature_count, INITIAL_DEVIATION, options.lr)
            features = intentpm.torch.EmbeddingBag(table, self.worker, mode="sum")
            keys[table] = lambda batch: batch.features
        self.inputs = [module for module in (embeddings, features) if module is not None]
        self.model = GraphNetwork(embeddings, features, graph.classes, options)
        is_saved = checkpoints is not None and checkpoints.are_used
        self.dense = DenseLayers(self.model, pm, self.worker, options.dense, options.lr, options.reg, is_saved)
        self.progress = Progress(
            pm, [*keys, *self.dense.tables], checkpoints, in_step=self.dense.is_in_step, before_save=self.dense.save
        )
        if self.progress.generation:
            self.dense.restore()
        # Each rank drops other values out, and does so anew after a restart.
        torch.manual_seed((options.seed + self.progress.generation) * pm.size + pm.rank)
        self.train_nodes = training_nodes_of(graph, pm.rank, pm.size, options.partition)
        batches = batches_per_epoch(len(graph.splits["train"]), pm.size, options.batch)
        self.batches = NodeBatches(graph, self.train_nodes, batches, options, pm.rank)
        self.loader = intentpm.torch.IntentLoader(self.worker, self.batches, keys, options.look_ahead)
        names = [table.name for table in keys]
        self.meter = EpochMeter(pm, self.worker, (*names, *self.dense.names), SUMS)

    def _create_table(self, name: str, keys: int, deviation: float, lr: float) -> Any:
        options = self.options
        dim = LAYERS[options.model].width(options.dim)
        rows = NormalRows(dim, dim, deviation, options.seed) if deviation else 0.0
        adam = intentpm.optim.Adam(lr=lr, **l2(options.reg))
        return self.pm.create_table(name, keys, dim, init=rows, optimizer=adam)

    def run(self) -> Iterator[GnnRow]:
        """Trains; yields one row per epoch, the same on every rank, beginning with the untrained model.

        Raises DivergedError when the loss is no longer finite, and whatever the PM raises.
        """
        return self.progress.run(GnnRow, self.options.epochs, self._epoch)

    def _epoch(self, epoch: int) -> GnnRow:
        return self._measured(epoch, *(self._train(epoch) if epoch else (0.0, 0)))

    def _train(self, epoch: int) -> tuple[float, int]:
        """One pass over this rank's training nodes; returns the sum of their losses, and of how many."""
        self.model.train()
        rest = self.progress.rest_of(np.arange(self.batches.batches), 1)
        self.batches.begin(epoch, self.batches.batches - len(rest))
        with self.meter.training_pass():
            return self.dense.train(self.progress.follow(self.loader), self._loss, self.inputs)

    def _loss(self, batch: Any) -> tuple[torch.Tensor, int]:
        return functional.cross_entropy(self.model(batch), batch.label), len(batch.label)

    def _measured(self, epoch: int, loss: float, count: int) -> GnnRow:
        """Evaluates, adds up over the ranks, and checks that training is still sane."""
        self.dense.read()
        mine = {split: self.graph.splits[split][self.pm.rank :: self.pm.size] for split in ("valid", "test")}
        sums, took = self.meter.measured(
            loss=loss, count=count,
            valid=self._predicted(mine["valid"]), valid_count=len(mine["valid"]),
            test=self._predicted(mine["test"]), test_count=len(mine["test"]),
        )  # fmt: skip
        row = GnnRow(
            epoch=epoch, loss=mean(sums["loss"], sums["count"]), **took,
            valid_accuracy=mean(sums["valid"], sums["valid_count"]),
            test_accuracy=mean(sums["test"], sums["test_count"]),
        )  # fmt: skip
        check_finite(row, sums["count"], f"Lower --lr ({self.options.lr}).")
        return row

    @torch.no_grad()
    def _predicted(self, nodes: Int64) -> int:
        """How many of the nodes are given their class, looking at all of their neighbours."""
        self.model.eval()
        right, random = 0, np.random.default_rng(0)
        for first in range(0, len(nodes), EVALUATION_BATCH):
            batch = node_batch(self.graph, nodes[first : first + EVALUATION_BATCH], (0, 0), random)
            right += int((self.model(batch).argmax(1) == batch.label).sum())
        return right
