"""Word similarity: whether cosines of word vectors order pairs of words as people do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks.data_error import DataError
from intentpm.bench.tasks.text_file import open_text, shown

SETS = {"ws353": "ws-353-all.tsv", "simlex": "simlex-999.tsv"}
"""By name of the measure: the file in the folder of similarity sets."""


@dataclass(frozen=True, slots=True)
class SimilaritySet:
    """Pairs of words, each with how similar its two words are."""

    first: NDArray[np.int64]
    """Keys of the words, (P,)."""
    second: NDArray[np.int64]
    score: NDArray[np.float64]
    """Higher is more similar, (P,)."""

    def correlation(self, vectors: NDArray[np.float32], keys: NDArray[np.int64]) -> float:
        """Spearman's correlation of the scores with the cosines; ``vectors`` (K, D) are those of ``keys``, ascending.

        nan of vectors that are all alike, and of less than two pairs.
        """
        from scipy.stats import spearmanr

        if len(self.score) < 2:
            return float("nan")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        first, second = (unit[np.searchsorted(keys, words)] for words in (self.first, self.second))
        cosines = np.einsum("pd,pd->p", first, second)
        if np.ptp(cosines) == 0:
            return float("nan")
        return float(spearmanr(cosines, self.score).statistic)


def read_similarity_sets(folder: Path, key_of: Mapping[str, int]) -> dict[str, SimilaritySet]:
    """The sets of ``SETS`` that are in the folder, without pairs of which a word has no key. Raises DataError."""
    found = {name: folder / file for name, file in SETS.items() if (folder / file).is_file()}
    if not found:
        raise DataError(folder, f"has none of {', '.join(SETS.values())}")
    return {name: _read(path, key_of) for name, path in found.items()}


def _read(path: Path, key_of: Mapping[str, int]) -> SimilaritySet:
    pairs = []
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                first, second, score = line.split()
                pairs.append((key_of.get(first, -1), key_of.get(second, -1), float(score)))
            except ValueError:
                raise DataError(path, f"line {number} is not word, word, number: {shown(line)}") from None
    known = np.array([pair for pair in pairs if min(pair[:2]) >= 0], np.float64).reshape(-1, 3)
    return SimilaritySet(known[:, 0].astype(np.int64), known[:, 1].astype(np.int64), known[:, 2])
