"""Links fail, and all ranks live: one group of them goes on at most (docs/membership.md)."""

from itertools import combinations

import pytest
from support.losses import may_go_on
from support.partitions import run_partition, run_partition_seed

GROUPS = [(size, group) for size in (2, 3, 4, 5) for k in range(1, size) for group in combinations(range(size), k)]


@pytest.mark.parametrize("notice_us", [None, 300.0])
@pytest.mark.parametrize(("size", "group"), GROUPS)
def test_of_two_groups_one_goes_on_at_most(size: int, group: tuple[int, ...], notice_us: float | None) -> None:
    other = tuple(rank for rank in range(size) if rank not in group)
    expected = [part for part in (group, other) if may_go_on(set(range(size)), set(part), set())]
    cuts = [(0.0, (one, two), notice_us) for one in group for two in other]
    assert run_partition(size, 7, cuts) == [rank for part in expected for rank in part]


def test_whatever_links_fail_one_group_goes_on_at_most() -> None:
    gone_on = [len(run_partition_seed(seed)) for seed in range(60)]
    assert 0 in gone_on
    assert max(gone_on) > 1
