"""Filtered ranking: where the true entity of a triple comes among all entities that do not make another true triple.

A query asks for the tail of (head, relation, ?) or the head of (?, relation, tail). Scores come in blocks: no rank
needs the whole table, or all scores, at once. Of entities that score the same as the true one, half count as better.
Shape letters: Q queries, q queries and C entities of a block.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

HITS_AT = (1, 3, 10)


@dataclass(frozen=True, slots=True)
class RankingTotals:
    """Sums over queries; additive over ranks."""

    queries: float = 0.0
    reciprocal: float = 0.0
    hits: tuple[float, ...] = (0.0,) * len(HITS_AT)

    @classmethod
    def of(cls, ranks: NDArray[np.float64]) -> "RankingTotals":
        """The sums for ``ranks`` (Q,), counted from 1."""
        hits = tuple(float(np.count_nonzero(ranks <= k)) for k in HITS_AT)
        return cls(float(len(ranks)), float((1 / ranks).sum()), hits)


class KnownAnswers:
    """All true triples, to find which entities answer a query besides the one asked for."""

    def __init__(self, triples: NDArray[np.int32], relations: int) -> None:
        """triples: int32 (n, 3), of all splits."""
        self.relations = relations
        wide = triples.astype(np.int64)
        self._tails = _Grouped(self._code(wide[:, 0], wide[:, 1]), wide[:, 2])
        self._heads = _Grouped(self._code(wide[:, 2], wide[:, 1]), wide[:, 0])

    def tails(self, triples: NDArray[np.int32]) -> tuple[Int64, Int64]:
        """Pairs (query, entity) such that entity is a true tail of the query's head and relation: int64 (P,) twice."""
        return self._tails.pairs(self._code(triples[:, 0].astype(np.int64), triples[:, 1]))

    def heads(self, triples: NDArray[np.int32]) -> tuple[Int64, Int64]:
        """As ``tails``, with the true heads of the query's relation and tail."""
        return self._heads.pairs(self._code(triples[:, 2].astype(np.int64), triples[:, 1]))

    def _code(self, entity: Int64, relation: NDArray[np.integer]) -> Int64:
        return entity * self.relations + relation


class _Grouped:
    """Values by key."""

    def __init__(self, keys: Int64, values: Int64) -> None:
        order = np.argsort(keys, kind="stable")
        self.keys, self.values = keys[order], values[order]

    def pairs(self, wanted: Int64) -> tuple[Int64, Int64]:
        """(position in ``wanted``, value) for each value of each wanted key."""
        first = np.searchsorted(self.keys, wanted, side="left")
        counts = np.searchsorted(self.keys, wanted, side="right") - first
        position = np.repeat(np.arange(len(wanted)), counts)
        within = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
        return position, self.values[first[position] + within]


def filtered_ranks(
    target: Float32, known: tuple[Int64, Int64], blocks: Iterable[tuple[int, int, Float32]]
) -> NDArray[np.float64]:
    """The rank, from 1, of each query's true entity among all entities but the known other answers.

    Parameters:
        target: float32 (Q,), scores of the true entities.
        known: pairs (query, entity) to leave out; must contain each query's true entity.
        blocks: (first query, first entity, scores of consecutive entities for consecutive queries, float32 (q, C),
            which are overwritten); together every entity for every query once, in any order.
    Returns float64 (Q,); halves where others score the same.
    """
    better = np.zeros(len(target))
    order = np.argsort(known[0], kind="stable")
    query, entity = known[0][order], known[1][order]
    for first_query, first_entity, scores in blocks:
        queries = slice(first_query, first_query + len(scores))
        low, high = np.searchsorted(query, [queries.start, queries.stop])
        row, column = query[low:high] - first_query, entity[low:high] - first_entity
        inside = (column >= 0) & (column < scores.shape[1])
        scores[row[inside], column[inside]] = -np.inf
        better[queries] += np.count_nonzero(scores > target[queries, None], axis=1)
        better[queries] += 0.5 * np.count_nonzero(scores == target[queries, None], axis=1)
    return 1 + better
