"""How much of what is to be sent a socket may hold, and how fast it sends it: known answers."""

import pytest

from intentpm.transports.tcp_room import paces_after, rate_known_after, room_wanted_at

MB = 10**6


def test_a_link_on_which_nothing_waits_is_left_to_the_system() -> None:
    assert room_wanted_at(rtt_us=300, min_rtt_us=100, bytes_per_s=60 * MB) == 0
    assert room_wanted_at(rtt_us=50_000, min_rtt_us=45_000, bytes_per_s=60 * MB) == 0  # it is far away, not full


def test_a_full_link_gets_what_it_takes_in_a_few_milliseconds() -> None:
    assert room_wanted_at(rtt_us=40_000, min_rtt_us=1_000, bytes_per_s=60 * MB) == 360_000
    assert room_wanted_at(rtt_us=60_000, min_rtt_us=45_000, bytes_per_s=60 * MB) == 3 * MB
    assert room_wanted_at(rtt_us=40_000, min_rtt_us=1_000, bytes_per_s=1 * MB) == 1 << 17  # at least


def test_a_limit_stays_and_follows_the_link() -> None:
    assert room_wanted_at(300, 100, 60 * MB, limit=300_000) == 300_000  # near enough
    assert room_wanted_at(300, 100, 600 * MB, limit=300_000) == 3_060_000
    assert room_wanted_at(6_000, 100, 10 * MB, limit=300_000) == 1 << 17


def test_a_far_link_that_is_not_full_is_tried_with_more() -> None:
    """It delivers what the limit lets it, so the rate says nothing of what it could."""
    limit, rates = 550_000, []
    while limit < 3 * MB and len(rates) < 20:
        rates.append(limit / 0.05)
        limit = room_wanted_at(50_000, 50_000, int(rates[-1]), limit)
    assert limit >= 3 * MB
    assert room_wanted_at(58_000, 50_000, 60 * MB, limit=4 * MB) == 4 * MB  # full: as before


def test_a_shaper_that_lets_a_few_packets_through_at_once_makes_no_fast_link() -> None:
    """The system says now and then that the last packets were delivered at a hundred times the link's rate."""
    said = [60.0 * MB, 60.0 * MB, 7_000.0 * MB, 60.0 * MB, 60.0 * MB] * 4
    assert 60 * MB <= rate_known_after(said) < 80 * MB
    assert rate_known_after([7_000.0 * MB] + [60.0 * MB] * 20) < 100 * MB  # also if that comes first
    assert rate_known_after([60.0 * MB] + [1_200.0 * MB] * 16) == 1_200 * MB  # a link that did become faster


def paced(carried: list[int], waits_us: list[int], others: int = 0, ran_empty: bool = False) -> list[float]:
    """``carried``: bytes per second between two looks, with something to send all the time.

    others: bytes that other sockets take meanwhile.
    """
    looks, acked, busy_us = [], 0, 0
    for number, (rate, wait) in enumerate(zip(carried, waits_us, strict=True), 1):
        acked, busy_us = acked + MB, busy_us + MB * MB // rate
        looks.append((acked, busy_us, number * others, wait, ran_empty))
    return paces_after(looks)


def test_the_pace_is_a_little_less_than_the_link_carries_at_full_speed() -> None:
    paces = paced([90 * MB] + [60 * MB] * 9, [9_000] * 2 + [1_000] * 8)  # the first packets found a shaper's store full
    assert paces[0] == 0  # as fast as it can, to measure
    assert paces[1:] == pytest.approx([57 * MB] * 9, rel=1e-3)


def test_a_socket_beside_others_may_send_as_fast_as_the_link() -> None:
    """They take two thirds of it, and may be quiet soon."""
    paces = paced([20 * MB] * 10, [1_000] * 10, others=2 * MB)
    assert paces[1:] == pytest.approx([57 * MB] * 9, rel=1e-3)


def test_a_socket_that_had_little_to_send_has_measured_nothing() -> None:
    assert paced([10 * MB] * 20, [1_000] * 20, ran_empty=True) == [0] * 20


def test_wrong_measurements_change_nothing() -> None:
    """The first are 12 looks from one another, the later ones 0.8 s."""
    rates = [rate for rate in [60, 60, 20, 60, 344] for _ in range(12)] + [60] * 150
    paces = paced([rate * MB for rate in rates], [1_000] * len(rates))
    assert {round(pace / MB) for pace in paces if pace} == {57}
    assert sum(pace == 0 for pace in paces) < 2 * (5 + 150 // 48)


def test_a_link_that_became_slower_is_measured_anew_and_one_that_became_faster_too() -> None:
    slower = paced([60 * MB] * 10 + [30 * MB] * 40, [1_000] * 10 + [9_000] * 40)
    assert slower[9] == pytest.approx(57 * MB, rel=1e-3)
    assert max(slower[-12:]) == pytest.approx(28.5 * MB, rel=1e-3)
    assert sum(pace == 0 for pace in slower[10:]) > 8  # crowded: it is looked for all the time
    faster = paced([60 * MB] * 60 + [120 * MB] * 500, [1_000] * 560)
    assert faster[-2] == pytest.approx(114 * MB, rel=1e-3)
