"""What the system allows, and known answers: ``tcp_room.pxd`` and ``tcp_pace.pxd`` are what a transport calls."""

from pathlib import Path

from libc.string cimport memset

from intentpm.transports.tcp_pace cimport Look, Pace, pace_after

USUAL_WMEM_MAX = 212_992


def most_room_bytes() -> int:
    """Twice what SO_SNDBUF may be set to: the system doubles it."""
    try:
        return 2 * int(Path("/proc/sys/net/core/wmem_max").read_text())
    except (OSError, ValueError):    # of a network namespace
        return 2 * USUAL_WMEM_MAX


def room_wanted_at(rtt_us: int, min_rtt_us: int, bytes_per_s: int, limit: int = 0) -> int:
    """How many bytes a socket should be allowed to hold; 0: no limit. limit: what it has. For tests."""
    return room_wanted(rtt_us, min_rtt_us, bytes_per_s, limit)


def rate_known_after(rates: list[float]) -> float:
    """What is taken for a link's rate when the system has said these, of its last packets, in turn. For tests."""
    cdef double known = 0
    for rate in rates:
        known = rate_known(known, rate)
    return known


def paces_after(looks: list[tuple[int, int, int, int, bool]]) -> list[float]:
    """How fast a socket sends after each look, bytes per second; 0: as fast as it can. For tests.

    looks: bytes acknowledged in all, us with something to send in all, bytes that other sockets took in all, for how many us
    packets wait, and whether there was nothing to send meanwhile.
    """
    cdef Pace pace
    cdef Look look
    memset(&pace, 0, sizeof(pace))
    paces = []
    for look.acked_bytes, look.busy_us, look.others_bytes, look.waits_us, look.ran_empty in looks:
        paces.append(pace_after(&pace, &look))
    return paces
