"""Ratings: files good and bad, the generator's statistics."""

import numpy as np
import pytest
import scipy.io
import scipy.optimize
import scipy.sparse

from intentpm.bench.tasks.data_error import DataError
from intentpm.bench.tasks.ratings import (
    TEST,
    TRAIN,
    GeneratorSpec,
    generate_ratings,
    load_ratings,
)

SPEC = GeneratorSpec(users=3_000, items=2_000, ratings=100_000, rank=5)


@pytest.fixture(scope="module")
def generated():
    return generate_ratings(SPEC, seed=3)


def columns(count=100, **changes):
    random = np.random.default_rng(0)
    made = {
        "user": random.integers(0, 10, count).astype(np.int32),
        "item": random.integers(0, 20, count).astype(np.int32),
        "rating": random.integers(1, 6, count).astype(np.float32),
    }
    return {name: column for name, column in (made | changes).items() if column is not None}


def save(tmp_path, **arrays):
    path = tmp_path / "ratings.npz"
    np.savez(path, **arrays)
    return path


def test_npz_round_trip(tmp_path):
    arrays = columns(split=np.arange(100, dtype=np.uint8) % 3)
    ratings = load_ratings(save(tmp_path, **arrays))
    for name, array in arrays.items():
        assert np.array_equal(getattr(ratings, name), array)
    assert (ratings.users, ratings.items) == (arrays["user"].max() + 1, arrays["item"].max() + 1)


def test_a_split_is_drawn_from_the_seed(tmp_path):
    path = save(tmp_path, **columns(1_000))
    first, again, other = (load_ratings(path, seed).split for seed in (1, 1, 2))
    assert np.bincount(first).tolist() == [800, 100, 100]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("suffix", [".mtx", ".mtx.gz"])
