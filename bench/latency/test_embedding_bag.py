"""A step of 4,096 x 26 bags of one key, 16 float32 each, of a million rows: forward, backward and the optimizer.

Next to it torch's own module with sparse gradients and SparseAdam.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from intentpm import optim
from intentpm.bench.benchmarks import SUBJECT
from intentpm.bench.latency.job import MeasuringRank, Rank
from intentpm.bench.latency.measuring import declare, time_calls

torch = pytest.importorskip("torch")

NUM_KEYS, BATCH, BAGS, DIM = 1_000_000, 4096, 26, 16
LR = 0.001
TABLE, TORCH = "bags", "torch.nn"
BATCHES = 8
"""Different ones, so that rows come from memory."""
BUDGET_S = 3.0


def create_table(here: Rank) -> None:
    here.tables[TABLE] = here.pm.create_table(TABLE, NUM_KEYS, (DIM,), init=0.01, optimizer=optim.Adam(lr=LR))


@pytest.fixture(scope="module")
def table(job: MeasuringRank, no_link: Any) -> Any:
    job.everywhere(create_table)
    return job.tables[TABLE]


def batches_of(keys: str, owned: Any) -> list[Any]:
    """Tensors int64 [BATCH * BAGS, 1] of keys that are here."""
    draw = np.random.default_rng(0)
    shape = (BATCH * BAGS, 1)
    places = [
        draw.integers(0, len(owned), shape) if keys == "uniform" else draw.zipf(1.2, shape) for _ in range(BATCHES)
    ]
    return [torch.from_numpy(owned[place % len(owned)]) for place in places]


def step_of(module: Any, optimizer: Any) -> Callable[[Any], None]:
    def step(batch: Any) -> None:
        if optimizer is not None:
            optimizer.zero_grad()
        module(batch).sum().backward()
        if optimizer is not None:
            optimizer.step()

    return step


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("by", [SUBJECT, TORCH])
@pytest.mark.parametrize("keys", ["uniform", "zipf"])
def test_embedding_bag(benchmark: Any, job: MeasuringRank, table: Any, keys: str, by: str) -> None:
    from intentpm.torch import EmbeddingBag

    info = {"situation": f"{keys} keys", "keys": BATCH * BAGS, "dim": DIM, "num_keys": NUM_KEYS}
    declare(benchmark, "EmbeddingBag step", by, optimizer="Adam", **info)
    torch.set_num_threads(1)
    batches = batches_of(keys, table.owned_keys())
    if by == SUBJECT:
        step = step_of(EmbeddingBag(table, job.pm.worker(), "sum"), None)
    else:
        module = torch.nn.EmbeddingBag.from_pretrained(
            torch.full((NUM_KEYS, DIM), 0.01), False, mode="sum", sparse=True
        )
        step = step_of(module, torch.optim.SparseAdam(module.parameters(), lr=LR))
    turn = iter(range(10**9))
    time_calls(benchmark, step, BUDGET_S, setup=lambda: (batches[next(turn) % BATCHES],))
