"""DenseTable: the parameters of a module trained by all ranks at once, none of which waits for another."""

import pytest

torch = pytest.importorskip("torch")

import intentpm  # noqa: E402
import intentpm.optim  # noqa: E402
from intentpm.testing import run_ranks  # noqa: E402
from intentpm.torch import DenseTable, dense_table  # noqa: E402


def make_model(seed: int, dtype=torch.float64):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).to(dtype)


def data_of(step: int, rank: int = 0):
    return torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(100 * step + rank))


def weights_of(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.fixture(params=[1024, 7])
def row_length(monkeypatch, request):
    """All parameters in one row, or cut across rows whose last one has room left."""
    monkeypatch.setattr(dense_table, "ROW_LENGTH", request.param)


def train_plain(optimizer_of, steps=100):
    model = make_model(0)
    optimizer = optimizer_of(model.parameters())
    for step in range(steps):
        optimizer.zero_grad()
        (model(data_of(step)) ** 2).mean().backward()
        optimizer.step()
    return weights_of(model)


@pytest.mark.usefixtures("row_length")
@pytest.mark.parametrize("of_torch", [torch.optim.SGD, torch.optim.Adam])
def test_one_rank_that_pushes_its_changes_is_the_plain_loop(of_torch) -> None:
    def main(pm):
        model = make_model(0)
        dense = DenseTable(model, pm.worker(), "dense")
        optimizer = of_torch(model.parameters(), lr=0.05)
        for step in range(100):
            dense.pull()
            optimizer.zero_grad()
            (model(data_of(step)) ** 2).mean().backward()
            optimizer.step()
            dense.push()
        dense.pull()
        for mine, theirs in zip(weights_of(model), train_plain(lambda p: of_torch(p, lr=0.05)), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)

    run_ranks(1, main)


@pytest.mark.usefixtures("row_length")
def test_one_rank_that_pushes_its_gradients_is_the_plain_loop() -> None:
    def main(pm):
        model = make_model(0)
        dense = DenseTable(model, pm.worker(), "dense", intentpm.optim.Adagrad(lr=0.05))
        for step in range(100):
            dense.pull()
            (model(data_of(step)) ** 2).mean().backward()
            dense.push_gradients()
        dense.pull()
        for mine, theirs in zip(weights_of(model), train_plain(lambda p: torch.optim.Adagrad(p, lr=0.05)), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)

    run_ranks(1, main)


@pytest.mark.usefixtures("row_length")
@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("optimizer", [None, intentpm.optim.SGD(lr=1.0)])
def test_every_rank_s_pushes_count_once(n: int, optimizer) -> None:
    """Changes are whole numbers, so their sum does not depend on the order."""

    def main(pm):
        model = models[pm.rank]
        dense = DenseTable(model, pm.worker(), "dense", optimizer)
        for step in range(20):
            dense.pull()
            for parameter in model.parameters():
                change = torch.full_like(parameter, (step + pm.rank) % 3)
                if optimizer is None:
                    parameter.detach().sub_(change)
                else:
                    parameter.grad = change
            dense.push() if optimizer is None else dense.push_gradients()
        dense.settle()
        pm.barrier()
        dense.pull()
        return weights_of(model)

    models = [make_model(seed=rank, dtype=torch.float32) for rank in range(n)]
    for model in models:
        for parameter in model.parameters():
            parameter.detach().mul_(100).round_()
    total = sum((step + rank) % 3 for step in range(20) for rank in range(n))
    expected = [parameter - total for parameter in weights_of(models[0])]
    for result in run_ranks(n, main):
        assert all(torch.equal(mine, one) for mine, one in zip(result, expected, strict=True))


@pytest.mark.parametrize("n", [1, 4])
def test_ranks_learn_together(n: int) -> None:
    """Each rank sees other data; what they learn is the one solution of all."""

    def main(pm):
        model = models[pm.rank]
        dense = DenseTable(model, pm.worker(), "dense", intentpm.optim.SGD(lr=0.05))
        for step in range(200):
            dense.pull()
            (model(data_of(step, pm.rank)) - data_of(step, pm.rank) @ wanted).square().mean().backward()
            dense.push_gradients()
        dense.settle()
        pm.barrier()
        dense.pull()
        return weights_of(model)

    models = [torch.nn.Linear(6, 1).double() for _ in range(n)]
    wanted = torch.arange(6, dtype=torch.float64).view(6, 1)
    for weight, bias in run_ranks(n, main):
        torch.testing.assert_close(weight, wanted.T, rtol=0, atol=1e-3)
        torch.testing.assert_close(bias, torch.zeros(1, dtype=torch.float64), rtol=0, atol=1e-3)


def test_the_weights_are_here_when_they_are_pulled() -> None:
    """Every rank intends them for good: of a table without an optimizer it has replicas."""

    def main(pm):
        dense = DenseTable(models[pm.rank], pm.worker(), "dense")
        dense.worker.wait_sync()
        dense.pull()
        counts = pm.stats()["tables"]["dense"]
        return counts["remote"], counts["local"] + counts["replica"]

    models = [torch.nn.Linear(100, 100) for _ in range(3)]
    assert run_ranks(3, main) == [(0, 10)] * 3


def test_what_it_cannot_take() -> None:
    def main(pm):
        worker = pm.worker()
        with pytest.raises(intentpm.ConfigError, match="no parameters"):
            DenseTable(torch.nn.ReLU(), worker, "none")
        mixed = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).double())
        with pytest.raises(intentpm.ConfigError, match=r"torch\.float32 on cpu, torch\.float64 on cpu"):
            DenseTable(mixed, worker, "mixed")
        with pytest.raises(intentpm.OptimizerError, match="'dense' has no optimizer"):
            DenseTable(torch.nn.Linear(2, 2), worker, "dense").push_gradients()

    run_ranks(1, main)