def test_matrix_market(tmp_path, suffix):
    dense = np.zeros((12, 30))
    dense[np.arange(60) % 12, np.arange(60) % 30] = 1 + np.arange(60) % 5
    plain = tmp_path / "m.mtx"
    scipy.io.mmwrite(plain, scipy.sparse.coo_matrix(dense))
    path = plain
    if suffix.endswith(".gz"):
        import gzip

        path = tmp_path / "m.mtx.gz"
        path.write_bytes(gzip.compress(plain.read_bytes()))
    ratings = load_ratings(path)
    assert (ratings.users, ratings.items, len(ratings), ratings.notes) == (12, 30, np.count_nonzero(dense), ())
    assert np.array_equal(dense[ratings.user, ratings.item], ratings.rating)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rating": None}, "has no array 'rating'; found item, user"),
        ({"user": np.arange(99)}, "'user' has the shape \\(99,\\)"),
        ({"item": np.zeros((100, 2), int)}, "'item' has the shape \\(100, 2\\)"),
        ({"user": np.zeros(100)}, "'user' has the dtype float64"),
        ({"rating": np.full(100, "five")}, "'rating' has the dtype"),
        ({"user": np.arange(100) - 1}, "'user' has the id -1"),
        ({"rating": np.where(np.arange(100) == 7, np.nan, 1.0)}, "rating 7 is not a finite number"),
        ({"rating": np.where(np.arange(100) == 7, 1e300, 1.0)}, "rating 7 is not a finite number of 32 bits: 1e"),
        ({"split": np.full(100, 3, np.uint8)}, "'split' has values other than"),
        ({"split": np.zeros(100, np.uint8)}, "has no test ratings"),
        ({"split": np.full(100, 2, np.uint8)}, "has no train ratings"),
        ({name: np.zeros(0, int) for name in ("user", "item", "rating")}, "has no ratings"),
        ({"user": np.array([None] * 100)}, "is not a readable npz"),
    ],
)
def test_bad_npz(tmp_path, changes, message):
    path = save(tmp_path, **columns(**changes))
    with pytest.raises(DataError, match=message) as caught:
        load_ratings(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("name", ["r.npz", "r.mtx", "r.csv", "r.mtx.gz"])
@pytest.mark.parametrize("content", [b"", b"user,item,rating\n1,2,3\n", b"PK\x03\x04 cut short", b"\x1f\x8b\x08"])
def test_files_of_something_else(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is (not a readable npz|neither npz|a zip archive)|cannot be read") as caught:
        load_ratings(path)
    assert str(path) in caught.value.message


def test_a_truncated_npz(tmp_path):
    path = save(tmp_path, **columns(1_000))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match="not a readable npz"):
        load_ratings(path)


def test_no_such_file(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        load_ratings(tmp_path / "none.npz")


def test_dense_matrix_market(tmp_path):
    scipy.io.mmwrite(tmp_path / "dense.mtx", np.ones((3, 3)))
    with pytest.raises(DataError, match="coordinate format"):
        load_ratings(tmp_path / "dense.mtx")


@pytest.mark.parametrize("far", [500, 16_753_810, 2**31 + 3, 2**62])
def test_ids_with_gaps_are_numbered_without(tmp_path, far):
    user = np.where(np.arange(100) % 10 == 9, far, np.arange(100) % 10)
    ratings = load_ratings(save(tmp_path, **columns(user=user, item=np.arange(100) % 20)))
    assert (ratings.users, ratings.items) == (10, 20)
    assert ratings.user.dtype == np.int32
    assert np.array_equal(np.array(ratings.user_names)[ratings.user], user)
    assert list(ratings.item_names) == list(range(20))
    assert ratings.notes == (f"10 users have ids from 0 to {far:,}: numbered without gaps",)


def test_unsigned_ids(tmp_path):
    user = np.arange(100, dtype=np.uint64) % 10 + 2**63
    ratings = load_ratings(save(tmp_path, **columns(user=user)))
    assert [int(name) for name in ratings.user_names] == list(range(2**63, 2**63 + 10))


def test_ids_can_be_kept(tmp_path):
    user, item = np.arange(100) % 10 * 7, np.arange(100) % 20
    ratings = load_ratings(save(tmp_path, **columns(user=user, item=item)), keep_ids=True)
    assert (ratings.users, ratings.items, ratings.notes) == (64, 20, ())
    assert np.array_equal(ratings.user, user)
    path = save(tmp_path, **columns(item=np.arange(100) + 2**31))
    with pytest.raises(DataError, match=r"'item' has the id 2147483747; need 0 to 2\^31 - 1 where ids are kept"):
        load_ratings(path, keep_ids=True)


def test_equal_ratings_are_pointed_out(tmp_path):
    rating = np.where(np.arange(100) < 80, 1.0, 2.0)
    split = np.where(np.arange(100) < 80, TRAIN, TEST)
    notes = load_ratings(save(tmp_path, **columns(rating=rating, split=split, item=np.arange(100) % 20))).notes
    assert len(notes) == 1
    assert notes[0].startswith("all 80 training ratings are 1: there is nothing to learn")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match="is no file that can be read"):
        load_ratings(tmp_path)


def test_generated_shape(generated):
    pairs = generated.user.astype(np.int64) * SPEC.items + generated.item
    assert len(generated) == len(np.unique(pairs)) == SPEC.ratings
    assert generated.user.min() >= 0
    assert generated.user.max() < SPEC.users
    assert generated.item.max() < SPEC.items
    assert np.bincount(generated.split).tolist() == [80_000, 10_000, 10_000]


def test_generated_ratings_are_low_rank_plus_noise(generated):
    assert generated.rating.std() == pytest.approx(1, abs=0.15)
    quiet = generate_ratings(GeneratorSpec(users=200, items=100, ratings=5_000, rank=3, noise=0), seed=1)
    matrix = np.full((200, 100), np.nan)
    matrix[quiet.user, quiet.item] = quiet.rating
    popular = [np.argsort(np.isnan(matrix).sum(axis=axis))[:12] for axis in (1, 0)]
    block = matrix[np.ix_(*popular)]
    assert not np.isnan(block).any(), "the most popular users should have rated the most popular items"
    assert np.linalg.matrix_rank(block, tol=1e-3) == 3
    noisy = generate_ratings(GeneratorSpec(users=200, items=100, ratings=5_000, rank=3, noise=0.1), seed=1)
    assert (noisy.rating - quiet.rating).std() == pytest.approx(0.1, rel=0.1)


def test_generated_popularity_is_zipf():
    spec = GeneratorSpec(users=300, items=200, ratings=6_000, rank=1)
    user_shares, item_shares = (np.arange(1, n + 1) ** -1.1 for n in (spec.users, spec.items))
    pairs = np.outer(user_shares / user_shares.sum(), item_shares / item_shares.sum())
    draws = scipy.optimize.brentq(lambda n: (1 - (1 - pairs) ** n).sum() - spec.ratings, 6_000, 600_000)
    seen = 1 - (1 - pairs) ** draws
    for column, expected in (("user", seen.sum(axis=1)), ("item", seen.sum(axis=0))):
        counts = [np.sort(np.bincount(getattr(generate_ratings(spec, seed), column)))[::-1] for seed in range(5)]
        head = np.mean([count[:10].sum() for count in counts]), np.mean([count[:100].sum() for count in counts])
        assert head == pytest.approx((expected[:10].sum(), expected[:100].sum()), rel=0.02)


def test_popular_keys_are_spread_over_the_ids(generated):
    popular = np.argsort(-np.bincount(generated.item, minlength=SPEC.items))[:100]
    assert 0.3 < popular.mean() / SPEC.items < 0.7


def test_the_same_seed_gives_the_same_ratings(generated):
    again, other = generate_ratings(SPEC, seed=3), generate_ratings(SPEC, seed=4)
    for name in ("user", "item", "rating", "split"):
        assert np.array_equal(getattr(generated, name), getattr(again, name))
    assert not np.array_equal(generated.user, other.user)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("users=abc", "users='abc' is not a whole number"),
        ("users=1.5", "users=1.5 is not a whole number"),
        ("columns=3", "unknown part 'columns=3'; there are users, items"),
        ("users=0", "users=0: need 1 to"),
        ("noise=-1", "noise=-1.0"),
        ("noise=nan", "noise=nan"),
        ("users=inf", "users=inf is not a whole number"),
        ("ratings=3", "need at least 10"),
        ("users=10,items=10,ratings=26", "at most a quarter of the matrix, 25"),
        ("users", "users='' is not a whole number"),
        ("noise=x", "noise='x' is not a number"),
        ("users=3,users=4", "users is given twice"),
    ],
)
def test_bad_specs(text, message):
    with pytest.raises(DataError, match=message):
        GeneratorSpec.parse(text)


def test_good_specs():
    assert GeneratorSpec.parse("") == GeneratorSpec()
    assert GeneratorSpec.parse("users=1_000, items=2e3,ratings=500,noise=0") == GeneratorSpec(
        1_000, 2_000, 500, noise=0
    )
    assert GeneratorSpec.parse(" users = 30 ,,items=20, ratings=50\u00a0") == GeneratorSpec(30, 20, 50)


def test_impossible_generation_ends():
    with pytest.raises(DataError, match=r"found only \d+ of 2500 pairs"):
        generate_ratings(GeneratorSpec(users=100, items=100, ratings=2_500, zipf=9))
