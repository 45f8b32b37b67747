"""Action timing against hand calculation, and the Poisson quantile against scipy."""

import numpy as np
import pytest

from intentpm.runtime._native.timing import Timer, farthest, gathering, poisson_quantile

stats = pytest.importorskip("scipy.stats")


def assert_quantiles(lambdas):
    ours = np.array([poisson_quantile(value) for value in lambdas])
    expected = stats.poisson.ppf(0.9999, lambdas).astype(np.int64)
    wrong = np.flatnonzero(ours != expected)
    assert not len(wrong), [(lambdas[i], ours[i], expected[i]) for i in wrong[:5]]


def test_quantile_equals_scipy_on_whole_lambdas():
    assert_quantiles(np.arange(0.0, 3000.0))


def test_quantile_equals_scipy_on_a_grid_to_a_million():
    assert_quantiles(np.linspace(0, 1e6, 2001))
    assert_quantiles(np.geomspace(1e-9, 1e6, 2000))


def test_quantile_equals_scipy_around_the_changes_of_method():
    for edge in (500.0, 2e6):
        assert_quantiles(edge + np.linspace(-20, 20, 401))


def test_quantile_of_huge_lambdas_stays_in_range():
    assert poisson_quantile(1e12) == 1_000_003_719_019
    assert poisson_quantile(1e300) == 2**62


def test_quantile_by_hand():
    assert poisson_quantile(0.0) == 0
    # exp(-0.0001) = 0.99990000499...: none at all is likely enough, just.
    assert poisson_quantile(1.0e-4) == 0
    assert poisson_quantile(1.1e-4) == 1


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_quantile_needs_a_rate(value):
    with pytest.raises(ValueError, match="lambda"):
        poisson_quantile(value)


def test_a_new_timer_expects_four_clocks_per_round():
    timer = Timer()
    assert timer.clocks_per_round == 4
    assert timer.horizon_clocks() == stats.poisson.ppf(0.9999, 8) == 20


@pytest.mark.parametrize(("others", "clocks"), [(2, 9), (3, 6), (15, 2), (1_023, 2)])
def test_beside_many_ranks_a_new_timer_looks_less_far_ahead(others, clocks):
    assert Timer(others).horizon_clocks() == clocks


def test_slow_rounds_are_followed_by_a_tenth():
    timer = Timer()
    timer.round_passed(101)
    assert timer.clocks_per_round == pytest.approx(13.7)
    timer.round_passed(1)
    assert timer.clocks_per_round == pytest.approx(12.43)
    for _ in range(200):
        timer.round_passed(8)
    assert timer.horizon_clocks() == max(stats.poisson.ppf(0.9999, 16), int(2 * 101 * 0.99**201))


def test_a_fast_round_counts_at_once():
    timer = Timer()
    timer.round_passed(60)
    assert timer.clocks_per_round == pytest.approx(9.6)
    assert timer.horizon_clocks() == stats.poisson.ppf(0.9999, 120)


def test_a_long_round_is_remembered_and_fades():
    timer = Timer()
    timer.round_passed(60)
    for shorter in range(1, 60):
        timer.round_passed(15)
        assert timer.horizon_clocks() == int(2 * 60 * 0.99**shorter)
    for _ in range(100):
        timer.round_passed(15)
    assert timer.horizon_clocks() == stats.poisson.ppf(0.9999, 30)


def test_a_worker_that_stands_still_keeps_its_estimate():
    timer = Timer()
    timer.round_passed(60)
    for _ in range(100):
        timer.round_passed(0)
    assert timer.clocks_per_round == pytest.approx(9.6)
    assert timer.horizon_clocks() == int(2 * 60 * 0.99**100) > stats.poisson.ppf(0.9999, 19.2)


def test_a_steady_worker_converges():
    timer = Timer()
    for _ in range(200):
        timer.round_passed(3)
    assert timer.clocks_per_round == pytest.approx(3)
    assert timer.horizon_clocks() == stats.poisson.ppf(0.9999, 6)


def test_rounds_within_a_clock_are_parts_of_it():
    timer = Timer()
    for _ in range(300):
        timer.round_passed(0.05)
    assert timer.clocks_per_round == pytest.approx(0.05)
    assert timer.horizon_clocks() == stats.poisson.ppf(0.9999, 0.1) == 3
    for _ in range(300):
        timer.round_passed(1e-6)
    assert timer.horizon_clocks() == 2, "the clock in which it is looked may be all but over"


@pytest.mark.parametrize(
    ("clock_ms", "others", "clocks"),
    [
        *[(1_000, 1, 2), (50, 1, 54), (25, 1, 216), (10, 1, 1_350), (25, 2, 27)],
        *[(50, 3, 2), (40, 3, 3), (25, 3, 8), (10, 3, 50), (1, 3, 5_000), (0.1, 3, 500_000)],
        *[(10, 63, 2), (1, 63, 238)],
    ],
)
def test_where_clocks_are_long_nothing_is_taken_far_ahead(clock_ms, others, clocks):
    assert farthest(int(clock_ms * 1e6), others) == clocks


@pytest.mark.parametrize(("clock_ns", "others"), [(0, 3), (10**9, 0)])
def test_without_measured_clocks_or_other_ranks_there_is_no_bound(clock_ns, others):
    assert farthest(clock_ns, others) == 2**62


@pytest.mark.parametrize(
    ("longest_round_ms", "clock_ms", "others", "expected_ms"),
    [
        (4.0, 0.1, 3, 0.0),  # no round has to wait
        (14.0, 1.0, 3, 240.0),  # 24 times what the longest round waited
        (80.0, 1.0, 3, 500.0),  # half a second at most
        (80.0, 100.0, 3, 50.0),  # a quarter of two clocks, of which copies may be old
        (80.0, 20.0, 3, 60.0),  # 12 clocks
        (80.0, 20.0, 1, 500.0),  # beside one rank they may be older: 337 clocks
        (80.0, 0.0, 3, 0.0),  # no clock has passed
        (80.0, 1.0, 0, 0.0),  # there is nobody to be told
    ],
)
def test_writes_to_copies_in_use_are_gathered(longest_round_ms, clock_ms, others, expected_ms):
    assert gathering(int(longest_round_ms * 1e6), int(clock_ms * 1e6), others) == int(expected_ms * 1e6)
