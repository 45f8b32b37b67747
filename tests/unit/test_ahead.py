"""How far ahead loaders announce batches."""

import pytest

from intentpm.foundation.errors import ConfigError
from intentpm.runtime.ahead import (
    LOOK_EVERY,
    LOOK_EVERY_LATE,
    MARGIN_BATCHES,
    MAX_BATCHES,
    MEMORY_BYTES,
    MIN_BATCHES,
    Ahead,
)


class Manager:
    """What ``Ahead`` reads of a ParameterManager; a test sets it."""

    def __init__(self, horizon_clocks=0):
        self.horizons, self.in_time, self.late, self.looks = [horizon_clocks], 0, 0, 0

    def stats(self):
        self.looks += 1
        workers = [{"horizon_clocks": horizon} for horizon in self.horizons]
        return {"workers": workers, "intents": {"in_time": self.in_time, "late": self.late}}


@pytest.mark.parametrize("given", [0, 1, 500])
def test_a_number_is_taken_as_it_is(given):
    ahead = Ahead(given, None)
    ahead.prepared(2 * MEMORY_BYTES)
    assert (ahead.batches(), ahead.announces) == (given, given > 0)


@pytest.mark.parametrize("given", [-1, 1.5, "deep", None])
def test_what_is_no_number_is_refused(given):
    with pytest.raises(ConfigError, match="needs a number of batches or 'auto'"):
        Ahead(given, None)


def test_auto_reaches_beyond_the_farthest_horizon_of_the_rank():
    manager = Manager()
    manager.horizons = [7, 30, 12]
    ahead = Ahead("auto", manager)
    assert (ahead.batches(), ahead.announces) == (30 + MARGIN_BATCHES, True)


@pytest.mark.parametrize(("horizon", "batches"), [(0, MIN_BATCHES), (10**9, MAX_BATCHES)])
def test_auto_has_bounds(horizon, batches):
    assert Ahead("auto", Manager(horizon)).batches() == batches


@pytest.mark.parametrize(("nbytes", "batches"), [(MEMORY_BYTES // 3, 3), (2 * MEMORY_BYTES, 1)])
def test_auto_is_bounded_by_memory_of_the_largest_batch(nbytes, batches):
    ahead = Ahead("auto", Manager(100))
    ahead.prepared(nbytes)
    ahead.prepared(1)
    assert ahead.batches() == batches


def test_it_looks_now_and_then():
    manager = Manager(20)
    ahead = Ahead("auto", manager)
    seen = [ahead.batches() for _ in range(LOOK_EVERY)]
    manager.horizons = [50]
    assert {*seen} == {22}
    assert (ahead.batches(), manager.looks) == (52, 2)


def test_late_keys_make_it_deeper_and_look_more_often():
    manager = Manager(20)
    ahead = Ahead("auto", manager)
    manager.in_time, manager.late = 900, 100
    assert ahead.batches() == 2 * 22
    for _ in range(LOOK_EVERY_LATE):
        manager.in_time += 100
        after = ahead.batches()
    assert (after, manager.looks) == (22, 2), "none were late since"


def test_a_few_late_keys_are_nothing_to_worry_about():
    manager = Manager(20)
    manager.in_time, manager.late = 10_000, 50
    assert Ahead("auto", manager).batches() == 22
