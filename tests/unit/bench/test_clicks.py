"""Examples read and generated, the same whatever the number of ranks; areas under curves by histograms."""

import numpy as np
import pytest

from intentpm.bench.tasks.clicks import SPLITS, ClickSpec, GeneratedClicks, LoadedClicks
from intentpm.bench.tasks.data_error import DataError
from intentpm.bench.tasks.roc import area_under_curve, score_histograms


def arrays(**changed):
    found = {}
    for split, count in zip(SPLITS, (7, 3, 2), strict=True):
        found[f"{split}_label"] = np.arange(count) % 2
        found[f"{split}_num"] = np.arange(2.0 * count).reshape(count, 2)
        found[f"{split}_cat"] = np.stack([np.arange(count), 10 + np.arange(count)], axis=1)
    return found | changed


def test_a_file_is_read_and_its_numbers_scaled(tmp_path):
    np.savez(tmp_path / "data.npz", **arrays())
    data = LoadedClicks(tmp_path)
    assert (data.keys, data.fields, data.numbers) == (17, 2, 2)
    assert data.rows == {"train": 7, "valid": 3, "test": 2}
    train = data.of_rank(0, 1)["train"]
    np.testing.assert_allclose(train.numbers.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(train.numbers.std(axis=0), 1, atol=1e-6)
    parts = [data.of_rank(rank, 3)["train"] for rank in range(3)]
    assert sorted(np.concatenate([part.categories[:, 0] for part in parts])) == list(range(7))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"valid_label": np.array([0, 1, 2])}, "valid has a label that is neither 0 nor 1"),
        ({"test_cat": np.array([[0, 1], [-1, 0]])}, "test has a category that is no whole number from 0"),
        ({"train_num": np.full((7, 2), np.inf)}, "train has a number that is not finite"),
        ({"train_num": np.zeros((6, 2))}, "train: need labels"),
        ({"test_num": np.zeros((2, 3))}, "different numbers of columns"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, changed, message):
    np.savez(tmp_path / "data.npz", **arrays(**changed))
    with pytest.raises(DataError, match=message):
        LoadedClicks(tmp_path)


def test_ranks_generate_the_examples_of_one(monkeypatch):
    monkeypatch.setattr("intentpm.bench.tasks.clicks.CHUNK_ROWS", 64)
    data = GeneratedClicks(ClickSpec.parse("rows=300,held_out=50,fields=3,keys=90"), seed=5)
    whole = data.of_rank(0, 1)
    for split in SPLITS:
        parts = [data.of_rank(rank, 7)[split] for rank in range(7)]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        for name in ("label", "numbers", "categories", "logit"):
            together = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(together, getattr(whole[split], name))


def test_labels_follow_the_hidden_model():
    data = GeneratedClicks(ClickSpec(rows=40_000, held_out=1, keys=26_000)).of_rank(0, 1)["train"]
    for low, high in ((-2, -1), (-0.5, 0.5), (1, 2)):
        these = (data.logit > low) & (data.logit < high)
        expected = (1 / (1 + np.exp(-data.logit[these]))).mean()
        assert data.label[these].mean() == pytest.approx(expected, abs=0.03)
    fields = data.categories // 1_000
    np.testing.assert_array_equal(fields, np.broadcast_to(np.arange(26), fields.shape))


def test_area_under_the_curve():
    random = np.random.default_rng(0)
    labels = random.integers(2, size=500)
    scores = random.normal(labels, 1).round(1)
    scores[:2] = 40, -40
    halves = [score_histograms(scores[part], labels[part]) for part in (slice(250), slice(250, None))]
    positive, negative = scores[labels == 1][:, None], scores[labels == 0]
    expected = ((positive > negative) + 0.5 * (positive == negative)).mean()
    assert area_under_curve(sum(halves)) == pytest.approx(expected, abs=1e-9)
    assert np.isnan(area_under_curve(score_histograms(scores, np.ones(500))))
