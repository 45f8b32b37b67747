"""Embedding and EmbeddingBag in the life of a model: when gradients are taken, when not, and how many steps they make.

Rows are trained by SGD with learning rate 1 from 0, so a row is minus the sum of its gradients.
"""

import pytest

torch = pytest.importorskip("torch")

import intentpm.optim  # noqa: E402
from intentpm.testing import run_ranks  # noqa: E402
from intentpm.torch import Embedding, EmbeddingBag  # noqa: E402

BATCH = torch.tensor([[1, 2], [2, 3]])


def make(pm, name="t", optimizer=None, **options):
    optimizer = optimizer or intentpm.optim.SGD(lr=1.0)
    return pm.create_table(name, 10, 2, optimizer=optimizer, **options)


def rows(module, *keys):
    return module.all_rows()[list(keys or range(5)), 0].tolist()


def run(main, n=1, **options):
    return run_ranks(n, main, **options)


def test_duplicates_add_up_and_other_rows_stay() -> None:
    def main(pm):
        embedding = Embedding(make(pm), pm.worker())
        embedding(BATCH).sum().backward()
        assert rows(embedding) == [0, -1, -2, -1, 0]

    run(main)


def test_nothing_is_trained_without_a_backward_pass() -> None:
    def main(pm):
        embedding = Embedding(make(pm), pm.worker())
        with torch.no_grad():
            assert not embedding(BATCH).requires_grad
        with torch.inference_mode():
            assert embedding(BATCH).shape == (2, 2, 2)
        frozen = Embedding(embedding.table, embedding.worker, freeze=True)
        assert not frozen(BATCH).requires_grad
        embedding.eval()
        assert embedding(BATCH).requires_grad, "as torch's own in eval()"
        assert rows(embedding) == [0] * 5

    run(main)


def test_empty_batches() -> None:
    def main(pm):
        table, worker = make(pm), pm.worker()
        empty = torch.empty(0, dtype=torch.long)
        embedding, bag = Embedding(table, worker), EmbeddingBag(table, worker, "sum")
        assert embedding(empty).shape == (0, 2)
        assert embedding(empty.view(3, 0)).shape == (3, 0, 2)
        assert bag(empty, torch.tensor([0, 0])).tolist() == [[0, 0], [0, 0]]
        (embedding(empty).sum() + bag(empty, torch.tensor([0, 0])).sum()).backward()
        assert rows(embedding) == [0] * 5

    run(main)


def adagrad():
    """Its first step is 1 whatever the gradient; two steps with the same one are 1 + 1 / sqrt(2)."""
    return intentpm.optim.Adagrad(lr=1.0, eps=1e-12)


def test_accumulated_gradients_are_one_step() -> None:
    def main(pm):
        embedding = Embedding(make(pm, optimizer=adagrad()), pm.worker())
        embedding.accumulate()
        for _ in range(4):
            embedding(BATCH).sum().backward()
        assert rows(embedding) == [0] * 5
        embedding.apply()
        assert rows(embedding) == [0, -1, -1, -1, 0]
        embedding(BATCH).sum().backward()
        assert rows(embedding)[1] == pytest.approx(-1 - 1 / 17**0.5), "apply() ended accumulate(): G is 4^2 + 1^2"

    run(main)


def test_apply_with_a_function_is_torch_s_own() -> None:
    def main(pm):
        model = torch.nn.Sequential(Embedding(make(pm), pm.worker()), torch.nn.Linear(2, 1))
        seen = []
        model.apply(seen.append)
        assert seen == [model[0], model[1], model]

    run(main)


def test_two_forwards_and_two_modules_before_a_backward_are_one_step() -> None:
    def main(pm):
        table, worker = make(pm, optimizer=adagrad()), pm.worker()
        one, two, bag = Embedding(table, worker), Embedding(table, worker), EmbeddingBag(table, worker, "sum")
        (one(BATCH).sum() + one(BATCH).sum() + two(BATCH).sum() + bag(BATCH).sum()).backward()
        assert rows(one) == [0, -1, -1, -1, 0]

    run(main)


def test_backward_twice_is_two_steps() -> None:
    def main(pm):
        embedding = Embedding(make(pm), pm.worker())
        loss = embedding(BATCH).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        assert rows(embedding) == [0, -2, -4, -2, 0]

    run(main)


