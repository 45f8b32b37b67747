"""Offsets between the clocks of ranks, from when they enter and leave collective calls."""

import random

import pytest

from intentpm.runtime.clocks import EXCHANGES, clock_offsets, time_exchanges

SECOND = 10**9


def simulate(offsets_ns, seed):
    """What ranks with these clocks measure: [rank][exchange] of entering and leaving."""
    chance = random.Random(seed)
    entered, left = [[] for _ in offsets_ns], [[] for _ in offsets_ns]
    free = [0 for _ in offsets_ns]
    for _ in range(EXCHANGES):
        starts = [now + chance.randrange(50_000) for now in free]
        answered = max(start + chance.randrange(5_000, 30_000) * (rank > 0) for rank, start in enumerate(starts))
        free = [answered + chance.randrange(5_000, 30_000) * (rank > 0) + 100 for rank in range(len(starts))]
        for rank, offset in enumerate(offsets_ns):
            entered[rank].append(starts[rank] + offset)
            left[rank].append(free[rank] + offset)
    return entered, left


@pytest.mark.parametrize("seed", range(20))
def test_the_true_offset_lies_within_the_uncertainty(seed):
    truth = [0, 7 * SECOND, -300 * SECOND + 123]
    measured = clock_offsets(*simulate(truth, seed))
    for true, found in zip(truth, measured, strict=True):
        assert abs(found.offset_ns - true) <= found.uncertainty_ns, f"seed {seed}"
        assert found.uncertainty_ns < 100_000, "the exchanges take some 50 us"


def test_ranks_of_one_machine_share_a_clock():
    measured = clock_offsets(*simulate([0, 0, 0, 0], 1))
    assert [(found.offset_ns, found.uncertainty_ns) for found in measured] == [(0, 0)] * 4


def test_time_exchanges_takes_the_time_around_each_call():
    clock = iter(range(100))
    calls = []
    entered, left = time_exchanges(lambda: next(clock), lambda: calls.append(next(clock)))
    assert len(calls) == EXCHANGES
    assert all(a < call < b for a, call, b in zip(entered, calls, left, strict=True))
