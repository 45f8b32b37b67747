"""Plain sockets between rank 0 and rank 1, polled from Python: the limit of the tcp transport."""

import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from intentpm.bench.latency.job import Rank

NAME = "plain sockets"
MOVE_S = 30.0


def connect(here: Rank) -> Any:
    """The socket that connects ranks 0 and 1, which does not block; None on any other. Collective."""
    if here.rank == 1:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(MOVE_S)
            here.exchange(repr(listener.getsockname()[1]).encode())
            peer, _ = listener.accept()
    else:
        port = int(here.exchange(b"")[1])
        if here.rank > 1:
            return None
        peer = socket.create_connection(("127.0.0.1", port), timeout=MOVE_S)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.setblocking(False)
    return peer


def echo(here: Rank, request_bytes: int, reply_bytes: int) -> None:
    """Rank 1 answers requests until one begins with 0, or the connection ends. A task."""
    peer = connect(here)
    if peer is None:
        return
    request, reply = np.ones(request_bytes, np.uint8), np.ones(reply_bytes, np.uint8)
    with peer:
        while request[0]:
            receive(peer, request)
            send(peer, reply)


def sink(here: Rank, size_bytes: int, count: int, streams: int) -> None:
    """Rank 1's part of ``stream``, ``streams`` times over. A task."""
    peer = connect(here)
    if peer is None:
        return
    message = np.ones(size_bytes, np.uint8)
    with peer:
        for _ in range(streams):
            for _ in range(count):
                receive(peer, message)
            send(peer, message[:1])


def stream(peer: socket.socket, size_bytes: int, count: int) -> float:
    """Seconds for ``count`` messages one way and a byte back."""
    message = np.ones(size_bytes, np.uint8)
    begin = time.perf_counter()
    for _ in range(count):
        send(peer, message)
    receive(peer, message[:1])
    return time.perf_counter() - begin


def receive(peer: socket.socket, into: Any) -> None:
    """Fills the array ``into``."""
    _move(peer.recv_into, into)


def send(peer: socket.socket, data: Any) -> None:
    """Sends the whole array ``data``."""
    _move(peer.send, data)


def _move(call: Callable[[memoryview], int], data: Any) -> None:
    """Repeats ``call`` of a socket that does not block until all is moved."""
    view, at, deadline = memoryview(data), 0, time.monotonic() + MOVE_S
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
