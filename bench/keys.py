"""Keys as training draws them: all alike, or a few hot ones."""

import numpy as np
from numpy.typing import NDArray

DISTRIBUTIONS = ("uniform", "zipf")
ZIPF_EXPONENT = 1.1
SCATTER = 2_654_435_761
"""A prime: multiplying by it, modulo the number of keys, spreads the hot keys over the table."""


def draw_keys(
    random: np.random.Generator, distribution: str, num_keys: int, count: int, exponent: float = ZIPF_EXPONENT
) -> NDArray[np.int64]:
    """``count`` keys of [0, num_keys), int64; some may be equal. Of a zipf distribution, the hot ones lie anywhere."""
    if distribution == "uniform":
        return random.integers(0, num_keys, count)
    ranks = np.empty(0, np.int64)
    while len(ranks) < count:
        drawn = random.zipf(exponent, 2 * count)
        ranks = np.concatenate([ranks, drawn[(drawn > 0) & (drawn <= num_keys)]])
    return (ranks[:count] * SCATTER) % num_keys
