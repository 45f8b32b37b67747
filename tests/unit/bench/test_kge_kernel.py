"""A training step of each model against NumPy in float64, and its derivatives against finite differences."""

import numpy as np
import pytest

from intentpm.bench.tasks._kge import MODELS, add_rows, queries, relation_length
from intentpm.bench.tasks.kge_models import LOSSES, MARGIN, Step, model_named, train_batch

DIM, ENTITIES, RELATIONS = 4, 6, 2


def as_complex(rows):
    return rows[..., : DIM // 2] + 1j * rows[..., DIM // 2 :]


def score(model, head, relation, tail):
    """Of embeddings [..., D], as the papers write it."""
    if model == "distmult":
        return (head * relation * tail).sum(-1)
    if model == "rescal":
        return np.einsum("...i,...ij,...j->...", head, relation.reshape(*relation.shape[:-1], DIM, DIM), tail)
    if model == "rotate":
        return MARGIN - np.abs(as_complex(head) * np.exp(1j * relation) - as_complex(tail)).sum(-1)
    return (as_complex(head) * as_complex(relation) * as_complex(tail).conj()).real.sum(-1)


def cubes(model, embedding):
    numbers = as_complex(embedding) if model in ("complex", "rotate") else embedding
    return (np.abs(numbers) ** 3).sum() / 3


def batch_loss(model, kind, entities, relations, triples, negatives, regularisation):
    """The loss and the penalty of a batch, of embeddings in float64."""
    loss = penalty = 0.0
    for h, r, t in triples:
        head, relation, tail = entities[h], relations[r], entities[t]
        positive = score(model, head, relation, tail)
        sides = (
            score(model, head, relation, entities[negatives[negatives != t]]),
            score(model, entities[negatives[negatives != h]], relation, tail),
        )
        for side in sides:
            if kind == "softmax":
                loss += np.logaddexp.reduce(np.r_[positive, side]) - positive
            else:
                loss += np.logaddexp(0, -positive) + np.logaddexp(0, side).sum() / len(negatives)
        penalty += regularisation * (cubes(model, head) + cubes(model, tail))
        penalty += regularisation * cubes(model, relation) if model != "rotate" else 0
    return loss, penalty


def example(model, sums=0.0):
    """Rows, triples with an entity twice in one and in two of them, and negatives with a duplicate and an answer."""
    random = np.random.default_rng(1)
    length = relation_length(model, DIM)
    entities = random.normal(0, 0.6, (ENTITIES, 2 * DIM)).astype(np.float32)
    relations = random.normal(0, 0.6, (RELATIONS, 2 * length)).astype(np.float32)
    entities[:, DIM:] = relations[:, length:] = sums
    triples = np.array([[0, 0, 1], [2, 1, 2], [1, 0, 3]], np.int32)
    return entities, relations, triples, np.array([4, 3, 0, 4], np.int32)


@pytest.mark.parametrize("regularisation", [0.0, 0.3])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_a_step_goes_down_the_gradient_of_the_loss(model, loss, regularisation):
    entities, relations, triples, negatives = example(model)
    kept = entities.copy(), relations.copy()
    step = Step(model_named(model), loss, 0.1, regularisation)
    found, *deltas = train_batch(step, entities, relations, triples, negatives)
    np.testing.assert_array_equal(entities, kept[0])
    np.testing.assert_array_equal(relations, kept[1])
    embeddings = [rows[:, : rows.shape[1] // 2].astype(np.float64) for rows in kept]
    expected, _ = batch_loss(model, loss, *embeddings, triples, negatives, regularisation)
    assert found == pytest.approx(expected, rel=1e-5)
    for rows, delta in zip(embeddings, deltas, strict=True):
        width = rows.shape[1]
        gradient = np.zeros_like(rows)
        for index in np.ndindex(rows.shape):
            value, sides = rows[index], []
            for distance in (1e-6, -1e-6):
                rows[index] = value + distance
                sides.append(sum(batch_loss(model, loss, *embeddings, triples, negatives, regularisation)))
            rows[index] = value
            gradient[index] = (sides[0] - sides[1]) / 2e-6
        np.testing.assert_allclose(delta[:, width:], gradient**2, rtol=2e-3, atol=1e-6)
        moved = np.abs(gradient) > 1e-3
        np.testing.assert_allclose(delta[:, :width][moved], -0.1 * np.sign(gradient)[moved], rtol=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_earlier_gradients_shorten_the_step(model):
    entities, relations, triples, negatives = example(model)
    step = Step(model_named(model), "softmax", 0.1, 0.0)
    _, fresh, _ = train_batch(step, entities, relations, triples, negatives)
    entities[:, DIM:] = 3.0
    _, later, _ = train_batch(step, entities, relations, triples, negatives)
    np.testing.assert_allclose(later[:, DIM:], fresh[:, DIM:], rtol=1e-6)
    gradients = -np.sign(fresh[:, :DIM]) * np.sqrt(fresh[:, DIM:])
    np.testing.assert_allclose(later[:, :DIM], -0.1 * gradients / np.sqrt(3 + fresh[:, DIM:]), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("model", MODELS)
def test_queries_give_the_scores(model):
    entities, relations, triples, _ = example(model)
    asked = np.empty((6, DIM), np.float32)
    queries(model, entities, relations, triples, asked)
    scorer = model_named(model)
    embeddings = np.ascontiguousarray(entities[:, :DIM])
    scores = scorer.scores(asked, embeddings)
    length = relation_length(model, DIM)
    for n, (h, r, t) in enumerate(triples):
        relation = relations[r, :length]
        np.testing.assert_allclose(scores[n], score(model, entities[h, :DIM], relation, embeddings), atol=1e-5)
        np.testing.assert_allclose(scores[3 + n], score(model, embeddings, relation, entities[t, :DIM]), atol=1e-5)
    answers = embeddings[np.r_[triples[:, 2], triples[:, 0]]]
    np.testing.assert_allclose(scorer.pair_scores(asked, answers), np.diag(scorer.scores(asked, answers)), atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_huge_scores_stay_finite(loss):
    entities, relations, triples, negatives = example("complex")
    step = Step(model_named("complex"), loss, 0.1, 0.0)
    with np.errstate(under="ignore"):
        found, deltas, _ = train_batch(step, 100 * entities, relations, triples, negatives)
    assert np.isfinite(found)
    assert np.isfinite(deltas).all()


def test_the_loss_falls():
    for model in MODELS:
        entities, relations, triples, negatives = example(model)
        losses = []
        for _ in range(30):
            step = Step(model_named(model), "softmax", 0.1, 0.0)
            loss, deltas, relation_deltas = train_batch(step, entities, relations, triples, negatives)
            entities, relations = entities + deltas, relations + relation_deltas
            losses.append(loss)
        assert losses[-1] < 0.5 * losses[0], model


def test_nothing_to_train_changes_nothing():
    entities, relations, triples, negatives = example("complex")
    step = Step(model_named("complex"), "softmax", 0.1, 0.1)
    loss, *deltas = train_batch(step, entities, relations, triples[:0], negatives)
    assert loss == 0
    assert not any(delta.any() for delta in deltas)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"triples": np.array([[0, 2, 1]], np.int32)}, IndexError, "triples has a relation outside 0 to 1"),
        ({"triples": np.array([[0, 0, 6]], np.int32)}, IndexError, "triples has an entity outside 0 to 5"),
        ({"triples": np.zeros((1, 2), np.int32)}, ValueError, "triples need the shape"),
        ({"relations": np.zeros((2, 6), np.float32)}, ValueError, "do not fit complex"),
        ({"out": np.zeros((5, DIM), np.float32)}, ValueError, "out needs the shape"),
    ],
)
def test_wrong_arguments(change, error, message):
    entities, relations, triples, _ = example("complex")
    given = {"triples": triples, "relations": relations, "out": np.zeros((2 * len(triples), DIM), np.float32)} | change
    with pytest.raises(error, match=message):
        queries("complex", entities, given["relations"], given["triples"], given["out"])


def test_places_are_checked():
    with pytest.raises(IndexError, match="places has a value outside 0 to 1"):
        add_rows(np.zeros((2, 3), np.float32), np.array([2], np.int32), np.zeros((1, 3), np.float32))
