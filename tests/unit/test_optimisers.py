"""Row optimisers on one rank, against torch's; their arguments; what a table with one refuses."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from support.budgets import budget_of, need_of

import intentpm
from intentpm import optim
from intentpm.runtime._native.store import resolve_dtype

ALL = (optim.SGD, optim.Adagrad, optim.RowwiseAdagrad, optim.Adam, optim.PartialRowwiseAdam)
KEYS, ITEMS = 30, 7


@pytest.fixture
def pm() -> Any:
    with intentpm.init() as manager:
        yield manager


def gradients_of(seed: int, steps: int, dtype: str = "float32") -> Any:
    """Batches of keys with duplicates, and their gradients."""
    draw = np.random.default_rng(seed)
    for _ in range(steps):
        keys = draw.integers(0, KEYS, 12)
        yield keys, draw.normal(size=(12, ITEMS)).astype(resolve_dtype(dtype))


# -- against torch -----------------------------------------------------------------------------------------------------


def torch_optimizer(name: str, parameter: Any) -> Any:
    import torch

    if name == "SGD":
        return torch.optim.SGD([parameter], lr=0.05)
    if name == "Adagrad":
        return torch.optim.Adagrad([parameter], lr=0.05, eps=1e-8, initial_accumulator_value=0.25)
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("SGD", optim.SGD(lr=0.05)), ("Adagrad", optim.Adagrad(lr=0.05, eps=1e-8, initial_accumulator=0.25))],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_thousand_steps_as_torch(pm: Any, name: str, optimizer: Any, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    first = np.random.default_rng(1).normal(size=(KEYS, ITEMS)).astype(dtype)
    table, worker = pm.create_table("t", KEYS, ITEMS, dtype, init=first, optimizer=optimizer), pm.worker()
    parameter = torch.nn.Parameter(torch.tensor(first))
    other = torch_optimizer(name, parameter)
    for keys, gradients in gradients_of(2, 1000, dtype):
        worker.push_grad(table, keys, gradients)
        with torch.sparse.check_sparse_tensor_invariants(True):
            parameter.grad = torch.sparse_coo_tensor(keys[None], gradients, parameter.shape)
            other.step()
    np.testing.assert_allclose(worker.pull(table, range(KEYS)), parameter.detach().numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("optimizer", "make"),
    [
        (optim.Adam(lr=0.01), lambda torch, row: torch.optim.Adam([row], lr=0.01)),
        (optim.Adam(lr=0.01), lambda torch, row: torch.optim.SparseAdam([row], lr=0.01)),
        (
            optim.Adam(lr=0.01, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1, weight_decay_mode="decoupled"),
            lambda torch, row: torch.optim.AdamW([row], lr=0.01, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1),
        ),
        (
            optim.Adagrad(lr=0.01, weight_decay=0.1, weight_decay_mode="l2"),
            lambda torch, row: torch.optim.Adagrad([row], lr=0.01, weight_decay=0.1),
        ),
        (
            optim.SGD(lr=0.01, weight_decay=0.1, weight_decay_mode="l2"),
            lambda torch, row: torch.optim.SGD([row], lr=0.01, weight_decay=0.1),
        ),
    ],
)
def test_a_thousand_steps_of_a_row_as_torch(pm: Any, dtype: str, optimizer: Any, make: Any) -> None:
    """Each row has an optimizer of torch's to itself, which counts the steps of that row alone, as a table does."""
    torch = pytest.importorskip("torch")
    first = np.random.default_rng(3).normal(size=(KEYS, ITEMS)).astype(dtype)
    table, worker = pm.create_table("t", KEYS, ITEMS, dtype, init=first, optimizer=optimizer), pm.worker()
    rows = [torch.nn.Parameter(torch.tensor(first[key : key + 1])) for key in range(KEYS)]
    others = [make(torch, row) for row in rows]
    for keys, gradients in gradients_of(4, 1000, dtype):
        worker.push_grad(table, keys, gradients)
        for key in np.unique(keys):
            gradient = torch.tensor(gradients[keys == key].sum(axis=0, keepdims=True))
            is_sparse = isinstance(others[key], torch.optim.SparseAdam)
            rows[key].grad = gradient.to_sparse(1) if is_sparse else gradient
            others[key].step()
    expected = np.concatenate([row.detach().numpy() for row in rows])
    np.testing.assert_allclose(worker.pull(table, range(KEYS)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
def test_a_thousand_steps_as_sparse_adam(pm: Any, dtype: str, betas: tuple[float, float]) -> None:
    """One of torch's for the whole table, most rows of which are in some batches only; with an eps that shows."""
    torch = pytest.importorskip("torch")
    first = np.random.default_rng(3).normal(size=(KEYS, ITEMS)).astype(dtype)
    optimizer = optim.Adam(lr=0.01, betas=betas, eps=1e-3, bias_correction="global")
    table, worker = pm.create_table("t", KEYS, ITEMS, dtype, init=first, optimizer=optimizer), pm.worker()
    parameter = torch.nn.Parameter(torch.tensor(first))
    other = torch.optim.SparseAdam([parameter], lr=0.01, betas=betas, eps=1e-3)
    for keys, gradients in gradients_of(4, 1000, dtype):
        worker.push_grad(table, keys, gradients)
        with torch.sparse.check_sparse_tensor_invariants(True):
            parameter.grad = torch.sparse_coo_tensor(keys[None], gradients, parameter.shape)
            other.step()
    np.testing.assert_allclose(worker.pull(table, range(KEYS)), parameter.detach().numpy(), rtol=1e-6, atol=1e-6)


def test_correction_by_calls(pm: Any) -> None:
    """Calls that fail do not count; each worker and table counts its own."""
    kind = optim.PartialRowwiseAdam
    optimizer = kind(lr=0.1, betas=(0.5, 0.75), eps=1e-12, bias_correction="global")
    tables, worker = [pm.create_table(f"t{i}", 4, 2, "float64", optimizer=optimizer) for i in range(2)], pm.worker()
    ones = np.ones((1, 2))
    with pytest.raises(intentpm.ShapeError):
        worker.push_grad(tables[0], [0], np.ones((1, 3)))
    worker.push_grad(tables[0], [0], ones)
    np.testing.assert_allclose(worker.pull(tables[0], [0]), -0.1)
    worker.push_grad_async(tables[0], [1], ones).wait()  # the row's first step, the table's second
    expected = -0.1 * np.sqrt(1 - 0.75**2) / (1 - 0.5**2) * 0.5 / np.sqrt(0.25)
    np.testing.assert_allclose(worker.pull(tables[0], [1])[0], expected)
    worker.push_grad(tables[1], [1], ones)
    np.testing.assert_allclose(worker.pull(tables[1], [1]), -0.1)
    assert worker.pull_state(tables[0], [0, 1, 2])["step"].tolist() == [1, 1, 0]
    other = pm.worker()
    other.push_grad(tables[0], [3], ones)
    np.testing.assert_allclose(other.pull(tables[0], [3]), -0.1)


@pytest.mark.parametrize("kind", [optim.Adam, optim.PartialRowwiseAdam])
def test_what_cannot_be_corrected_by_calls(pm: Any, kind: Any) -> None:
    with pytest.raises(intentpm.Error, match="bias_correction='table': needs row or global"):
        kind(bias_correction="table")
    with pytest.raises(intentpm.Error, match='weight_decay_mode="l2"'):
        kind(bias_correction="global", weight_decay=0.1, weight_decay_mode="decoupled")
    with pytest.raises(intentpm.Error, match='bias_correction="global" needs storage="host"'):
        pm.create_table("t", 4, 4, optimizer=kind(bias_correction="global"), storage="gpu")


# -- against the formula -----------------------------------------------------------------------------------------------


def test_rowwise_adagrad(pm: Any) -> None:
    optimizer = optim.RowwiseAdagrad(lr=0.1, eps=1e-3, initial_accumulator=0.5)
    table, worker = pm.create_table("t", KEYS, ITEMS, "float64", init=1.0, optimizer=optimizer), pm.worker()
    weights, total = np.ones((KEYS, ITEMS)), np.full(KEYS, 0.5)
    for keys, gradients in gradients_of(5, 50, "float64"):
        worker.push_grad(table, keys, gradients)
        for key in np.unique(keys):
            g = gradients[keys == key].sum(axis=0)
            total[key] += (g**2).mean()
            weights[key] -= 0.1 * g / (np.sqrt(total[key]) + 1e-3)
    np.testing.assert_allclose(worker.pull(table, range(KEYS)), weights, rtol=1e-12)
    np.testing.assert_allclose(worker.pull_state(table, range(KEYS))["sum"], total, rtol=1e-12)


def test_partial_rowwise_adam(pm: Any) -> None:
    optimizer = optim.PartialRowwiseAdam(lr=0.1, betas=(0.8, 0.95), eps=1e-3)
    table, worker = pm.create_table("t", KEYS, ITEMS, "float64", init=1.0, optimizer=optimizer), pm.worker()
    weights, m, v, n = np.ones((KEYS, ITEMS)), np.zeros((KEYS, ITEMS)), np.zeros(KEYS), np.zeros(KEYS)
    for keys, gradients in gradients_of(6, 50, "float64"):
        worker.push_grad(table, keys, gradients)
        for key in np.unique(keys):
            g = gradients[keys == key].sum(axis=0)
            n[key] += 1
            m[key] = 0.8 * m[key] + 0.2 * g
            v[key] = 0.95 * v[key] + 0.05 * (g**2).mean()
            corrected = np.sqrt(v[key] / (1 - 0.95 ** n[key])) + 1e-3
            weights[key] -= 0.1 * m[key] / (1 - 0.8 ** n[key]) / corrected
    state = worker.pull_state(table, range(KEYS))
    np.testing.assert_allclose(worker.pull(table, range(KEYS)), weights, rtol=1e-11)
    np.testing.assert_allclose(state["exp_avg"], m, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(state["exp_avg_sq"], v, rtol=1e-11)
    assert state["step"].dtype == np.uint32
    assert (state["step"] == n).all()


def test_clipping_decay_and_largest_norm(pm: Any) -> None:
    optimizer = optim.SGD(
        lr=0.5, clip_value=2.0, clip_norm=3.0, weight_decay=0.1, weight_decay_mode="decoupled", max_norm=1.5
    )
    first = np.random.default_rng(7).normal(size=(KEYS, ITEMS))
    table, worker = pm.create_table("t", KEYS, ITEMS, "float64", init=first, optimizer=optimizer), pm.worker()
    gradients = np.random.default_rng(8).normal(size=(KEYS, ITEMS)) * np.linspace(0.01, 5, KEYS)[:, None]
    worker.push_grad(table, range(KEYS), gradients)
    g = np.clip(gradients, -2, 2)
    g *= np.minimum(1, 3 / np.linalg.norm(g, axis=1, keepdims=True))
    w = first * (1 - 0.5 * 0.1) - 0.5 * g
    w *= np.minimum(1, 1.5 / np.linalg.norm(w, axis=1, keepdims=True))
    np.testing.assert_allclose(worker.pull(table, range(KEYS)), w, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("items", [1, 3, 64])
def test_weights_of_16_bits_have_state_of_32(pm: Any, dtype: str, items: int) -> None:
    table = pm.create_table("t", 9, items, dtype, init=0.0, optimizer=optim.Adagrad(lr=1.0))
    worker = pm.worker()
    for _ in range(4):
        worker.push_grad(table, [3, 4], np.full((2, items), 2.0, table.dtype))
    state = worker.pull_state(table, [3, 4, 5])["sum"]
    assert state.dtype == np.float32
    assert state[:, 0].tolist() == [16.0, 16.0, 0.0]
    expected = -(1 + 1 / np.sqrt(2) + 1 / np.sqrt(3) + 1 / 2)
    np.testing.assert_allclose(worker.pull(table, [3]).astype(float), expected, rtol=0.01)
    assert (worker.pull(table, [5]) == 0).all()


# -- a call ------------------------------------------------------------------------------------------------------------


def test_duplicates_are_summed_or_stepped_each(pm: Any) -> None:
    keys = [4, 1, 4, 4, 2]
    gradients = np.array([[1.0], [5.0], [2.0], [3.0], [7.0]])
    sums = {"sum": [25, 49, 36], "each": [25, 49, 14]}
    for way, expected in sums.items():
        table = pm.create_table(way, 5, 1, "float64", optimizer=optim.Adagrad(lr=1.0))
        worker = pm.worker()
        worker.push_grad(table, keys, gradients, duplicates=way)
        assert worker.pull_state(table, [1, 2, 4])["sum"][:, 0].tolist() == expected


@pytest.mark.parametrize("count", [2, 31, 33, 1000, 20_000])
def test_duplicates_in_batches_of_any_size(pm: Any, count: int) -> None:
    draw = np.random.default_rng(count)
    table, worker = pm.create_table("t", 300, 3, "float64", optimizer=optim.Adagrad(lr=1.0)), pm.worker()
    keys = draw.integers(0, 300, count)
    gradients = draw.integers(-5, 6, (count, 3)).astype(float)
    total = np.zeros((300, 3))
    np.add.at(total, keys, gradients)
    before = keys.copy(), gradients.copy()
    worker.push_grad(table, keys, gradients)
    assert (worker.pull_state(table, range(300))["sum"] == total**2).all()
    assert (keys == before[0]).all()
    assert (gradients == before[1]).all()


def test_lr_of_a_call(pm: Any) -> None:
    table, worker = pm.create_table("t", 3, 2, "float64", optimizer=optim.SGD(lr=8.0)), pm.worker()
    ones = np.ones((1, 2))
    worker.push_grad(table, [0], ones)
    worker.push_grad(table, [0], ones, lr=0.5)
    worker.push_grad_async(table, [0], ones, lr=np.float32(0.25)).wait()
    worker.push_grad(table, [0], ones, lr=0)
    assert worker.pull(table, [0]).tolist() == [[-8.75, -8.75]]


def test_set_and_push_leave_the_state(pm: Any) -> None:
    table = pm.create_table("t", 3, 2, init=1.0, optimizer=optim.Adagrad(lr=1.0, initial_accumulator=4.0))
    worker = pm.worker()
    worker.push_grad(table, [1], np.full((1, 2), 3.0, np.float32))
    worker.set(table, [1], np.full((1, 2), 7.0, np.float32))
    worker.push(table, [1], np.full((1, 2), 2.0, np.float32))
    assert worker.pull(table, [1]).tolist() == [[9.0, 9.0]]
    assert worker.pull_state(table, [0, 1])["sum"].tolist() == [[4.0, 4.0], [13.0, 13.0]]


def test_a_row_of_one_number(pm: Any) -> None:
    table, worker = pm.create_table("t", 3, (), "float32", optimizer=optim.Adam(lr=0.1)), pm.worker()
    worker.push_grad(table, [2], np.array([5.0], np.float32))
    np.testing.assert_allclose(worker.pull(table, [2]), [-0.1], rtol=1e-6)
    assert {name: value.shape for name, value in worker.pull_state(table, [2, 1]).items()} == {
        "exp_avg": (2,),
        "exp_avg_sq": (2,),
        "step": (2,),
    }


def test_no_key_and_no_state(pm: Any) -> None:
    table, worker = pm.create_table("t", 3, 2, optimizer=optim.SGD()), pm.worker()
    worker.push_grad(table, [], np.empty((0, 2), np.float32))
    assert worker.pull_state(table, [0, 1]) == {}


# -- errors ------------------------------------------------------------------------------------------------------------


def test_what_a_call_refuses(pm: Any) -> None:
    plain = pm.create_table("plain", 3, 2)
    table, worker = pm.create_table("t", 3, 2, init=1.0, optimizer=optim.SGD()), pm.worker()
    ones = np.ones((1, 2), np.float32)
    with pytest.raises(intentpm.OptimizerError, match="'plain' has no optimizer"):
        worker.push_grad(plain, [0], ones)
    with pytest.raises(intentpm.OptimizerError, match="'plain' has no optimizer"):
        worker.pull_state(plain, [0])
    with pytest.raises(intentpm.OptimizerError, match=r"duplicates='mean': choose \"sum\" or \"each\""):
        worker.push_grad(table, [0], ones, duplicates="mean")
    for lr in (-1.0, float("nan"), float("inf"), "0.1", True, [0.1]):
        with pytest.raises(intentpm.OptimizerError, match="lr="):
            worker.push_grad(table, [0], ones, lr=lr)
    with pytest.raises(intentpm.KeyRangeError):
        worker.push_grad(table, [0, 3], np.ones((2, 2), np.float32))
    with pytest.raises(intentpm.ShapeError):
        worker.push_grad(table, [0], np.ones((1, 3), np.float32))
    with pytest.raises(intentpm.DtypeError):
        worker.push_grad(table, [0], np.ones((1, 2)))
    assert (worker.pull(table, range(3)) == 1.0).all()
    worker.push_grad(table, [0], ones)  # the worker is free again


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1),
        ("lr", float("nan")),
        ("lr", "0.1"),
        ("eps", 0),
        ("betas", (0.9, 1.0)),
        ("betas", [0.9, 0.99]),
        ("initial_accumulator", -0.5),
        ("weight_decay", -1),
        ("weight_decay_mode", "L2"),
        ("max_norm", 0),
        ("clip_value", -1),
        ("clip_norm", True),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(kind: Any, name: str, value: Any) -> None:
    if name in {field.name for field in dataclasses.fields(kind)}:
        with pytest.raises(intentpm.OptimizerError, match=f"{kind.__name__}: {name}="):
            kind(**{name: value})
    else:
        with pytest.raises(TypeError, match=name):
            kind(**{name: value})


def test_decay_needs_a_mode_and_a_mode_a_decay() -> None:
    for arguments in ({"weight_decay": 0.1}, {"weight_decay_mode": "l2"}):
        with pytest.raises(intentpm.OptimizerError, match="give both, or neither"):
            optim.SGD(**arguments)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_whole_numbers_cannot_be_stepped(pm: Any, dtype: str) -> None:
    with pytest.raises(intentpm.DtypeError, match=f"cannot hold {dtype}"):
        pm.create_table("t", 3, 2, dtype, optimizer=optim.SGD())


def test_what_is_no_optimizer(pm: Any) -> None:
    with pytest.raises(intentpm.OptimizerError, match=r"pass one of intentpm\.optim"):
        pm.create_table("t", 3, 2, optimizer="adagrad")


def test_the_budget_counts_the_state() -> None:
    with intentpm.init(memory_budget=budget_of([need_of(100, 64)]) + 1000) as pm:
        with pytest.raises(intentpm.MemoryBudgetError):
            pm.create_table("t", 100, 64, optimizer=optim.Adagrad())
        pm.create_table("u", 100, 64, optimizer=optim.SGD())


def test_a_row_that_is_taken_over_begins_with_a_state_of_its_own() -> None:
    """As after a loss, in a slot in which another row lay."""
    with intentpm.init() as pm:
        table = pm.create_table("t", 4, 2, optimizer=intentpm.optim.Adagrad(lr=1.0))
        pm.worker().push_grad(table, [3], [[2.0, 2.0]])
        table.disown(np.array([3]))
        table.adopt(np.array([3]), np.ones((1, 2), np.float32))
        row = table.rows_here(np.array([3]), stored=True)
        assert row["weights"].tolist() == [[1.0, 1.0]]
        assert row["sum"].tolist() == [[0.0, 0.0]]