def test_a_backward_pass_that_fails_applies_nothing_and_spoils_nothing() -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, rows):
            return rows.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise ArithmeticError("on purpose")

    def main(pm):
        table, worker = make(pm), pm.worker()
        embedding = Embedding(table, worker)
        failing = Fails.apply(embedding(BATCH))  # made first, so reached last
        with pytest.raises(ArithmeticError):
            (failing.sum() + embedding(torch.tensor([4])).sum()).backward()
        embedding(BATCH).sum().backward()
        assert rows(embedding) == [0, -1, -2, -1, 0]

    run(main)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_under_checkpoint_forward_runs_twice_and_steps_once(use_reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    def main(pm):
        embedding = Embedding(make(pm), pm.worker())
        scale = torch.ones(1, requires_grad=True)
        checkpoint(lambda x: embedding(BATCH) * x, scale, use_reentrant=use_reentrant).sum().backward()
        assert rows(embedding) == [0, -1, -2, -1, 0]

    run(main)


def test_autocast_keeps_the_rows_type_and_trains_them() -> None:
    def main(pm):
        embedding, linear = Embedding(make(pm, init=1.0), pm.worker()), torch.nn.Linear(2, 1)
        torch.nn.init.ones_(linear.weight)
        with torch.autocast("cpu", torch.bfloat16):
            out = embedding(BATCH)
            assert out.dtype == torch.float32
            loss = linear(out)
            assert loss.dtype == torch.bfloat16
        loss.sum().backward()
        assert rows(embedding) == [1, 0, -1, 0, 1]

    run(main)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_in_a_compiled_model() -> None:
    class Model(torch.nn.Module):
        def __init__(self, embedding):
            super().__init__()
            self.embedding, self.linear = embedding, torch.nn.Linear(2, 1, bias=False)
            torch.nn.init.ones_(self.linear.weight)

        def forward(self, keys):
            return self.linear(torch.relu(self.embedding(keys) + 1))

    def main(pm):
        embedding = Embedding(make(pm), pm.worker())
        model = torch.compile(Model(embedding), backend="aot_eager")
        for _ in range(2):
            model(BATCH).sum().backward()
        return rows(embedding)

    assert run(main, timeout=100) == [[0, -1, -2, -1, 0]], "after the first step relu is 0 at rows 1 to 3"


def test_several_tables_and_the_learning_rate_of_a_schedule() -> None:
    def main(pm):
        worker = pm.worker()
        users, items = Embedding(make(pm, "users"), worker), Embedding(make(pm, "items"), worker)
        for lr in (0.5, 0.25):
            users.lr = lr
            (users(BATCH).sum() + items(BATCH).sum()).backward()
        assert (rows(users), rows(items)) == ([0, -0.75, -1.5, -0.75, 0], [0, -2, -4, -2, 0])
        users.lr = None
        users(BATCH).sum().backward()
        assert rows(users, 1) == [-1.75]

    run(main)


def test_ranks_train_one_table_together() -> None:
    def main(pm):
        embedding = Embedding(make(pm), pm.worker())
        for _ in range(5):
            embedding(BATCH + pm.rank).sum().backward()
        embedding.settle()
        pm.barrier()
        return rows(embedding, *range(6))

    assert run(main, 3) == [[0, -5, -15, -20, -15, -5]] * 3


def test_a_table_without_optimizer_is_read_and_not_trained() -> None:
    def main(pm):
        embedding = Embedding(pm.create_table("plain", 10, 2, init=3.0), pm.worker())
        loss = embedding(BATCH).sum()
        assert loss.item() == 24
        with pytest.raises(intentpm.OptimizerError, match=r"table 'plain' has no optimizer.*create_table\(\.\.\., opt"):
            loss.backward()

    run(main)


def test_what_cannot_be_an_embedding() -> None:
    def main(pm):
        worker = pm.worker()
        with pytest.raises(intentpm.ShapeError, match="one dimension"):
            Embedding(pm.create_table("matrices", 4, (2, 2)), worker)
        with pytest.raises(intentpm.DtypeError, match="int64 cannot be an embedding"):
            Embedding(pm.create_table("integers", 4, 2, "int64"), worker)
        table = make(pm)
        with pytest.raises(intentpm.ShapeError, match="padding_idx=10"):
            Embedding(table, worker, padding_idx=10)
        with pytest.raises(intentpm.DtypeError, match="float32"):
            Embedding(table, worker)(torch.ones(3))
        for key in (10, -1):
            with pytest.raises(IndexError, match=f"key {key} "):
                Embedding(table, worker)(torch.tensor([key]))

    run(main)


# -- rows in and out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
def test_from_a_torch_module_and_back(n: int) -> None:
    theirs = torch.nn.Embedding(10, 2, padding_idx=3)
    bags = torch.nn.EmbeddingBag(10, 2, mode="max", include_last_offset=True)

    def main(pm):
        worker = pm.worker()
        embedding = Embedding.from_pretrained(theirs, worker, "t", intentpm.optim.SGD(lr=1.0))
        bag = EmbeddingBag.from_pretrained(bags, worker, "bags")
        assert (embedding.padding_idx, embedding.freeze) == (3, False)
        assert (bag.mode, bag.include_last_offset) == ("max", True)
        back = embedding.to_torch()
        assert torch.equal(back.weight, theirs.weight)
        assert (back.padding_idx, back.weight.requires_grad) == (3, True)
        assert torch.equal(bag.to_torch().weight, bags.weight)
        tensor = Embedding.from_pretrained(theirs.weight.detach(), worker, "frozen")
        assert tensor.freeze, "as torch: a tensor is frozen unless asked otherwise"
        assert torch.equal(tensor(BATCH), theirs(BATCH))

    run(main, n)


def test_a_state_dict_says_where_the_rows_are() -> None:
    def main(pm):
        model = torch.nn.Sequential(Embedding(make(pm, init=2.0), pm.worker()), torch.nn.Linear(2, 1))
        state = model.state_dict()
        assert list(state) == ["0._extra_state", "1.weight", "1.bias"]
        assert state["0._extra_state"]["table"] == "t"
        assert state["0._extra_state"]["shape"] == (10, 2)
        assert "not in this state_dict" in state["0._extra_state"]["rows_in"]
        model.load_state_dict(state)
        assert rows(model[0]) == [2] * 5
        other = torch.nn.Sequential(Embedding(pm.create_table("o", 9, 2), pm.worker()), torch.nn.Linear(2, 1))
        with pytest.raises(intentpm.ShapeError, match="'t'"):
            other.load_state_dict(state)

    run(main)


@pytest.mark.parametrize("n", [1, 3])
def test_a_plain_model_s_state_dict_fills_the_table(n: int) -> None:
    plain = torch.nn.Sequential(torch.nn.Embedding(10, 2), torch.nn.Linear(2, 1))

    def main(pm):
        model = torch.nn.Sequential(Embedding(make(pm), pm.worker()), torch.nn.Linear(2, 1))
        model[0](BATCH).sum().backward()
        assert str(model.load_state_dict(plain.state_dict())) == "<All keys matched successfully>"
        assert torch.equal(model[0].all_rows(), plain[0].weight)
        smaller = torch.nn.Sequential(torch.nn.Embedding(9, 2), torch.nn.Linear(2, 1))
        with pytest.raises(RuntimeError, match=r"0\.weight: weight has shape \(9, 2\)"):
            model.load_state_dict(smaller.state_dict())
        with pytest.raises(RuntimeError, match="Missing key"):
            model.load_state_dict(plain[1].state_dict())

    run(main, n)


# -- inside DistributedDataParallel ------------------------------------------------------------------------------------


def train_under_ddp(port: int):
    """On a real rank: a model of an Embedding and a dense layer; returns the rows and the layer."""
    import os

    rank = int(os.environ["INTENTPM_RANK"])
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        with intentpm.init() as pm:
            embedding = Embedding(make(pm), pm.worker())
            torch.manual_seed(rank)
            model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(embedding, torch.nn.Linear(2, 1)))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for step in range(4):
                optimizer.zero_grad()
                (model(BATCH + rank) - step).square().mean().backward()
                optimizer.step()
            embedding.settle()
            pm.barrier()
            return embedding.all_rows().tolist(), [parameter.tolist() for parameter in model.parameters()]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.multiprocess
def test_inside_distributed_data_parallel(spawn_world) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    one, other = spawn_world(2, train_under_ddp, port, check_leaks=False)
    assert one == other
    assert any(any(row) for row in one[0]), "the rows were trained"
    assert not any(any(row) for row in one[0][5:]), "only those of the batches"
