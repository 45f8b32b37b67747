"""Graphs read, generated, sampled and dealt to ranks; layers against dense matrices."""

from importlib.util import find_spec

import numpy as np
import pytest

from intentpm.bench.tasks.data_error import DataError
from intentpm.bench.tasks.graph_data import (
    CompressedRows,
    Graph,
    GraphSpec,
    generate_graph,
    load_graph,
    neighbours_of,
)
from intentpm.bench.tasks.neighbour_sampling import sample_hop, sample_neighbourhood
from intentpm.bench.tasks.node_partition import training_nodes_of

EDGES = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [4, 5]])


def arrays(**changed):
    found = {
        "edges": EDGES, "label": np.array([0, 1, 0, 1, -1, 1, 0]), "feat_dim": np.int32(4),
        "feat_indptr": np.array([0, 2, 2, 3, 3, 3, 3, 4]), "feat_indices": np.array([3, 0, 1, 2]),
        "train": np.array([0, 1]), "valid": np.array([2]), "test": np.array([3, 5, 6]),
    }  # fmt: skip
    return found | changed


@pytest.fixture
def graph(tmp_path):
    np.savez(tmp_path / "graph.npz", **arrays())
    return load_graph(tmp_path)


def test_a_file_is_read(graph):
    assert (graph.nodes, graph.edges, graph.classes, graph.feature_count) == (7, 6, 2, 4)
    values, begins = graph.neighbours.of(np.array([4, 6, 0]))
    assert [sorted(part) for part in np.split(values, begins[1:-1])] == [[0, 5], [], [1, 2, 3, 4]]
    values, begins = graph.features.of(np.array([6, 1, 0]))
    assert (values.tolist(), begins.tolist()) == ([2, 3, 0], [0, 1, 1, 3])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"edges": np.array([[0, 7]])}, "'edges' has a number outside 0 to 6"),
        ({"train": np.array([4])}, "'train' is empty, or has a node without a label"),
        ({"feat_indptr": np.zeros(8, int)}, "'feat_indptr' does not cut"),
        ({"label": np.zeros(7)}, "'label' has the dtype float64"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, changed, message):
    np.savez(tmp_path / "graph.npz", **arrays(**changed))
    with pytest.raises(DataError, match=message):
        load_graph(tmp_path)


def dense(nodes):
    adjacency = np.zeros((nodes, nodes))
    adjacency[EDGES[:, 0], EDGES[:, 1]] = adjacency[EDGES[:, 1], EDGES[:, 0]] = 1
    return adjacency


def matrix(hop, weight, sources, nodes):
    """Of the hop's edges, [targets, nodes]."""
    found = np.zeros((len(hop.itself), nodes))
    np.add.at(found, (hop.target, sources[hop.source]), weight)
    return found


def test_a_hop_of_all_neighbours_has_the_weights_of_the_graph(graph):
    targets = np.array([4, 0, 6])
    sources, hop = sample_hop(graph, targets, 0, np.random.default_rng(0))
    assert sources[hop.itself].tolist() == targets.tolist()
    adjacency = dense(7)
    degree = adjacency.sum(axis=1)
    mean = adjacency / np.maximum(degree, 1)[:, None]
    np.testing.assert_allclose(matrix(hop, hop.weight, sources, 7), mean[targets], atol=1e-6)
    normalised = adjacency / np.sqrt(np.outer(degree + 1, degree + 1))
    np.testing.assert_allclose(matrix(hop, hop.symmetric, sources, 7), normalised[targets], atol=1e-6)
    np.testing.assert_allclose(hop.loop, 1 / (degree[targets] + 1), atol=1e-6)


def test_sampled_hops_have_these_weights_on_average(graph):
    random, targets, total = np.random.default_rng(0), np.array([0, 4]), np.zeros((2, 7))
    for _ in range(3_000):
        sources, hop = sample_hop(graph, targets, 2, random)
        assert np.bincount(hop.target).tolist() == [2, 2]
        total += matrix(hop, hop.symmetric, sources, 7) / 3_000
    _, whole = sample_hop(graph, targets, 0, random)
    np.testing.assert_allclose(total.sum(axis=1), np.bincount(whole.target, whole.symmetric), rtol=0.05)
    np.testing.assert_allclose(total[0, [1, 3]], [1 / np.sqrt(15), 1 / np.sqrt(10)], rtol=0.1)


def test_two_hops_end_at_the_targets(graph):
    around = sample_neighbourhood(graph, np.array([5]), (0, 0), np.random.default_rng(0))
    assert around.nodes.tolist() == [0, 4, 5]
    first, second = around.hops
    assert len(second.itself) == 1
    assert len(first.itself) == 2, "the node and its neighbour"


@pytest.mark.parametrize("way", ["hash", pytest.param("metis", marks=pytest.mark.skipif(
    find_spec("pymetis") is None, reason="needs pymetis"))])  # fmt: skip
def test_ranks_share_the_training_nodes(way):
    graph = generate_graph(GraphSpec(nodes=3_000, edges=12_000))
    parts = [training_nodes_of(graph, rank, 3, way) for rank in range(3)]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), graph.splits["train"])
    assert max(map(len, parts)) < 1.2 * min(map(len, parts))


@pytest.mark.skipif(find_spec("pymetis") is None, reason="needs pymetis")
def test_metis_keeps_neighbours_together():
    ring = np.stack([np.arange(400), (np.arange(400) + 1) % 400], axis=1)
    nodes = np.random.default_rng(0).permutation(400)
    graph = Graph(
        neighbours_of(nodes[ring], 400), CompressedRows(np.zeros(401, int), np.zeros(0, np.int32)), 1,
        np.zeros(400, int), {"train": np.arange(400)}, "ring",
    )  # fmt: skip

    def cut(way):
        mine = np.isin(nodes[ring], training_nodes_of(graph, 0, 2, way))
        return (mine[:, 0] != mine[:, 1]).sum()

    assert cut("metis") < 20 < 150 < cut("hash")


def test_generated_graphs_have_classes():
    graph, again = (generate_graph(GraphSpec(nodes=500, edges=3_000, classes=4), seed=2) for _ in range(2))
    np.testing.assert_array_equal(graph.neighbours.values, again.neighbours.values)
    ends = np.repeat(np.arange(500), graph.neighbours.lengths(np.arange(500)))
    alike = (graph.label[ends] == graph.label[graph.neighbours.values]).mean()
    assert alike > 0.75
    assert (ends != graph.neighbours.values).all()


def test_layers_against_dense_matrices(graph):
    torch = pytest.importorskip("torch")
    from intentpm.bench.tasks.gnn import GcnLayer, HopTensors, SageLayer

    targets, random = np.array([0, 5]), np.random.default_rng(0)
    sources, hop = sample_hop(graph, targets, 0, random)
    values = random.normal(size=(7, 6)).astype(np.float32)
    adjacency = dense(7)
    degree = adjacency.sum(axis=1)
    loops = (adjacency + np.eye(7)) / np.sqrt(np.outer(degree + 1, degree + 1))
    given = torch.from_numpy(values[sources])
    np.testing.assert_allclose(GcnLayer(6)(given, HopTensors(hop)).detach(), (loops @ values)[targets], atol=1e-5)
    mean = adjacency / np.maximum(degree, 1)[:, None]
    expected = values[targets, :3] + (mean @ values)[targets, 3:]
    np.testing.assert_allclose(SageLayer(3)(given, HopTensors(hop)).detach(), expected, atol=1e-5)
