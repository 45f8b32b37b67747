"""What the wire allows: round trips and bandwidth of UCX itself (ucx_perftest); of plain sockets for tcp."""

import math

from intentpm.bench.scenarios import socket_rows
from intentpm.bench.scenarios.links import Link
from intentpm.bench.scenarios.transport_contenders import ucx_perftest

US, MIB = 1e-6, 1 << 20
MESSAGE_BYTES = 256 << 10
"""Of a stream: about what the runtime puts into one message."""


def round_trips(
    link: Link, sizes_bytes: list[tuple[int, int]], repeats: int, case_s: float
) -> tuple[str, list[list[float]]]:
    """Who measured, and seconds per round trip for each pair of request and reply size.

    ucx_perftest gives medians of one-way times, no single samples: a round trip is a request's plus a reply's.
    Raises UnavailableError.
    """
    if link.ucx_tls is None:
        return f"{socket_rows.NAME} round trip", socket_rows.socket_round_trips(sizes_bytes, repeats, case_s)
    measured = sorted({min(request for request, _ in sizes_bytes), *(reply for _, reply in sizes_bytes)})
    one_way: dict[int, float] = {}
    for size in measured:
        iterations = max(20, min(repeats, 64 * MIB // size))
        one_way[size] = ucx_perftest("ucp_am_lat", size, iterations, link.ucx_tls, peer_errors=True)[1] * US

    def nearest(size_bytes: int) -> float:
        """Requests are not worth runs of their own: a message of about their size does."""
        return one_way[min(measured, key=lambda size: abs(math.log(size / size_bytes)))]

    return "ucx_perftest round trip", [[nearest(request) + nearest(reply)] for request, reply in sizes_bytes]


def bandwidth(link: Link, total_bytes: int, repeats: int) -> tuple[str, list[float]]:
    """Who measured, and bytes per second one way, in messages of MESSAGE_BYTES. Raises UnavailableError."""
    if link.ucx_tls is None:
        return f"{socket_rows.NAME} stream", socket_rows.socket_stream(total_bytes, repeats)
    messages = max(8, total_bytes // MESSAGE_BYTES)
    runs = [ucx_perftest("ucp_am_bw", MESSAGE_BYTES, messages, link.ucx_tls, peer_errors=True) for _ in range(repeats)]
    return "ucx_perftest stream", [run[5] * MIB for run in runs]
