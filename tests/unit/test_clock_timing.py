"""How long clocks take, by hand."""

from intentpm.runtime._native.clock_timing import Clocks

MS = 1_000_000


class Timed:
    """A worker's clocks, looked at when each has passed."""

    def __init__(self):
        self.clocks, self.now_ns, self.clock = Clocks(), 5 * MS, 0

    def pass_clocks(self, took_ms, waits=False, count=1, ahead=20, at_once=1):
        for _ in range(count):
            if waits:
                self.clocks.waits()
            self.now_ns += took_ms * MS
            self.clock += at_once
            self.clocks.seen(self.clock, ahead, self.now_ns)
        return self.clocks.times_ns


def steady(took_ms=10):
    timed = Timed()
    timed.pass_clocks(took_ms, count=200)
    return timed


def test_the_first_clock_tells_nothing_of_the_worker():
    timed = Timed()
    assert timed.pass_clocks(500) == (0, 0)
    assert timed.pass_clocks(10) == (10 * MS, 10 * MS)


def test_what_the_first_keys_took_is_shared_by_the_clocks_that_were_asked_for():
    timed = Timed()
    timed.clocks.asked_for(timed.now_ns)
    timed.clocks.asked_for(timed.now_ns + 300 * MS)  # for others, later
    assert timed.pass_clocks(800, waits=True, ahead=20) == (0, 40 * MS)
    assert timed.pass_clocks(10) == (10 * MS, 40 * MS), "its keys were here"


def test_clocks_are_smoothed_the_pace_over_more_of_them():
    timed = steady()
    assert timed.pass_clocks(26) == (12 * MS, 11 * MS)


def test_clocks_that_passed_between_two_looks_count_alike():
    timed = steady()
    assert timed.pass_clocks(72, at_once=4) == (11 * MS, 12 * MS)
    assert timed.pass_clocks(32 * 20, at_once=32)[1] == 20 * MS


def test_a_pause_counts_for_four_clocks():
    timed = steady()
    assert timed.pass_clocks(500) == (13_750_000, 11_875_000)


def test_a_wait_for_keys_counts_for_the_pace_alone():
    timed = steady()
    assert timed.pass_clocks(90, waits=True) == (13_750_000, 15 * MS)


def test_a_pause_before_a_wait_counts_for_sixteen_clocks():
    timed = steady()
    assert timed.pass_clocks(30_000, waits=True) == (13_750_000, 19_375_000)


def test_bursts_between_waits_have_the_pace_of_both():
    timed = steady(1)
    for _ in range(40):
        timed.pass_clocks(1, count=9)
        clock_ns, pace_ns = timed.pass_clocks(41, waits=True)
    assert clock_ns < 2 * MS
    assert 3 * MS < pace_ns < 7 * MS, "on average it is 5 ms"
