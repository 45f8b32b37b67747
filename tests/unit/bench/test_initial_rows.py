"""Initial rows depend on seed and key alone, and are normal."""

import numpy as np
import pytest

from intentpm.bench.tasks.initial_rows import CHUNK_ROWS, NormalRows


def test_statistics_and_zero_columns():
    rows = NormalRows(columns=9, random_columns=8, deviation=0.5, seed=1)(np.arange(50_000))
    assert rows.dtype == np.float32
    assert rows.shape == (50_000, 9)
    assert not rows[:, 8].any()
    values = rows[:, :8].astype(np.float64)
    assert values.mean() == pytest.approx(0, abs=0.005)
    assert values.std() == pytest.approx(0.5, rel=0.01)
    assert (np.abs(values) < 0.5).mean() == pytest.approx(0.6827, abs=0.005)
    correlations = np.corrcoef(values.T) - np.eye(8)
    assert np.abs(correlations).max() < 0.03


def test_rows_do_not_depend_on_who_asks_for_which():
    make = NormalRows(columns=5, random_columns=4, deviation=1, seed=7)
    keys = np.random.default_rng(0).permutation(2 * CHUNK_ROWS + 17)
    rows = make(keys)
    assert np.array_equal(rows[:100], make(keys[:100]))
    assert np.array_equal(make(np.sort(keys)), rows[np.argsort(keys)])
    assert make(np.empty(0, np.int64)).shape == (0, 5)


def test_seeds_differ():
    keys = np.arange(100)
    rows = [NormalRows(3, 3, 1, seed)(keys) for seed in (-1, 0, 1)]
    assert not np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[1], rows[2])
    assert len(np.unique(np.concatenate(rows))) > 890
