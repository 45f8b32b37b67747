"""A step on 10,000 random rows of 64 float32 under pytest-benchmark: ``pytest bench/kernels/test_push_grad.py``.

Next to it torch.optim with a sparse gradient of the same rows, held to one thread, and a plain push of the same bytes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import intentpm
from intentpm import optim

NUM_KEYS, KEYS, DIM = 1_000_000, 10_000, 64
OPTIMIZERS = {
    "SGD": optim.SGD(lr=0.01),
    "Adagrad": optim.Adagrad(lr=0.01),
    "RowwiseAdagrad": optim.RowwiseAdagrad(lr=0.01),
    "Adam": optim.Adam(lr=0.001),
    "PartialRowwiseAdam": optim.PartialRowwiseAdam(lr=0.001),
}
OF_TORCH = {"SGD": "SGD", "Adagrad": "Adagrad", "Adam": "SparseAdam"}


@pytest.fixture(scope="module")
def pm() -> Iterator[Any]:
    with intentpm.init() as manager:
        yield manager


@pytest.fixture(scope="module")
def tables(pm: Any) -> dict[str, Any]:
    return {
        name: pm.create_table(name, NUM_KEYS, DIM, init=1.0, optimizer=optimizer)
        for name, optimizer in {"push": None, **OPTIMIZERS}.items()
    }


@pytest.fixture(scope="module")
def batch() -> tuple[Any, Any]:
    """Distinct keys in random order, and gradients."""
    draw = np.random.default_rng(0)
    return draw.choice(NUM_KEYS, KEYS, replace=False), draw.normal(size=(KEYS, DIM)).astype(np.float32)


def _torch_step(name: str, keys: Any, gradients: Any) -> Callable[[], None]:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    parameter = torch.nn.Parameter(torch.ones(NUM_KEYS, DIM))
    optimizer = getattr(torch.optim, OF_TORCH[name])([parameter], lr=0.01)
    with torch.sparse.check_sparse_tensor_invariants(False):
        # As the backward pass of torch.nn.Embedding(sparse=True) leaves it: not coalesced.
        parameter.grad = torch.sparse_coo_tensor(
            torch.from_numpy(keys)[None], torch.from_numpy(gradients), (NUM_KEYS, DIM)
        )

    def step() -> None:
        with torch.sparse.check_sparse_tensor_invariants(False):
            optimizer.step()

    return step


@pytest.mark.parametrize("means", ["push_grad", "push_grad, half duplicates", "torch.optim", "push"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_push_grad(benchmark: Any, pm: Any, tables: Any, batch: tuple[Any, Any], name: str, means: str) -> None:
    keys, gradients = batch
    worker = pm.worker()
    benchmark.group = f"{name}, {KEYS} x {DIM} float32"
    benchmark.name = means
    if means == "torch.optim":
        if name not in OF_TORCH:
            pytest.skip(f"torch.optim has no {name}")
        benchmark(_torch_step(name, keys, gradients))
    elif means == "push":
        benchmark(lambda: worker.push(tables["push"], keys, gradients))
    else:
        if "duplicates" in means:
            keys = np.resize(keys[: KEYS // 2], KEYS)
        benchmark(lambda: worker.push_grad(tables[name], keys, gradients))
