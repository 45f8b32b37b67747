"""Baseline of the tcp transport: plain sockets, polled from Python; the bytes of a request and of its rows only."""

import socket
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from intentpm.bench.scenarios.calls import timed_calls
from intentpm.bench.scenarios.two_processes import Cases, run_pair

NAME = "plain sockets"
START_S = 30.0
CHUNK_BYTES = 256 << 10


def socket_round_trips(sizes_bytes: list[tuple[int, int]], repeats: int, case_s: float) -> list[list[float]]:
    """Seconds per round trip, for each pair of request and reply size. Raises UnavailableError."""
    arguments = {"sizes_bytes": sizes_bytes, "repeats": repeats, "case_s": case_s}
    cases = run_pair(_round_trip_side, arguments, START_S + 3 * len(sizes_bytes) * case_s)
    return [case["samples"] for case in cases]


def socket_stream(total_bytes: int, repeats: int) -> list[float]:
    """Bytes per second of ``repeats`` streams one way. Raises UnavailableError."""
    arguments = {"total_bytes": total_bytes, "repeats": repeats}
    return [case["bytes_per_s"] for case in run_pair(_stream_side, arguments, START_S + 10 * repeats)]


def _connected(rank: int, between: Connection) -> socket.socket:
    if rank == 0:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            between.send(listener.getsockname())
            peer, _ = listener.accept()
    else:
        peer = socket.create_connection(between.recv())
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.setblocking(False)
    return peer


def _round_trip_side(rank: int, between: Connection, arguments: Mapping[str, Any]) -> Cases:
    cases: Cases = []
    with _connected(rank, between) as peer:
        for request_bytes, reply_bytes in arguments["sizes_bytes"]:
            request, reply = np.ones(request_bytes, np.uint8), np.ones(reply_bytes, np.uint8)
            if rank == 0:
                _echo(peer, request, reply)
                continue

            def call(request: Any = request, reply: Any = reply) -> None:
                _send(peer, request)
                _receive(peer, reply)

            cases.append({"samples": timed_calls(call, arguments["repeats"], arguments["case_s"])})
            request[0] = 0  # the last one
            call()
    return cases


def _echo(peer: socket.socket, request: Any, reply: Any) -> None:
    while True:
        _receive(peer, request)
        _send(peer, reply)
        if request[0] == 0:
            return


def _receive(peer: socket.socket, into: Any) -> None:
    _move(peer.recv_into, into)


def _send(peer: socket.socket, data: Any) -> None:
    _move(peer.send, data)


def _move(call: Callable[[memoryview], int], data: Any) -> None:
    """Repeats ``call`` of a socket that does not block until all is moved."""
    view, at, deadline = memoryview(data), 0, time.monotonic() + START_S
    while at < len(view):
        try:
            moved = call(view[at:])
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            continue
        if moved == 0:
            raise ConnectionError("the other side is gone")
        at += moved


def _stream_side(rank: int, between: Connection, arguments: Mapping[str, Any]) -> Cases:
    cases: Cases = []
    chunk, byte = np.ones(CHUNK_BYTES, np.uint8), np.ones(1, np.uint8)
    count = max(1, arguments["total_bytes"] // CHUNK_BYTES)
    with _connected(rank, between) as peer:
        for turn in range(arguments["repeats"] + 1):
            start = time.perf_counter()
            for _ in range(count):
                (_send if rank == 1 else _receive)(peer, chunk)
            (_receive if rank == 1 else _send)(peer, byte)
            if rank == 1 and turn > 0:
                cases.append({"bytes_per_s": count * CHUNK_BYTES / (time.perf_counter() - start)})
    return cases
