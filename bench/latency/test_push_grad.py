"""A step of each row optimiser on 10,000 random rows of 64 float32 that are here.

Next to it torch.optim with a sparse gradient of the same rows, and a plain push of the same bytes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from intentpm import optim
from intentpm.bench.benchmarks import SUBJECT
from intentpm.bench.latency.job import MeasuringRank, Rank
from intentpm.bench.latency.measuring import declare

NUM_KEYS, KEYS, DIM = 1_000_000, 10_000, 64
OPTIMIZERS = {
    "SGD": optim.SGD(lr=0.01),
    "Adagrad": optim.Adagrad(lr=0.01),
    "RowwiseAdagrad": optim.RowwiseAdagrad(lr=0.01),
    "Adam": optim.Adam(lr=0.001),
    "PartialRowwiseAdam": optim.PartialRowwiseAdam(lr=0.001),
}
OF_TORCH = {"SGD": "SGD", "Adagrad": "Adagrad", "Adam": "SparseAdam"}
PUSH, TORCH, DUPLICATES = "push", "torch.optim", "half duplicates"
CASES = [
    pytest.param(name, keys, by, id=f"{name}-{keys}-{by}")
    for name in OPTIMIZERS
    for keys in ("distinct keys", DUPLICATES)
    for by in (SUBJECT, PUSH, TORCH)
    if by != TORCH or name in OF_TORCH
]


def create_tables(here: Rank) -> None:
    """One of each optimizer, and one without."""
    for name, optimizer in {PUSH: None, **OPTIMIZERS}.items():
        here.tables[name] = here.pm.create_table(name, NUM_KEYS, (DIM,), init=1.0, optimizer=optimizer)


@pytest.fixture(scope="module")
def tables(job: MeasuringRank, no_link: Any) -> dict[str, Any]:
    job.everywhere(create_tables)
    return job.tables


def torch_step(name: str, keys: Any, gradients: Any) -> Callable[[], None]:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    parameter = torch.nn.Parameter(torch.ones(NUM_KEYS, DIM))
    optimizer = getattr(torch.optim, OF_TORCH[name])([parameter], lr=0.01)
    checks = torch.sparse.check_sparse_tensor_invariants
    with checks(False):
        # As the backward pass of torch.nn.Embedding(sparse=True) leaves it: not coalesced.
        indices, values = torch.from_numpy(keys)[None], torch.from_numpy(gradients)
        parameter.grad = torch.sparse_coo_tensor(indices, values, (NUM_KEYS, DIM))

    def step() -> None:
        with checks(False):
            optimizer.step()

    return step


@pytest.mark.parametrize(("name", "drawn", "by"), CASES)
def test_push_grad(benchmark: Any, job: MeasuringRank, tables: dict[str, Any], name: str, drawn: str, by: str) -> None:
    declare(benchmark, "push_grad", by, optimizer=name, situation=drawn, keys=KEYS, dim=DIM, num_keys=NUM_KEYS)
    draw = np.random.default_rng(0)
    keys = draw.choice(tables[name].owned_keys(), KEYS, replace=False)
    if drawn == DUPLICATES:
        keys = np.resize(keys[: KEYS // 2], KEYS)
    gradients = draw.normal(size=(KEYS, DIM)).astype(np.float32)
    worker = job.pm.worker()
    if by == TORCH:
        benchmark(torch_step(name, keys, gradients))
    elif by == PUSH:
        benchmark(lambda: worker.push(tables[PUSH], keys, gradients))
    else:
        benchmark(lambda: worker.push_grad(tables[name], keys, gradients))
