"""Random keys against their distributions: chi-square tests with fixed seeds, and what must hold for every draw."""

import numpy as np
import pytest

from intentpm.runtime._native.draws import Distribution, Drawer
from intentpm.runtime._native.store import Table

stats = pytest.importorskip("scipy.stats")

KEYS = 200
WEIGHTS = np.where(np.arange(KEYS) % 7 == 0, 0.0, 1.0 + np.arange(KEYS) % 13)


def expected_probabilities(kind, keys=KEYS):
    ranks = np.arange(keys)
    return {
        "uniform": np.full(keys, 1 / keys),
        "log-uniform": np.log((ranks + 2) / (ranks + 1)) / np.log(keys + 1),
        "weighted": WEIGHTS / WEIGHTS.sum(),
    }[kind]


def make_drawer(kind, local=None, seed=1, num_keys=KEYS, weights=WEIGHTS, min_local_keys=0):
    table = Table("table", 0, num_keys, (4,), "float32", 0, 1)
    table.adopt(np.arange(num_keys) if local is None else np.asarray(local, np.int64), None)
    distribution = Distribution(num_keys, kind, weights if kind == "weighted" else None)
    return Drawer(table, distribution, np.random.SFC64(seed), min_local_keys)


def assert_follows(keys, probabilities):
    """Chi-square at 1 in 10,000: with fixed seeds it fails for a reason only."""
    counts = np.bincount(keys, minlength=len(probabilities))
    assert not counts[probabilities == 0].any(), "a key of probability 0 was drawn"
    possible = probabilities > 0
    p_value = stats.chisquare(counts[possible], probabilities[possible] / probabilities.sum() * len(keys)).pvalue
    assert p_value > 1e-4, f"the draws do not follow the distribution: p = {p_value}"


