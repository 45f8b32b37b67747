"""How far the ranks' clocks lie apart, measured with a few collective calls; pure but for the measuring."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

EXCHANGES = 8


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """A rank's clock minus rank 0's, in ns: ``offset_ns`` plus or minus ``uncertainty_ns``."""

    offset_ns: int
    uncertainty_ns: int


def time_exchanges(now_ns: Callable[[], int], exchange: Callable[[], object]) -> tuple[list[int], list[int]]:
    """Collective: when this rank entered and left each of EXCHANGES collective calls, on its own clock."""
    entered, left = [], []
    for _ in range(EXCHANGES):
        entered.append(now_ns())
        exchange()
        left.append(now_ns())
    return entered, left


def clock_offsets(entered: Sequence[Sequence[int]], left: Sequence[Sequence[int]]) -> list[ClockOffset]:
    """Offsets of all ranks, from what ``time_exchanges`` measured on each. ``entered``, ``left``: ns, [rank][exchange].

    Rank 0 answers a collective call after every rank has entered and before any has left. So each exchange bounds a
    rank's offset from both sides; the intersection of the bounds is what is known, its middle the estimate. Ranks of
    one machine share a clock, and those of two started theirs at other times: where 0 is possible, it is 0.
    """
    offsets = []
    for rank in range(len(entered)):
        low = max(mine - zero for mine, zero in zip(entered[rank], left[0], strict=True))
        high = min(mine - zero for mine, zero in zip(left[rank], entered[0], strict=True))
        if low <= 0 <= high:
            offsets.append(ClockOffset(0, 0))
        else:
            offsets.append(ClockOffset((low + high) // 2, (high - low + 1) // 2))
    return offsets
