"""Embedding and EmbeddingBag against torch's own modules and optimisers, on one rank: the same rows to 1e-6.

In float64 1,000 steps agree far below that: the arithmetic is the same. In float32 the order in which duplicates are
summed shows in the last bits of every step, and 1,000 steps of it reach a few 1e-6.
"""

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import intentpm.optim  # noqa: E402
from intentpm.testing import run_ranks  # noqa: E402
from intentpm.torch import Embedding, EmbeddingBag  # noqa: E402

KEYS, WIDTH, STEPS = 20, 4, 1000
LR = 0.05

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch's own sparse gradients

OPTIMIZERS = {
    "sgd": (intentpm.optim.SGD(lr=LR), torch.optim.SGD),
    "adagrad": (intentpm.optim.Adagrad(lr=LR), torch.optim.Adagrad),
    "adam": (intentpm.optim.Adam(lr=LR), torch.optim.Adam),
    # Torch's SparseAdam alone adds eps before the bias of the square root is corrected; a tiny eps hides that.
    "sparse_adam": (intentpm.optim.Adam(lr=LR, eps=1e-15), partial(torch.optim.SparseAdam, eps=1e-15)),
}


TOLERANCE = {"float64": 1e-9, "float32": 1e-5}


def initial_rows(dtype="float32"):
    return np.random.default_rng(5).normal(size=(KEYS, WIDTH)).astype(dtype)


def batches_of(shape, every_key: bool, steps: int = STEPS):
    """Keys with many duplicates. ``every_key``: each batch has each key, because torch's Adams count steps of the
    tensor, and this one those of the row."""
    generator = np.random.default_rng(6)
    for _ in range(steps):
        keys = generator.zipf(1.3, shape) % KEYS
        if every_key:
            keys.reshape(-1)[:KEYS] = np.arange(KEYS)
        yield torch.from_numpy(generator.permutation(keys.reshape(-1)).reshape(shape))


def loss_of(out, target):
    return ((out - target) ** 2).mean()


def train_both(ours, theirs, optimizer, calls, atol):
    """The same steps with both; ``calls``: of the arguments of their forward."""
    generator = torch.Generator().manual_seed(7)
    for arguments, keyword in calls:
        out, expected = ours(*arguments, **keyword), theirs(*arguments, **keyword)
        torch.testing.assert_close(out, expected, rtol=atol, atol=atol)
        target = torch.randn(expected.shape, generator=generator, dtype=expected.dtype)
        optimizer.zero_grad()
        loss_of(expected, target).backward()
        optimizer.step()
        loss_of(out, target).backward()


def check(make, make_theirs, calls, name: str, dtype: str = "float64") -> None:
    ours_with, theirs_with = OPTIMIZERS[name]

    def main(pm):
        rows, atol = initial_rows(dtype), TOLERANCE[dtype]
        table = pm.create_table("t", KEYS, WIDTH, dtype, init=rows, optimizer=ours_with)
        ours, theirs = make(table, pm.worker()), make_theirs(torch.from_numpy(rows.copy()))
        train_both(ours, theirs, theirs_with(theirs.parameters(), lr=LR), calls, atol)
        torch.testing.assert_close(ours.all_rows(), theirs.weight.detach(), rtol=0, atol=atol)
        assert (ours.all_rows() - torch.from_numpy(rows)).abs().max() > 0.1

    run_ranks(1, main)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_embedding(name: str, dtype: str) -> None:
    def theirs(rows):
        return torch.nn.Embedding.from_pretrained(rows, False, sparse=name != "adam")

    calls = (((batch,), {}) for batch in batches_of((8, 5), "adam" in name))
    check(Embedding, theirs, calls, name, dtype)


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
@pytest.mark.parametrize("padding_idx", [2, -1])
def test_padding(name: str, padding_idx: int) -> None:
    def theirs(rows):
        return torch.nn.Embedding.from_pretrained(rows, False, padding_idx, sparse=True)

    calls = (((batch,), {}) for batch in batches_of((8, 5), False, 200))
    check(lambda table, worker: Embedding(table, worker, padding_idx), theirs, calls, name)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_embedding_bag(name: str, mode: str, dtype: str) -> None:
    def theirs(rows):
        return torch.nn.EmbeddingBag.from_pretrained(rows, False, mode=mode, sparse=name != "adam")

    calls = (((batch,), {}) for batch in batches_of((8, 5), "adam" in name))
    check(lambda table, worker: EmbeddingBag(table, worker, mode=mode), theirs, calls, name, dtype)


