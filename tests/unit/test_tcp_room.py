"""How much of what is to be sent a socket may hold: known answers."""

from intentpm.transports.tcp import room_wanted_at

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
