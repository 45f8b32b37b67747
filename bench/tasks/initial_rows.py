"""Initial rows as a pure function of seed and key, so that it does not matter which rank makes which row."""

import numpy as np
from numpy.typing import NDArray

CHUNK_ROWS = 16_384
"""Rows made at once: bounds the temporary memory, whatever the size of the table."""
GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


class NormalRows:
    """``init`` of a table: normal values with mean 0 in the first columns, zeros in the rest.

    Parameters:
        columns: row length D.
        random_columns: how many leading columns get random values; the others (a bias, optimiser state) get 0.
        deviation: standard deviation of the random values.
        seed: any integer. Tables that must differ need different seeds.
    """

    def __init__(self, columns: int, random_columns: int, deviation: float, seed: int) -> None:
        self.columns = columns
        self.random_columns = random_columns
        self.deviation = deviation
        self.seed = _mix(np.array([seed], np.int64).astype(np.uint64))

    def __call__(self, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows of ``keys`` (int64 (K,)): float32 (K, D)."""
        keys = np.asarray(keys).reshape(-1)
        rows = np.zeros((len(keys), self.columns), np.float32)
        for first in range(0, len(keys), CHUNK_ROWS):
            chunk = slice(first, first + CHUNK_ROWS)
            rows[chunk, : self.random_columns] = self._normal(keys[chunk])
        return rows

    def _normal(self, keys: NDArray[np.int64]) -> NDArray[np.float64]:
        # Box-Muller: two uniform numbers from two hashes of (seed, key, column) make one normal one.
        columns = np.arange(self.random_columns, dtype=np.uint64)
        counter = _mix(keys.astype(np.uint64) ^ self.seed)[:, None] + GOLDEN_GAMMA * columns
        first = _mix(counter)
        radius = np.sqrt(-2 * np.log1p(-_uniform(first)))
        normal: NDArray[np.float64] = self.deviation * radius * np.cos(2 * np.pi * _uniform(_mix(first)))
        return normal


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit numbers that spreads any change over all bits (the SplitMix64 finaliser)."""
    values = values + GOLDEN_GAMMA
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) from the upper 53 bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
