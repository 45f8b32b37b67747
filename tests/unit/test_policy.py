"""What an owner decides, by what it would cost: known answers."""

import pytest

from intentpm.runtime._native.policy import as_told, surplus, weigh_ways

ROW, RECORD = 1000, 32


def test_the_only_rank_that_intends_a_key_gets_it() -> None:
    costs, way = weigh_ways(row_bytes=ROW, told=2)
    assert way == "relocate"
    assert costs == {
        "relocate": ROW + RECORD + 2 * 12,
        "replicate": 2 * (ROW + RECORD) + RECORD,
        "leave remote": 2 * (ROW + RECORD),
    }


@pytest.mark.parametrize("others", [{"owner_intends": True}, {"others_hold": True}])
def test_a_key_that_others_intend_is_fetched_for_one_clock_and_replicated_for_more(others: dict[str, bool]) -> None:
    costs, way = weigh_ways(row_bytes=ROW, once=True, with_row=0.5, stall_bytes=700, **others)
    assert way == "fetch once"
    assert costs == {
        "fetch once": 2 * (ROW + RECORD),
        "replicate": 2 * (ROW + RECORD) + 0.5 * ROW + RECORD,
        "leave remote": 2 * (ROW + RECORD) + 2 * 700,
    }
    costs, way = weigh_ways(row_bytes=ROW, **others)
    assert way == "replicate"
    assert "relocate" not in costs
    assert "fetch once" not in costs


def test_a_row_with_state_moves_whole_and_is_written_and_refreshed_in_part() -> None:
    costs, way = weigh_ways(row_bytes=ROW, written_bytes=500, news_bytes=400, owner_intends=True, with_row=0.5)
    assert way == "replicate"
    assert costs == {
        "replicate": ROW + RECORD + 500 + RECORD + 0.5 * 400 + RECORD,
        "leave remote": ROW + RECORD + 500 + RECORD,
    }


def test_of_a_row_that_is_fetched_for_one_clock_less_may_be_sent() -> None:
    costs, way = weigh_ways(row_bytes=ROW, fetched_bytes=600, written_bytes=500, once=True, owner_intends=True)
    assert way == "fetch once"
    assert costs["fetch once"] == costs["leave remote"] == 600 + RECORD + 500 + RECORD
    assert costs["replicate"] == ROW + RECORD + 500 + RECORD + RECORD
    costs, way = weigh_ways(row_bytes=ROW, fetched_bytes=100, written_bytes=100, once=True, told=6)
    assert way == "relocate"  # where it can come for good, that a part of it would do for now does not count
    assert costs["fetch once"] == ROW + RECORD + 100 + RECORD


def test_a_key_that_would_have_to_come_back_is_lent_if_less_is_sent_for_it() -> None:
    row = {"row_bytes": ROW, "fetched_bytes": 600, "written_bytes": 500, "once": True}
    assert weigh_ways(**row)[1] == "relocate"
    costs, way = weigh_ways(**row, returns=True)
    assert way == "fetch once"
    assert costs["relocate"] == 2 * (ROW + RECORD + 12)
    assert costs["fetch once"] == 600 + RECORD + 500 + RECORD
    assert weigh_ways(row_bytes=ROW, once=True, returns=True, told=0)[1] == "relocate"  # all of the row both ways


def test_a_small_row_is_not_moved_where_records_go_astray() -> None:
    tell_all = {"row_bytes": 8, "once": True, "told": 6}
    assert weigh_ways(**tell_all)[1] == "fetch once"  # telling six ranks costs more than bringing 8 bytes back
    assert weigh_ways(**{**tell_all, "told": 1})[1] == "relocate"
    assert weigh_ways(**{**tell_all, "told": 3, "astray": 0.9})[1] == "fetch once"
    assert weigh_ways(row_bytes=ROW, once=True, told=6, astray=0.9)[1] == "relocate"


@pytest.mark.parametrize(
    ("own", "their", "size", "expected"),
    [
        (0, 0, 2, 0),
        (63, 0, 2, 0),  # not worth it
        (100, 0, 2, 50),
        (1249, 1000, 2, 0),  # less than a quarter
        (1250, 1000, 2, 125),
        (1000, 4000, 2, 0),
        (1300, 1000, 4, 50),  # two others may be giving to the same rank
    ],
)
def test_the_surplus_that_is_handed_over(own: int, their: int, size: int, expected: int) -> None:
    assert surplus(own, their, size) == expected


def test_a_load_is_told_in_two_bytes() -> None:
    for load in (0, 1, 2047, 2048, 99_999, 2**32 - 1):
        assert load * (1 - 2**-10) <= as_told(load) <= load
