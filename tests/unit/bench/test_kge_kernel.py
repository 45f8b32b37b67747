"""The KGE kernel against NumPy with complex numbers, and its derivatives against finite differences."""

import numpy as np
import pytest

from intentpm.bench.tasks._kge import train_batch
from intentpm.bench.tasks.kge import head_queries, tail_queries

DIM = 8
EPSILON = 1e-10


def complex_of(rows):
    return rows[..., : DIM // 2] + 1j * rows[..., DIM // 2 : DIM]


def score(head, relation, tail):
    return (complex_of(head) * complex_of(relation) * complex_of(tail).conj()).real.sum(-1)


def triple_loss(entities, relations, triple, negatives, kind, l2=0.0):
    head, relation, tail = entities[triple[0]], relations[triple[1]], entities[triple[2]]
    positive = score(head, relation, tail)
    sides = (score(head, relation, entities[negatives[0]]), score(entities[negatives[1]], relation, tail))
    loss = 0.5 * l2 * sum((row[:DIM] ** 2).sum() for row in (head, relation, tail))
    if kind == "logistic":
        return loss + np.logaddexp(0, -positive) + sum(np.logaddexp(0, side).sum() for side in sides)
    return loss + sum(np.logaddexp.reduce(np.r_[positive, side]) - positive for side in sides)


def numeric_gradients(entities, relations, *arguments):
    """Of triple_loss by the first DIM columns of all rows, by central differences in float64."""
    gradients = []
    for rows in (entities, relations):
        gradient = np.zeros_like(rows)
        for index in np.ndindex(len(rows), DIM):
            kept, losses = rows[index], []
            for step in (1e-6, -1e-6):
                rows[index] = kept + step
                losses.append(triple_loss(entities, relations, *arguments))
            rows[index] = kept
            gradient[index] = (losses[0] - losses[1]) / 2e-6
        gradients.append(gradient)
    return gradients


def random_rows(random, count, sums=0.0):
    rows = random.normal(0, 0.6, (count, 2 * DIM)).astype(np.float32)
    rows[:, DIM:] = sums
    return rows


def run(entities, relations, triples, negatives, rate=0.1, l2=0.0, loss="softmax"):
    deltas = np.full_like(entities, np.nan), np.full_like(relations, np.nan)
    triples, negatives = np.asarray(triples, np.int32), np.asarray(negatives, np.int32)
    return train_batch(entities, relations, triples, negatives, *deltas, rate, l2, loss), *deltas


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("loss", ["softmax", "logistic"])
def test_one_step_has_the_gradient_of_the_loss(loss, l2):
    """All rows of the triple differ, so the AdaGrad sums rise by exactly the squared gradient."""
    random = np.random.default_rng(1)
    entities, relations = random_rows(random, 9), random_rows(random, 3)
    triple, negatives = (0, 1, 2), np.array([[3, 4, 5], [6, 7, 8]])
    total, *deltas = run(entities, relations, [triple], [negatives], 0.1, l2, loss)
    wide = entities.astype(np.float64), relations.astype(np.float64)
    assert total == pytest.approx(triple_loss(*wide, triple, negatives, loss), rel=1e-5)
    for gradient, delta in zip(numeric_gradients(*wide, triple, negatives, loss, l2), deltas, strict=True):
        np.testing.assert_allclose(delta[:, DIM:], gradient[:, :DIM] ** 2, rtol=2e-3, atol=1e-7)
        expected = -0.1 * gradient[:, :DIM] / np.sqrt(gradient[:, :DIM] ** 2 + EPSILON)
        np.testing.assert_allclose(delta[:, :DIM], expected, rtol=2e-3, atol=1e-5)


def reference(entities, relations, triples, negatives, rate, l2, loss):
    """The same training in float64 with the derivatives of another formulation: numeric ones."""
    entities, relations = entities.astype(np.float64), relations.astype(np.float64)

    def descend(row, gradient):
        row[DIM:] += gradient**2
        row[:DIM] -= rate * gradient / np.sqrt(row[DIM:] + EPSILON)

    for triple, candidates in zip(triples, negatives, strict=True):
        # Rows that are there several times get a copy for each place: every place takes its own step.
        places = [triple[0], triple[2], *candidates[0], *candidates[1]]
        copies, relation = entities[places], relations[[triple[1]]]
        j = len(candidates[0])
        local = np.arange(2, 2 + 2 * j).reshape(2, j)
        gradients, (relation_gradient,) = numeric_gradients(copies, relation, (0, 0, 1), local, loss, l2)
        descend(relations[triple[1]], relation_gradient[:DIM])
        for place, gradient in zip(places, gradients, strict=True):
            descend(entities[place], gradient[:DIM])
    return entities, relations


@pytest.mark.parametrize("loss", ["softmax", "logistic"])
def test_triples_are_trained_one_after_the_other(loss):
    """With entities that repeat: as head and tail, as negative of their own triple, as negative twice."""
    random = np.random.default_rng(2)
    entities, relations = random_rows(random, 6, sums=0.05), random_rows(random, 2, sums=0.05)
    triples = [(0, 0, 1), (1, 1, 1), (2, 0, 0), (0, 0, 1)]
    negatives = [[[2, 3], [4, 5]], [[1, 0], [3, 3]], [[0, 2], [5, 5]], [[5, 4], [3, 2]]]
    _, *deltas = run(entities, relations, triples, negatives, 0.05, 0.01, loss)
    expected = reference(entities, relations, triples, np.array(negatives), 0.05, 0.01, loss)
    for before, after, delta in zip((entities, relations), expected, deltas, strict=True):
        np.testing.assert_allclose(before + delta, after, rtol=1e-3, atol=1e-4)


def test_the_loss_falls():
    random = np.random.default_rng(3)
    entities, relations = random_rows(random, 20), random_rows(random, 2)
    triples = [(k, k % 2, (k + 3) % 20) for k in range(20)]
    losses = []
    for _ in range(30):
        negatives = random.integers(20, size=(20, 2, 5))
        loss, entity_deltas, relation_deltas = run(entities, relations, triples, negatives)
        entities, relations = entities + entity_deltas, relations + relation_deltas
        losses.append(loss)
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("loss", ["softmax", "logistic"])
def test_huge_scores_stay_finite(loss):
    entities, relations = np.full((3, 2 * DIM), 100, np.float32), np.full((1, 2 * DIM), 100, np.float32)
    total, entity_deltas, _ = run(entities, relations, [(0, 0, 1)], [[[2], [2]]], loss=loss)
    assert np.isfinite(total)
    assert np.isfinite(entity_deltas).all()


def test_queries_give_the_score():
    random = np.random.default_rng(4)
    head, relation, tail = (random_rows(random, 5)[:, :DIM].copy() for _ in range(3))
    expected = score(head, relation, tail)
    np.testing.assert_allclose((tail_queries(head, relation) * tail).sum(1), expected, rtol=1e-4)
    np.testing.assert_allclose((head_queries(relation, tail) * head).sum(1), expected, rtol=1e-4)


def test_nothing_to_train_changes_nothing():
    random = np.random.default_rng(5)
    total, *deltas = run(
        random_rows(random, 2), random_rows(random, 1), np.empty((0, 3), np.int32), np.empty((0, 2, 4), np.int32)
    )
    assert total == 0
    assert all((delta == 0).all() for delta in deltas)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"triples": [(0, 0, 9)]}, IndexError, "entity outside 0 to 3"),
        ({"triples": [(0, 1, 0)]}, IndexError, "relation outside 0 to 0"),
        ({"negatives": [[[0], [-1]]]}, IndexError, "negatives has a value outside 0 to 3"),
        ({"negatives": [[[0]]]}, ValueError, "need the shapes"),
        ({"loss": "hinge"}, ValueError, "choose one of softmax, logistic"),
        ({"relations": np.zeros((1, 8), np.float32)}, ValueError, "need the same number"),
    ],
)
def test_wrong_arguments(change, error, message):
    arguments = {
        "entities": np.zeros((4, 2 * DIM), np.float32),
        "relations": np.zeros((1, 2 * DIM), np.float32),
        "triples": [(0, 0, 1)],
        "negatives": [[[0], [1]]],
    }
    with pytest.raises(error, match=message):
        run(**(arguments | change))
