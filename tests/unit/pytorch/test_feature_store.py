"""FeatureStore: PyTorch Geometric's interface, alone and under its loader, whose sampler is one of ours: no pyg-lib."""

import subprocess
import sys
import warnings

import pytest

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch_geometric and what it imports
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import TensorAttr
    from torch_geometric.loader import NodeLoader
    from torch_geometric.sampler import BaseSampler, SamplerOutput
    from torch_geometric.testing import MyGraphStore

import intentpm  # noqa: E402
import intentpm.optim  # noqa: E402
from intentpm.testing import run_ranks  # noqa: E402
from intentpm.torch import Embedding, FeatureStore, IntentLoader  # noqa: E402

NODES = 50
X = torch.arange(NODES * 3, dtype=torch.float32).view(NODES, 3)
Y = torch.arange(NODES) % 7


def filled(pm):
    store = FeatureStore(pm)
    store["paper", "x", None] = X
    store["paper", "y", None] = Y
    return store


@pytest.mark.parametrize("n", [1, 3])
def test_the_five_methods(n: int) -> None:
    def main(pm):
        store = filled(pm)
        assert store.get_all_tensor_attrs() == [TensorAttr("paper", "x"), TensorAttr("paper", "y")]
        assert store.get_tensor_size("paper", "x") == (NODES, 3)
        assert store.get_tensor_size("paper", "x", slice(2, 9, 3)) == (3, 3)
        assert store.get_tensor_size("paper", "y", torch.tensor([1, 2])) == (2,)
        assert torch.equal(store["paper", "x", None], X)
        assert torch.equal(store["paper"].y[torch.tensor([3, 3, 9])], Y[[3, 3, 9]])
        mask = torch.arange(NODES) < 5
        for index in (torch.tensor([4, 1]), [4, 1], slice(2, 9, 3), slice(None), [], mask):  # PyG fails with arrays
            assert torch.equal(store.get_tensor("paper", "x", index), X[index]), index
        assert torch.equal(store.get_tensor("paper", "x", 7), X[7:8])
        pm.barrier()
        if pm.rank == 0:
            store.put_tensor(torch.zeros(2, 3), "paper", "x", torch.tensor([4, 1]))
            store.update_tensor(torch.ones(1, 3), "paper", "x", [2])
        pm.barrier()
        assert store["paper", "x", [4, 1, 2, 3]][:, 0].tolist() == [0, 0, 1, 9]
        assert store.remove_tensor("paper", "y", None)
        assert not store.remove_tensor("paper", "y", None)
        with pytest.raises(KeyError, match="'paper', 'y'"):
            store["paper", "y", None]

    run_ranks(n, main)


def test_arguments_that_cannot_be_used() -> None:
    def main(pm):
        store = filled(pm)
        with pytest.raises(KeyError, match="put the whole tensor first"):
            store.put_tensor(X, "author", "x", torch.arange(NODES))
        with pytest.raises(intentpm.ShapeError, match=r"1 rows cannot be set to a tensor of shape \(2, 3\)"):
            store.put_tensor(X[:2], "paper", "x", [1])
        with pytest.raises(intentpm.DtypeError, match="float32"):
            store.get_tensor("paper", "x", torch.tensor([1.0]))
        with pytest.raises(intentpm.KeyRangeError):
            store.get_tensor("paper", "x", [NODES])

    run_ranks(1, main)


class Neighbours(BaseSampler):
    """One hop over a ring: each node's neighbours are the one before and the one after it."""

    edge_permutation = None

    def sample_from_nodes(self, index, **kwargs):
        seeds = index.node
        around = torch.cat([(seeds - 1) % NODES, (seeds + 1) % NODES])
        node = torch.cat([seeds, around])
        return SamplerOutput(
            node, torch.arange(len(around)) + len(seeds), torch.arange(len(around)) % len(seeds), None,
            metadata=(index.input_id, None),
        )  # fmt: skip

    def sample_from_edges(self, index, **kwargs):
        raise NotImplementedError


def loader_of(store, nodes):
    return NodeLoader((store, MyGraphStore()), Neighbours(), input_nodes=nodes, batch_size=5)


@pytest.mark.filterwarnings("ignore")  # of torch_geometric
@pytest.mark.parametrize("n", [1, 2])
def test_under_pyg_s_loader(n: int) -> None:
    """Plain, and read ahead in a thread."""

    def main(pm):
        store = FeatureStore(pm)
        store[None, "x", None] = X
        mine = torch.arange(pm.rank, NODES, pm.size)
        for loader in (loader_of(store, mine), IntentLoader(pm.worker(), loader_of(store, mine), {})):
            seen = []
            for batch in loader:
                assert torch.equal(batch.x, X[batch.n_id])
                neighbours = (batch.x[batch.edge_index[0]] - batch.x[batch.edge_index[1]])[:, 0].abs()
                assert set(neighbours.tolist()) <= {3.0, 3.0 * (NODES - 1)}
                seen.append(batch.n_id[: batch.batch_size])
            assert torch.equal(torch.cat(seen), mine)

    run_ranks(n, main)


@pytest.mark.filterwarnings("ignore")  # of torch_geometric
def test_rows_that_are_trained_are_features_too() -> None:
    def main(pm):
        worker, store = pm.worker(), FeatureStore(pm)
        table = pm.create_table("x", NODES, 3, optimizer=intentpm.optim.SGD(lr=1.0))
        store.add_table(table, None, "x")
        Embedding(table, worker)(torch.tensor([7])).sum().backward()
        worker.wait_sync()
        (batch,) = loader_of(store, torch.tensor([7]))
        assert batch.x.tolist() == [[-1, -1, -1], [0, 0, 0], [0, 0, 0]]

    run_ranks(1, main)


def test_torch_geometric_is_loaded_for_those_who_use_it_only() -> None:
    code = "import sys, intentpm.torch; sys.exit('torch_geometric' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'FeatureStores'"):
        _ = intentpm.torch.FeatureStores
