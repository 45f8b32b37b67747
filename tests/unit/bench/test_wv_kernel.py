"""The kernel of word vectors against NumPy in float64."""

import numpy as np
import pytest

from intentpm.bench.tasks._wv import train_batch

DIM = 7


def reference(inputs, outputs, tokens, first, before, after, targets, rate):
    """The same steps one pair after the other; returns the loss and the rows after them."""
    inputs, outputs, loss = inputs.astype(np.float64), outputs.astype(np.float64), 0.0
    for n, row in enumerate(targets):
        for place in (p for p in range(first + n - before[n], first + n + after[n] + 1) if p != first + n):
            word, step = inputs[tokens[place]], np.zeros(DIM)
            for j, output in enumerate(row):
                if j and output == row[0]:
                    continue
                score = word @ outputs[output]
                loss += np.logaddexp(0, score if j else -score)
                slope = (j == 0) - 1 / (1 + np.exp(-score))
                step += rate * slope * outputs[output]
                outputs[output] += rate * slope * word
            word += step
    return loss, inputs, outputs


def batch(random, centres=20, words=6, negatives=3, window=3):
    tokens = random.integers(words, size=centres + 2 * window).astype(np.int32)
    before, after = random.integers(window + 1, size=(2, centres)).astype(np.uint8)
    targets = random.integers(words, size=(centres, 1 + negatives)).astype(np.int32)
    rows = random.normal(0, 0.7, (2, words, DIM)).astype(np.float32)
    return [*rows, tokens, window, before, after, targets]


def run(inputs, outputs, *arguments):
    deltas = np.full_like(inputs, np.nan), np.full_like(outputs, np.nan)
    return train_batch(inputs, outputs, *arguments[:-1], *deltas, arguments[-1]), *deltas


def test_it_takes_the_steps_of_the_reference():
    arguments = batch(np.random.default_rng(1))
    before = [rows.copy() for rows in arguments[:2]]
    expected_loss, *expected = reference(*arguments, 0.1)
    loss, *deltas = run(*arguments, 0.1)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for rows, kept, delta, after in zip(arguments[:2], before, deltas, expected, strict=True):
        np.testing.assert_array_equal(rows, kept)
        np.testing.assert_allclose(rows + delta, after, atol=2e-5)


def test_one_pair_goes_down_the_gradient():
    random = np.random.default_rng(2)
    inputs, outputs = random.normal(0, 0.7, (2, 4, DIM)).astype(np.float32)
    one = [
        np.array([0, 1], np.int32),
        1,
        np.array([1], np.uint8),
        np.array([0], np.uint8),
        np.array([[1, 2]], np.int32),
    ]

    def loss_at(row):
        return reference(row[None], outputs, np.zeros(2, int), *one[1:], 0.0)[0]

    rate, steps = 1e-3, 1e-5 * np.eye(DIM)
    gradient = [(loss_at(inputs[0] + step) - loss_at(inputs[0] - step)) / 2e-5 for step in steps.astype(np.float64)]
    _, deltas, _ = run(inputs, outputs, *one, rate)
    np.testing.assert_allclose(deltas[0], -rate * np.array(gradient), rtol=1e-3, atol=1e-7)


def test_nothing_to_train_changes_nothing():
    inputs, outputs, tokens, first, before, after, targets = batch(np.random.default_rng(3))
    loss, *deltas = run(inputs, outputs, tokens, first, before[:0], after[:0], targets[:0], 0.1)
    assert loss == 0
    assert not any(delta.any() for delta in deltas)


@pytest.mark.parametrize(
    ("place", "value", "error"),
    [
        (0, np.zeros((6, DIM + 1), np.float32), ValueError),
        (2, np.full(26, 6, np.int32), IndexError),
        (3, 2, IndexError),
        (4, np.zeros(3, np.uint8), ValueError),
        (5, np.full(20, 4, np.uint8), IndexError),
        (6, np.full((20, 4), -1, np.int32), IndexError),
    ],
)
def test_wrong_arguments(place, value, error):
    arguments = batch(np.random.default_rng(4))
    arguments[4][:] = 3
    arguments[5][:] = 0
    arguments[place] = value
    with pytest.raises(error):
        run(*arguments, 0.1)
