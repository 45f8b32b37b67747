"""The matrix factorisation kernel against NumPy, and its checks of its arguments."""

import numpy as np
import pytest

from intentpm.bench.tasks._mf import squared_error, train_batch

LEARNING_RATE, L2 = 0.05, 0.1


def reference(users, items, user_index, item_index, ratings):
    """The same updates in float64, one rating after the other: rows after, and the sum of squared errors."""
    users, items, total = users.astype(np.float64), items.astype(np.float64), 0.0
    for u, i, rating in zip(user_index, item_index, ratings, strict=True):
        user, item = users[u].copy(), items[i].copy()
        error = rating - (user[:-1] @ item[:-1] + user[-1] + item[-1])
        total += error**2
        user_gradient = error * np.append(item[:-1], 1.0) - L2 * user
        item_gradient = error * np.append(user[:-1], 1.0) - L2 * item
        users[u] += LEARNING_RATE * user_gradient
        items[i] += LEARNING_RATE * item_gradient
    return users, items, total


def make_batch(users, items, dim, count, seed=0):
    random = np.random.default_rng(seed)
    rows = [random.normal(0, 0.3, (n, dim + 1)).astype(np.float32) for n in (users, items)]
    indices = [random.integers(0, n, count).astype(np.int32) for n in (users, items)]
    return (*rows, *indices, random.normal(0, 1, count).astype(np.float32))


@pytest.mark.parametrize("dim", [0, 1, 7, 8, 32, 65])
@pytest.mark.parametrize("count", [0, 1, 500])
def test_train_batch_matches_numpy(dim, count):
    users, items, user_index, item_index, ratings = make_batch(20, 13, dim, count)
    before = users.copy(), items.copy()
    user_deltas, item_deltas = np.full_like(users, np.nan), np.full_like(items, np.nan)
    error = train_batch(users, items, user_index, item_index, ratings, user_deltas, item_deltas, LEARNING_RATE, L2)
    expected_users, expected_items, expected_error = reference(users, items, user_index, item_index, ratings)
    np.testing.assert_allclose(users + user_deltas, expected_users, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(items + item_deltas, expected_items, rtol=2e-4, atol=2e-5)
    assert error == pytest.approx(expected_error, rel=1e-4)
    assert np.array_equal(users, before[0]), "the pulled rows must stay as they are"
    assert np.array_equal(items, before[1])


def test_train_batch_known_answer():
    # Prediction 1*3 + 2*4 + 0.5 + 0.25 = 11.75, error 0.25 of rating 12, learning rate 0.1, no L2.
    users, items = np.array([[1, 2, 0.5]], np.float32), np.array([[3, 4, 0.25]], np.float32)
    user_deltas, item_deltas = np.empty_like(users), np.empty_like(items)
    zero = np.zeros(1, np.int32)
    error = train_batch(users, items, zero, zero, np.array([12], np.float32), user_deltas, item_deltas, 0.1, 0.0)
    assert error == pytest.approx(0.0625)
    np.testing.assert_allclose(user_deltas, [[0.075, 0.1, 0.025]], rtol=1e-5)
    np.testing.assert_allclose(item_deltas, [[0.025, 0.05, 0.025]], rtol=1e-5)


def test_cutting_into_batches_changes_nothing():
    users, items, user_index, item_index, ratings = make_batch(10, 10, 16, 200)
    whole = [users.copy(), items.copy()]
    cut = [users.copy(), items.copy()]
    for rows, size in ((whole, 200), (cut, 17)):
        for first in range(0, 200, size):
            part = slice(first, first + size)
            deltas = np.empty_like(users), np.empty_like(items)
            train_batch(*rows, user_index[part], item_index[part], ratings[part], *deltas, LEARNING_RATE, L2)
            rows[0] += deltas[0]
            rows[1] += deltas[1]
    np.testing.assert_allclose(whole[0], cut[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(whole[1], cut[1], rtol=1e-4, atol=1e-6)


def test_untouched_rows_have_zero_deltas():
    users, items, user_index, item_index, ratings = make_batch(5, 5, 4, 10)
    user_index[:] = 2
    user_deltas, item_deltas = np.empty_like(users), np.empty_like(items)
    train_batch(users, items, user_index, item_index, ratings, user_deltas, item_deltas, LEARNING_RATE, L2)
    assert np.count_nonzero(user_deltas.any(axis=1)) == 1


def test_same_batch_same_bits():
    batch = make_batch(20, 13, 33, 300)
    results = []
    for _ in range(2):
        deltas = np.empty_like(batch[0]), np.empty_like(batch[1])
        results.append((train_batch(*batch, *deltas, LEARNING_RATE, L2), deltas[0].tobytes(), deltas[1].tobytes()))
    assert results[0] == results[1]


@pytest.mark.parametrize("count", [0, 1, 500])
def test_squared_error_matches_numpy(count):
    users, items, user_index, item_index, ratings = make_batch(20, 13, 9, count)
    u, i = users[user_index].astype(np.float64), items[item_index].astype(np.float64)
    expected = ((ratings - (u[:, :-1] * i[:, :-1]).sum(axis=1) - u[:, -1] - i[:, -1]) ** 2).sum()
    assert squared_error(users, items, user_index, item_index, ratings) == pytest.approx(expected, rel=1e-5)


def test_bad_arguments_are_refused():
    users, items, user_index, item_index, ratings = make_batch(5, 6, 4, 10)
    with pytest.raises(ValueError, match="10 user indices, 9 item indices"):
        squared_error(users, items, user_index, item_index[:9], ratings)
    with pytest.raises(ValueError, match="need the same number"):
        squared_error(users, np.ascontiguousarray(items[:, :3]), user_index, item_index, ratings)
    for wrong in (-1, 6):
        item_index[3] = wrong
        with pytest.raises(IndexError, match="item_index has a value outside 0 to 5"):
            squared_error(users, items, user_index, item_index, ratings)
    item_index[3] = 0
    with pytest.raises(ValueError, match="need the shapes"):
        train_batch(users, items, user_index, item_index, ratings, users[:4].copy(), items.copy(), 0.1, 0.1)