KINDS = ("uniform", "log-uniform", "weighted")


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities(kind):
    distribution = Distribution(KEYS, kind, WEIGHTS if kind == "weighted" else None)
    np.testing.assert_allclose(distribution.probabilities(np.arange(KEYS)), expected_probabilities(kind), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_distribution(kind):
    assert_follows(make_drawer(kind).draw(200_000), expected_probabilities(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_repeat_with_the_seed(kind):
    first, again, other = (make_drawer(kind, seed=seed).draw(1000) for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 40, 150])
def test_draws_without_replacement_are_distinct(kind, count):
    keys = make_drawer(kind).draw(count, distinct=True)
    assert len(np.unique(keys)) == count
    assert not count or (keys.min() >= 0 and keys.max() < KEYS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [0, 1])
def test_draws_without_replacement_one_after_the_other(kind, position):
    """The first key follows the distribution; the second the distribution without the first."""
    drawer, keys = make_drawer(kind, num_keys=20, weights=WEIGHTS[:20]), 20
    pairs = np.array([drawer.draw(2, distinct=True) for _ in range(30_000)])
    p = Distribution(keys, kind, WEIGHTS[:20]).probabilities(np.arange(keys))
    after = p * (np.sum(p / (1 - p)) - p / (1 - p))
    assert_follows(pairs[:, position], p if position == 0 else after)


@pytest.mark.parametrize("kind", KINDS)
def test_all_keys_in_one_sweep_follow_the_same_law(kind):
    """Drawing every key ends in the sweep; the last key is then the one whose exponential time is the longest."""
    weights = np.array([1.0, 1, 2, 4, 8, 1000, 1000, 1000])
    drawer = make_drawer(kind, num_keys=8, weights=weights)
    p = Distribution(8, kind, weights).probabilities(np.arange(8))
    order = np.array([drawer.draw(8, distinct=True) for _ in range(20_000)])
    assert (np.sort(order, axis=1) == np.arange(8)).all()
    assert_follows(order[:, 0], p)
    # Of two keys the first to come is one of them with its share of their weights.
    place = np.argsort(order, axis=1)
    before = np.mean(place[:, 2] < place[:, 4])
    assert before == pytest.approx(p[2] / (p[2] + p[4]), abs=0.015)


def test_extreme_weights():
    weights = np.zeros(1000)
    weights[[3, 500, 999]] = 1e-300, 1e-299, 2e-300
    keys = make_drawer("weighted", num_keys=1000, weights=weights).draw(20_000)
    assert_follows(keys, weights / weights.sum())
    only = np.zeros(10)
    only[7] = 5.0
    assert (make_drawer("weighted", num_keys=10, weights=only).draw(100) == 7).all()


def test_a_large_range_is_covered_to_its_end():
    keys = Distribution(2**31 - 1, "uniform")
    drawer = Drawer(Table("table", 0, 1, (), "float32", 0, 1), keys, np.random.SFC64(1))
    assert_follows(drawer.draw(100_000) >> 21, np.r_[np.full(1023, 2**21), 2**21 - 1] / (2**31 - 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distinct", [False, True])
def test_local_draws_follow_the_distribution_among_local_keys(kind, distinct):
    local = np.flatnonzero(np.random.default_rng(0).random(KEYS) < 0.4)
    drawer = make_drawer(kind, local)
    size = 1 if distinct else 10
    keys = np.concatenate([drawer.draw_local(size, distinct) for _ in range(50_000 // size)])
    conditional = np.zeros(KEYS)
    conditional[local] = expected_probabilities(kind)[local]
    assert_follows(keys, conditional)
    assert drawer.drawn_local == drawer.drawn == len(keys)
    assert drawer.departure == pytest.approx(1 - conditional.sum(), abs=1e-9)


def test_all_keys_local_is_no_departure():
    drawer = make_drawer("log-uniform")
    drawer.draw_local(100)
    assert drawer.departure == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("distinct", [False, True])
def test_too_few_local_keys_fall_back_to_the_distribution(distinct):
    drawer = make_drawer("weighted", local=np.arange(30), min_local_keys=31)
    keys = np.concatenate([drawer.draw_local(1, distinct) for _ in range(100_000)])
    assert_follows(keys, expected_probabilities("weighted"))
    assert drawer.drawn_local == 0
    assert drawer.departure == 0
    assert drawer.indexes_built < 100_000 / 32, "each small sample looked for local keys anew"


def test_distinct_local_draws_need_twice_the_keys():
    drawer = make_drawer("uniform", local=np.arange(30))
    assert (np.sort(drawer.draw_local(15, True)) < 30).all()
    assert drawer.drawn_local == 15
    keys = drawer.draw_local(16, True)
    assert len(np.unique(keys)) == 16
    assert drawer.drawn_local == 15


def test_local_keys_without_weight_fall_back():
    drawer = make_drawer("weighted", local=[0, 7, 14])
    assert_follows(drawer.draw_local(50_000), expected_probabilities("weighted"))


def test_a_local_set_that_hides_its_weight_in_one_key_ends_distinct_draws():
    weights = np.r_[1e12, np.ones(99)]
    drawer = make_drawer("weighted", num_keys=100, weights=weights, local=np.arange(60))
    keys = drawer.draw_local(30, distinct=True)
    assert len(np.unique(keys)) == 30


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_keys_that_leave_and_come(kind, seed):
    """Keys leave and come between draws: none that is away is drawn, and new ones are drawn before long."""
    random = np.random.default_rng(seed)
    here = np.ones(KEYS, bool)
    drawer = make_drawer(kind, seed=seed)
    drawn_after_coming = set()
    for _ in range(300):
        changed = random.choice(KEYS, 60, replace=False).astype(np.int64)
        leaving, coming = changed[here[changed]], changed[~here[changed]]
        drawer.table.disown(leaving)
        drawer.table.adopt(coming, None)
        here[leaving], here[coming] = False, True
        keys = drawer.draw_local(20)
        assert here[keys].all(), "drew a key that is not here"
        drawn_after_coming.update(keys[np.isin(keys, coming)])
    assert drawer.drawn_local == 300 * 20
    assert len(drawn_after_coming) > 30


def test_most_keys_leave_at_once():
    drawer = make_drawer("uniform", num_keys=10_000)
    drawer.draw_local(1)
    drawer.table.disown(np.arange(100, 10_000))
    keys = np.concatenate([drawer.draw_local(10) for _ in range(5000)])
    assert_follows(keys, np.r_[np.full(100, 0.01), np.zeros(9900)])
    assert drawer.departure == pytest.approx(0.99, abs=1e-3)
    assert drawer.indexes_built < 5000 * 10 / 64 + 10


def test_local_draws_cost_little_more_than_others():
    """An index of a million keys is built once for many draws."""
    drawer = make_drawer("uniform", num_keys=1_000_000)
    for _ in range(1000):
        drawer.draw_local(100)
    assert drawer.indexes_built == 1
