"""Batches of a shuffled share, as many on every rank: each backward pass averages gradients with all the others."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def batches_per_epoch(examples: int, ranks: int, batch: int) -> int:
    """How many batches every rank makes of its share of ``examples`` examples."""
    return max(1, -(-examples // (ranks * batch)))


def even_batches(mine: int, batches: int, random: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """The places of ``mine`` examples in random order, in ``batches`` parts whose lengths differ by one at most."""
    yield from np.array_split(random.permutation(mine), batches)
