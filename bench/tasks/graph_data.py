"""Graphs with node features, classes and a split of the labelled nodes: read from npz files, or generated."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks.data_error import DataError
from intentpm.bench.tasks.npz import read_npz
from intentpm.bench.tasks.spec import parse_spec

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

SPLITS = ("train", "valid", "test")
FILE = "graph.npz"


@dataclass(frozen=True, slots=True)
class CompressedRows:
    """Lists of numbers, one per row: that of row r is ``values[starts[r]:starts[r + 1]]``."""

    starts: Int64
    """int64 (rows + 1,)."""
    values: Int32

    def lengths(self, rows: Int64) -> Int64:
        """How long the lists of ``rows`` (int64 (K,)) are."""
        return self.starts[rows + 1] - self.starts[rows]

    def of(self, rows: Int64) -> tuple[Int32, Int64]:
        """The lists of ``rows`` (int64 (K,)), one after the other, and where each begins: int64 (K + 1,)."""
        lengths = self.lengths(rows)
        begins = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self.starts[rows] - begins[:-1], lengths) + np.arange(begins[-1])
        return self.values[places], begins


@dataclass(frozen=True, slots=True)
class Graph:
    """An undirected graph whose nodes have binary features."""

    neighbours: CompressedRows
    features: CompressedRows
    """Of each node: which features it has."""
    feature_count: int
    label: Int64
    """int64 (nodes,): class, -1 unknown."""
    splits: dict[str, Int64]
    """Nodes of train, valid and test."""
    source: str

    @property
    def nodes(self) -> int:
        """How many there are."""
        return len(self.label)

    @property
    def edges(self) -> int:
        """How many there are, each counted once."""
        return len(self.neighbours.values) // 2

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.label.max()) + 1


def load_graph(path: Path) -> Graph:
    """Reads ``graph.npz``, or that of a folder. Raises DataError.

    Arrays: ``edges`` (m, 2), each once; ``label`` (n,), -1 unknown; binary features in compressed rows, ``feat_indptr``
    and ``feat_indices``; node ids ``train``, ``valid`` and ``test``.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(file, "there is no such file")
    arrays = read_npz(file, ("edges", "label", "feat_indptr", "feat_indices", *SPLITS), ("feat_dim",))
    for name, values in arrays.items():
        if not np.issubdtype(values.dtype, np.integer):
            raise DataError(file, f"{name!r} has the dtype {values.dtype}; need whole numbers")
    edges, label, indices = arrays["edges"], arrays["label"].astype(np.int64), arrays["feat_indices"]
    starts = arrays["feat_indptr"].astype(np.int64)
    nodes = len(label)
    _check_range(file, "edges", edges, nodes)
    if edges.ndim != 2 or edges.shape[1] != 2:
        raise DataError(file, f"'edges' has the shape {edges.shape}; need (m, 2)")
    if len(starts) != nodes + 1 or starts[0] != 0 or starts[-1] != len(indices) or (np.diff(starts) < 0).any():
        raise DataError(file, "'feat_indptr' does not cut 'feat_indices' into a list for each node")
    features = int(arrays.get("feat_dim", indices.max(initial=-1) + 1))
    _check_range(file, "feat_indices", indices, features)
    for split in SPLITS:
        _check_range(file, split, arrays[split], nodes)
        if not len(arrays[split]) or (label[arrays[split]] < 0).any():
            raise DataError(file, f"{split!r} is empty, or has a node without a label")
    return Graph(
        neighbours_of(edges, nodes), CompressedRows(starts, indices.astype(np.int32)), features, label,
        {split: arrays[split].astype(np.int64) for split in SPLITS}, file.absolute().parent.name,
    )  # fmt: skip


def _check_range(file: Path, name: str, values: NDArray[Any], end: int) -> None:
    if len(values) and not (int(values.min()) >= 0 and int(values.max()) < end):
        raise DataError(file, f"{name!r} has a number outside 0 to {end - 1}")


def neighbours_of(edges: NDArray[Any], nodes: int) -> CompressedRows:
    """The neighbours of each node, of undirected edges (m, 2)."""
    both = np.concatenate([edges, edges[:, ::-1]])
    order = np.argsort(both[:, 0], kind="stable")
    starts = np.searchsorted(both[order, 0], np.arange(nodes + 1))
    return CompressedRows(starts.astype(np.int64), both[order, 1].astype(np.int32))


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """What ``--generate`` makes: nodes of hidden classes that link mostly to their own class, with few features that
    hint at it; degrees follow a Zipf distribution.
    """

    nodes: int = 10_000
    edges: int = 80_000
    classes: int = 5
    features: int = 500
    features_per_node: int = 5
    homophily: float = 0.8
    """Share of the edges whose two ends are drawn from one class."""
    hint: float = 0.3
    """Share of a node's features that are of its class."""
    zipf: float = 0.5

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``nodes=..,edges=..,classes=..`` and so on; parts left out keep their defaults."""
        return parse_spec(cls, text)

    def __post_init__(self) -> None:
        for name in ("nodes", "edges", "classes", "features", "features_per_node"):
            if not 1 <= getattr(self, name) < 2**31:
                raise DataError("--generate", f"{name}={getattr(self, name)}: need 1 to 2^31 - 1")
        if self.nodes < 10 * self.classes or self.features < self.classes:
            raise DataError("--generate", f"classes={self.classes}: need 10 nodes and a feature for each")
        if not (0 <= self.homophily <= 1 and 0 <= self.hint <= 1 and 0 <= self.zipf < np.inf):
            raise DataError("--generate", "need homophily and hint from 0 to 1 and a finite zipf >= 0")


def generate_graph(spec: GraphSpec, seed: int = 0) -> Graph:
    """Draws a graph; the same for the same ``spec`` and ``seed``. Every rank generates all of it. Node v has the class
    v % classes; 60 / 20 / 20 percent of the nodes are train, valid and test.
    """
    random = np.random.default_rng([seed, 6])
    shares = np.cumsum((np.arange(spec.nodes) + 1.0) ** -spec.zipf)

    def node(count: int) -> Int64:
        return np.searchsorted(shares, random.random(count) * shares[-1]).clip(max=spec.nodes - 1)

    first, second = node(spec.edges), node(spec.edges)
    of_class = second - second % spec.classes + first % spec.classes
    of_class = np.where(of_class < spec.nodes, of_class, first % spec.classes)
    second = np.where(random.random(spec.edges) < spec.homophily, of_class, second)
    edges = np.stack([np.minimum(first, second), np.maximum(first, second)], axis=1)
    edges = np.unique(edges[first != second], axis=0)
    label = np.arange(spec.nodes) % spec.classes
    count = spec.nodes * spec.features_per_node
    feature = random.integers(spec.features, size=count)
    hinted = feature - feature % spec.classes + np.repeat(label, spec.features_per_node)
    hinted = np.where((random.random(count) < spec.hint) & (hinted < spec.features), hinted, feature)
    features = CompressedRows(np.arange(spec.nodes + 1) * spec.features_per_node, hinted.astype(np.int32))
    cuts = (np.array([0.6, 0.8]) * spec.nodes).astype(int)
    splits = dict(zip(SPLITS, map(np.sort, np.split(random.permutation(spec.nodes), cuts)), strict=True))
    name = f"generated ({spec.classes} classes)"
    return Graph(neighbours_of(edges, spec.nodes), features, spec.features, label, splits, name)
