"""Filtered ranking on a graph small enough to rank by hand."""

import numpy as np
import pytest

from intentpm.bench.tasks.kge_ranking import KnownAnswers, RankingTotals, filtered_ranks

TRIPLES = np.array([(0, 0, 1), (0, 0, 2), (3, 0, 2), (0, 1, 3), (1, 1, 3)], np.int32)


def pairs(found):
    return sorted(zip(*(column.tolist() for column in found), strict=True))


def test_known_answers():
    known = KnownAnswers(TRIPLES, relations=2)
    asked = np.array([(0, 0, 1), (0, 1, 3), (2, 0, 0)], np.int32)
    assert pairs(known.tails(asked)) == [(0, 1), (0, 2), (1, 3)]
    assert pairs(known.heads(asked)) == [(0, 0), (1, 0), (1, 1)]
    assert pairs(known.heads(TRIPLES[1:2])) == [(0, 0), (0, 3)]


# Entities score by their one number: 5 is best.
EMBEDDINGS = np.array([[5.0], [4.0], [3.0], [2.0], [1.0], [3.0]], np.float32)


def ranks(true_entities, known, chunk=6):
    """Ranks of single queries with the embedding 1, which are all the same one."""
    queries = np.ones((len(true_entities), 1), np.float32)
    blocks = ((0, first, queries @ EMBEDDINGS[first : first + chunk].T) for first in range(0, 6, chunk))
    found = np.array(known, np.int64).reshape(-1, 2).T
    return filtered_ranks(EMBEDDINGS[true_entities, 0], (found[0], found[1]), blocks).tolist()


@pytest.mark.parametrize("chunk", [1, 2, 4, 6])
def test_ranks_by_hand(chunk):
    assert ranks([0], [(0, 0)], chunk) == [1]
    assert ranks([3], [(0, 3)], chunk) == [5]
    # Entities 0 and 1 are right answers too: they do not count.
    assert ranks([3], [(0, 0), (0, 1), (0, 3)], chunk) == [3]
    # Entity 5 scores the same as 2: half of it counts.
    assert ranks([2], [(0, 2)], chunk) == [3.5]
    assert ranks([2], [(0, 5), (0, 2)], chunk) == [3]
    assert ranks([4, 3], [(1, 0), (0, 4), (1, 3)], chunk) == [6, 4]


def test_equal_scores_give_the_middle_rank():
    """A model that knows nothing must not look good."""
    target, scores = np.zeros(1, np.float32), np.zeros((1, 6), np.float32)
    found = filtered_ranks(target, (np.array([0]), np.array([2])), [(0, 0, scores)])
    assert found.tolist() == [3.5]


def test_totals():
    totals = RankingTotals.of(np.array([1.0, 2.0, 4.0, 20.0]))
    assert totals.queries == 4
    assert totals.reciprocal == pytest.approx(1 + 1 / 2 + 1 / 4 + 1 / 20)
    assert totals.hits == (1, 2, 3)


def test_against_a_slow_ranking():
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(50, 4)).astype(np.float32)
    triples = np.unique(random.integers((20, 3, 50), size=(300, 3)), axis=0).astype(np.int32)
    known = KnownAnswers(triples, relations=3)
    queries = random.normal(size=(len(triples), 4)).astype(np.float32)
    scores = queries @ embeddings.T
    target = scores[np.arange(len(triples)), triples[:, 2]]
    blocks = [(q, e, scores[q : q + 100, e : e + 30].copy()) for e in (0, 30) for q in range(0, len(scores), 100)]
    found = filtered_ranks(target, known.tails(triples), blocks)
    for query, (head, relation, tail), rank in zip(queries, triples.tolist(), found, strict=True):
        others = {t for h, r, t in triples.tolist() if (h, r) == (head, relation)}
        candidates = [entity for entity in range(50) if entity == tail or entity not in others]
        scores = embeddings[candidates].astype(np.float64) @ query
        assert rank == 1 + np.count_nonzero(scores > scores[candidates.index(tail)] + 1e-6)
