"""Local pull, push and set of K random rows, next to NumPy and PyTorch doing the same on a plain array."""

from itertools import cycle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from intentpm.bench.accesses import MEANS, access, keys_for
from intentpm.bench.benchmarks import SUBJECT
from intentpm.bench.keys import draw_keys
from intentpm.bench.latency.job import MeasuringRank, create_table
from intentpm.bench.latency.measuring import declare

BATCH_SIZES = (1, 10, 100, 1_000, 10_000, 100_000)
SAME, FRESH = "same keys", "fresh keys"
"""The same in every call, as a cache likes them; or others in every call, as training has them."""
KEYS = {"uniform": ("uniform", SAME), "zipf": ("zipf", SAME), "fresh": ("uniform", FRESH)}
FRESH_BATCH_SIZES = (100, 10_000)
FRESH_BYTES = 256 << 20
"""The fresh batches together touch this many bytes of rows, so that a batch has left the caches when its turn comes."""
MIN_BATCHES, MAX_BATCHES = 8, 8192

CASES = [
    pytest.param(keys, drawn, operation, by, id=f"{operation}-{keys}-{drawn}-{by}")
    for keys in BATCH_SIZES
    for drawn in KEYS
    if drawn != "fresh" or keys in FRESH_BATCH_SIZES
    for operation, means in MEANS.items()
    for by in means
]


class LocalRows:
    """A table, its rows that are here, and an array of as many."""

    def __init__(self, job: MeasuringRank, shape: tuple[int, int]) -> None:
        self.num_keys, self.dim = shape
        job.everywhere(create_table, f"rows {shape}", *shape)
        self.worker, self.table = job.pm.worker(), job.tables[f"rows {shape}"]
        self.here = self.table.owned_keys()
        self.array = np.ones((len(self.here), self.dim), np.float32)

    def batches(self, distribution: str, situation: str, count: int) -> list[NDArray[np.int64]]:
        """Places among the rows that are here, int64 (count,) each; the same for every means."""
        random = np.random.default_rng(count)
        if situation == SAME:
            return [draw_keys(random, distribution, len(self.here), count)]
        batches = min(MAX_BATCHES, max(MIN_BATCHES, FRESH_BYTES // (4 * self.dim * count)))
        return list(random.integers(0, len(self.here), (batches, count)))


@pytest.fixture(scope="module")
def rows(job: MeasuringRank, no_link: None, table_shape: tuple[int, int]) -> LocalRows:
    return LocalRows(job, table_shape)


@pytest.mark.parametrize(("keys", "drawn", "operation", "by"), CASES)
def test_access(
    benchmark: Any, job: MeasuringRank, rows: LocalRows, keys: int, drawn: str, operation: str, by: str
) -> None:
    distribution, situation = KEYS[drawn]
    if by.startswith("torch"):
        pytest.importorskip("torch")
    declare(
        benchmark, operation, by, distribution=distribution, situation=situation, keys=keys, dim=rows.dim,
        num_keys=rows.num_keys, ranks=job.size, transport="none",
    )  # fmt: skip
    batches = rows.batches(distribution, situation, keys)
    taken = [keys_for(by, rows.here[batch] if by == SUBJECT else batch) for batch in batches]
    values = np.full((keys, rows.dim), 0.5, np.float32)
    call = access(operation, by, rows.worker, rows.table, rows.array, values)
    call(taken[0])
    if situation == SAME:
        benchmark(call, taken[0])
    else:
        following = cycle(taken).__next__
        benchmark(lambda: call(following()))