@pytest.mark.parametrize("include_last_offset", [False, True])
@pytest.mark.parametrize("padding_idx", [None, 1])
def test_bags_of_any_length_with_offsets(include_last_offset: bool, padding_idx) -> None:
    options = {"include_last_offset": include_last_offset, "padding_idx": padding_idx}

    def calls():
        generator = np.random.default_rng(8)
        for batch in batches_of((30,), False, 200):
            starts = [0, *np.sort(generator.integers(0, 31, 6)).tolist()]  # equal ones: empty bags
            yield (batch, torch.tensor([*starts, 30] if include_last_offset else starts)), {}

    def theirs(rows):
        return torch.nn.EmbeddingBag.from_pretrained(rows, False, mode="sum", sparse=True, **options)

    check(lambda table, worker: EmbeddingBag(table, worker, "sum", **options), theirs, calls(), "adagrad")


@pytest.mark.parametrize("padding_idx", [None, 1])
@pytest.mark.parametrize("offsets", [None, torch.tensor([0, 7, 7, 30])])
def test_weights_per_sample_get_their_gradients(offsets, padding_idx) -> None:
    def main(pm):
        table = pm.create_table(
            "t", KEYS, WIDTH, "float64", init=initial_rows("float64"), optimizer=OPTIMIZERS["sgd"][0]
        )
        ours = EmbeddingBag(table, pm.worker(), "sum", padding_idx)
        theirs = torch.nn.EmbeddingBag.from_pretrained(
            torch.from_numpy(initial_rows("float64")), False, mode="sum", sparse=True, padding_idx=padding_idx
        )
        optimizer = torch.optim.SGD(theirs.parameters(), lr=LR)
        for batch in batches_of((8, 5) if offsets is None else (40,), False, 50):
            weights = torch.rand(batch.shape, dtype=torch.float64)
            mine, expected = weights.clone().requires_grad_(), weights.clone().requires_grad_()
            optimizer.zero_grad()
            (theirs(batch, offsets, per_sample_weights=expected) ** 2).mean().backward()
            optimizer.step()
            (ours(batch, offsets, per_sample_weights=mine) ** 2).mean().backward()
            torch.testing.assert_close(mine.grad, expected.grad, rtol=0, atol=1e-12)
        torch.testing.assert_close(ours.all_rows(), theirs.weight.detach(), rtol=0, atol=1e-12)

    run_ranks(1, main)


def test_gradients_by_frequency() -> None:
    def theirs(rows):
        return torch.nn.Embedding.from_pretrained(rows, False, scale_grad_by_freq=True)

    calls = (((batch,), {}) for batch in batches_of((8, 5), False, 100))
    check(lambda table, worker: Embedding(table, worker, scale_grad_by_freq=True), theirs, calls, "sgd")


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_number_types(dtype: str) -> None:
    """One step of SGD on 16-bit rows rounds as torch's: to a unit of the last place."""

    def main(pm):
        rows = torch.from_numpy(initial_rows()).to(getattr(torch, dtype))
        ours = Embedding.from_pretrained(rows, pm.worker(), "t", intentpm.optim.SGD(lr=LR), freeze=False)
        theirs = torch.nn.Embedding.from_pretrained(rows.clone(), False)
        batch = torch.tensor([[1, 2, 2], [3, 1, 19]])
        assert ours(batch).dtype == theirs(batch).dtype
        assert torch.equal(ours(batch), theirs(batch))
        optimizer = torch.optim.SGD(theirs.parameters(), lr=LR)
        theirs(batch).square().sum().backward()
        optimizer.step()
        ours(batch).square().sum().backward()
        torch.testing.assert_close(ours.all_rows(), theirs.weight.detach())
        assert not torch.equal(ours.all_rows(), rows)

    run_ranks(1, main)
