"""The policy for Python: for tests, and for whoever plans."""

from intentpm.runtime._native.policy cimport NO_WAY, WAYS, Situation, cheapest, packed_load, surplus_load, unpacked_load, weigh

WAY_NAMES = ("relocate", "fetch once", "replicate", "leave remote")


def weigh_ways(
        *, row_bytes: int, fetched_bytes: int = 0, written_bytes: int = 0, news_bytes: int = 0,
        owner_intends: bool = False, others_hold: bool = False, once: bool = False, returns: bool = False, told: int = 1,
        astray: float = 0.0, with_row: float = 0.0, stall_bytes: float = 0.0) -> tuple:
    """(costs, way): bytes by way, of those that can be, and the way that is taken. ``policy.Situation`` explains.

    fetched_bytes, written_bytes, news_bytes: 0: as many as a row has.
    """
    cdef Situation situation
    cdef double costs[<int>WAYS]
    situation.row_bytes = row_bytes
    situation.fetched_bytes = fetched_bytes or row_bytes
    situation.written_bytes, situation.news_bytes = written_bytes or row_bytes, news_bytes or row_bytes
    situation.owner_intends, situation.others_hold, situation.once = owner_intends, others_hold, once
    situation.returns = returns
    situation.told = told
    situation.astray, situation.with_row, situation.stall_bytes = astray, with_row, stall_bytes
    weigh(&situation, costs)
    possible = {name: costs[<int>way] for way, name in enumerate(WAY_NAMES) if costs[<int>way] != NO_WAY}
    return possible, WAY_NAMES[<int>cheapest(costs)]


def surplus(own: int, their: int, size: int) -> int:
    """How much load an owner should hand over to the rank that asks, in a job of ``size`` ranks."""
    return surplus_load(own, their, size)


def as_told(load: int) -> int:
    """A load as the other rank hears of it."""
    return unpacked_load(packed_load(load))
