"""Models of knowledge graphs: how queries score candidates, and one training step on a batch of triples.

Shape letters: T triples, Q = 2 T queries (of tails, then of heads), J candidates, E and R rows, D and L as in ``_kge``.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks._kge import (
    MODELS,
    adagrad,
    add_distance_gradients,
    add_query_gradients,
    add_rows,
    distances,
    queries,
    relation_length,
)

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]

LOSSES = ("softmax", "logistic")
MARGIN = 6.0
"""Score of a RotatE triple whose distance is 0: matters to the logistic loss alone."""

__all__ = ["LOSSES", "MODELS", "Model", "Step", "model_named", "queries", "relation_length", "train_batch"]


class Model:
    """A model whose scores are products of queries and embeddings."""

    def __init__(self, name: str) -> None:
        self.name = name

    def scores(self, asked: Float32, candidates: Float32) -> Float32:
        """Of each candidate (J, D) for each query (Q, D): float32 (Q, J)."""
        return asked @ candidates.T

    def pair_scores(self, asked: Float32, answers: Float32) -> Float32:
        """Of one answer per query, both (Q, D): float32 (Q,)."""
        return np.einsum("qd,qd->q", asked, answers)

    def gradients(self, asked: Float32, candidates: Float32, slopes: Float32) -> tuple[Float32, Float32]:
        """Of ``(slopes * scores).sum()`` by the queries and by the candidates: float32 (Q, D) and (J, D)."""
        return slopes @ candidates, slopes.T @ asked

    def pair_gradients(self, asked: Float32, answers: Float32, slopes: Float32) -> tuple[Float32, Float32]:
        """Of ``(slopes * pair_scores).sum()`` by the queries and by the answers: float32 (Q, D) each."""
        return slopes[:, None] * answers, slopes[:, None] * asked


class RotatE(Model):
    """A model whose scores fall with the distance of query and embedding."""

    def scores(self, asked: Float32, candidates: Float32) -> Float32:
        out = np.empty((len(asked), len(candidates)), np.float32)
        distances(asked, candidates, out)
        return MARGIN - out

    def pair_scores(self, asked: Float32, answers: Float32) -> Float32:
        real, imaginary = np.split(asked - answers, 2, axis=1)
        return MARGIN - np.hypot(real, imaginary).sum(axis=1)

    def gradients(self, asked: Float32, candidates: Float32, slopes: Float32) -> tuple[Float32, Float32]:
        by_asked, by_candidates = np.zeros_like(asked), np.zeros_like(candidates)
        add_distance_gradients(asked, candidates, -slopes, by_asked, by_candidates)
        return by_asked, by_candidates

    def pair_gradients(self, asked: Float32, answers: Float32, slopes: Float32) -> tuple[Float32, Float32]:
        real, imaginary = np.split(asked - answers, 2, axis=1)
        lengths = np.maximum(np.hypot(real, imaginary), np.float32(1e-6))
        by_asked = np.concatenate([real / lengths, imaginary / lengths], axis=1) * -slopes[:, None]
        return by_asked, -by_asked


def model_named(name: str) -> Model:
    """One of MODELS."""
    return RotatE(name) if name == "rotate" else Model(name)


@dataclass(frozen=True, slots=True)
class Step:
    """How a batch is trained."""

    model: Model
    loss: str
    """"softmax": cross-entropy of the true entity among itself and the candidates. "logistic": each score against its
    label, the candidates' together with the weight of one."""
    learning_rate: float
    regularisation: float


def train_batch(
    step: Step, entity_rows: Float32, relation_rows: Float32, triples: Int32, negatives: Int32
) -> tuple[float, Float32, Float32]:
    """One AdaGrad step per row on a batch of triples, whose tails and heads are told from the same negatives.

    Parameters:
        entity_rows, relation_rows: float32 (E, 2 D) and (R, 2 L), the values pulled; not changed.
        triples: int32 (T, 3): the rows of head, relation and tail.
        negatives: int32 (J,): the entity rows of the candidates; the true entity itself does not count among them.
    Returns the sum of the losses of both sides, and what to add to the rows.
    Raises ValueError, IndexError: shapes that do not fit, an index out of range.
    """
    dim, length = entity_rows.shape[1] // 2, relation_rows.shape[1] // 2
    model, name = step.model, step.model.name
    asked = np.empty((2 * len(triples), dim), np.float32)
    queries(name, entity_rows, relation_rows, triples, asked)
    answer = np.concatenate([triples[:, 2], triples[:, 0]])
    answers, candidates = entity_rows[answer, :dim], entity_rows[negatives, :dim]
    scores, positive = model.scores(asked, candidates), model.pair_scores(asked, answers)
    scores[answer[:, None] == negatives] = -np.inf
    loss, slopes, positive_slopes = LOSS_SLOPES[step.loss](scores, positive)
    by_asked, by_candidates = model.gradients(asked, candidates, slopes)
    also_by_asked, by_answers = model.pair_gradients(asked, answers, positive_slopes)
    by_entity = np.zeros((len(entity_rows), dim), np.float32)
    by_relation = np.zeros((len(relation_rows), length), np.float32)
    add_rows(by_entity, negatives, by_candidates)
    add_rows(by_entity, answer, by_answers)
    add_query_gradients(
        name, entity_rows, relation_rows, triples, asked, by_asked + also_by_asked, step.regularisation,
        by_entity, by_relation,
    )  # fmt: skip
    deltas, relation_deltas = np.empty_like(entity_rows), np.empty_like(relation_rows)
    adagrad(entity_rows, by_entity, step.learning_rate, deltas)
    adagrad(relation_rows, by_relation, step.learning_rate, relation_deltas)
    return loss, deltas, relation_deltas


def softmax_slopes(scores: Float32, positive: Float32) -> tuple[float, Float32, Float32]:
    """The loss, and its derivatives by the scores (Q, J), which are overwritten, and by the positive ones (Q,)."""
    largest = np.maximum(scores.max(axis=1, initial=-np.inf), positive)
    np.subtract(scores, largest[:, None], out=scores)
    np.exp(scores, out=scores)
    own = np.exp(positive - largest)
    total = scores.sum(axis=1) + own
    loss = float((np.log(total) + largest - positive).sum(dtype=np.float64))
    scores /= total[:, None]
    return loss, scores, own / total - 1


def logistic_slopes(scores: Float32, positive: Float32) -> tuple[float, Float32, Float32]:
    """As softmax_slopes."""
    share = np.float32(1 / max(1, scores.shape[1]))
    loss = np.logaddexp(0, -positive).sum(dtype=np.float64)
    loss += share * np.logaddexp(0, scores).sum(dtype=np.float64)
    return float(loss), share * _sigmoid(scores), -_sigmoid(-positive)


def _sigmoid(values: Float32) -> Float32:
    return np.exp(-np.logaddexp(np.float32(0), -values))


LOSS_SLOPES = {"softmax": softmax_slopes, "logistic": logistic_slopes}
