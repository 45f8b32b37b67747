"""The part of a graph that the predictions for some nodes depend on: some neighbours of theirs, and of those.

A hop leads from source nodes to target nodes, which are among the sources.
Shape letters: T targets, S sources, E edges.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks.graph_data import Graph

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Hop:
    """Edges from sources to targets, both numbered from 0 within the hop."""

    itself: Int64
    """int64 (T,): which source each target is."""
    source: Int64
    """int64 (E,)."""
    target: Int64
    """int64 (E,)."""
    weight: NDArray[np.float32]
    """float32 (E,): of an edge in the mean over all neighbours of its target; those of a target add up to 1."""
    symmetric: NDArray[np.float32]
    """float32 (E,): of an edge in the graph with loops, normalised by the roots of both degrees."""
    loop: NDArray[np.float32]
    """float32 (T,): of each target's loop, likewise."""


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Two hops: from ``nodes``, whose inputs are needed, to the nodes in between, to the ones predicted."""

    nodes: Int64
    hops: tuple[Hop, Hop]


def sample_neighbourhood(
    graph: Graph, targets: Int64, fan_out: tuple[int, int], random: np.random.Generator
) -> Neighbourhood:
    """What distinct ``targets`` (int64 (T,)) depend on, with up to ``fan_out`` neighbours per node; 0: all of them."""
    between, last = sample_hop(graph, targets, fan_out[1], random)
    nodes, first = sample_hop(graph, between, fan_out[0], random)
    return Neighbourhood(nodes, (first, last))


def sample_hop(graph: Graph, targets: Int64, fan_out: int, random: np.random.Generator) -> tuple[Int64, Hop]:
    """The sources, ascending, and the hop from them. A node with more neighbours than ``fan_out`` gets as many draws
    from them, with replacement; the weights make up for it.
    """
    degree = graph.neighbours.lengths(targets)
    many = (degree > fan_out) if fan_out else np.zeros(len(targets), bool)
    few = np.flatnonzero(~many)
    all_of_few, begins = graph.neighbours.of(targets[few])
    draws = (random.random((int(many.sum()), fan_out)) * degree[many, None]).astype(np.int64)
    drawn = graph.neighbours.values[graph.neighbours.starts[targets[many], None] + draws].ravel()
    target = np.concatenate([np.repeat(few, np.diff(begins)), np.repeat(np.flatnonzero(many), fan_out)])
    neighbour = np.concatenate([all_of_few, drawn]).astype(np.int64)
    sources, places = np.unique(np.concatenate([targets, neighbour]), return_inverse=True)
    taken = np.where(many, fan_out, degree)[target]
    roots = np.sqrt((graph.neighbours.lengths(neighbour) + 1) * (degree[target] + 1.0))
    hop = Hop(
        places[: len(targets)], places[len(targets) :], target, (1 / taken).astype(np.float32),
        (degree[target] / taken / roots).astype(np.float32), (1 / (degree + 1.0)).astype(np.float32),
    )  # fmt: skip
    return sources, hop
