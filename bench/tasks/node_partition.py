"""Which rank trains which nodes of a graph."""

from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks.graph_data import Graph

Int64 = NDArray[np.int64]
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
WAYS = ("auto", "metis", "hash")


def training_nodes_of(graph: Graph, rank: int, ranks: int, way: str) -> Int64:
    """The training nodes of ``rank``: about as many as the others have.

    way: "metis": ranks get parts of the graph with few edges between them (package pymetis). "hash": any.
        "auto": metis where pymetis is installed.
    """
    train = graph.splits["train"]
    if ranks == 1:
        return train
    chosen = ("metis" if find_spec("pymetis") else "hash") if way == "auto" else way
    parts = _metis(graph, ranks) if chosen == "metis" else hashed(train)
    if chosen == "metis":
        return train[parts[train] == rank]
    return train[np.argsort(parts, kind="stable")[rank::ranks]]


def _metis(graph: Graph, ranks: int) -> Int64:
    """The part of every node; parts have equally many training nodes, as far as METIS manages."""
    import pymetis

    weights = np.zeros(graph.nodes, int)
    weights[graph.splits["train"]] = 1
    neighbours = pymetis.CSRAdjacency(graph.neighbours.starts, graph.neighbours.values)
    options = pymetis.Options(seed=1)
    _, parts = pymetis.part_graph(ranks, adjacency=neighbours, vweights=weights.tolist(), options=options)
    return np.asarray(parts)


def hashed(nodes: Int64) -> NDArray[np.uint64]:
    """A number per node that has nothing to do with the order of the nodes."""
    mixed = (nodes.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN_GAMMA)
    return mixed ^ (mixed >> np.uint64(29))
