"""Ranks in one process: a mailbox per rank over any transport, threads that share a deadline, checks at the end."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from intentpm.foundation.errors import TransportUnavailableError
from intentpm.transports.mailbox import Mailbox
from intentpm.transports.messenger import SendHandle
from intentpm.transports.registry import load

KINDS = ("loopback", "tcp4", "tcp6", "ucx", "ucx-tcp")
CONNECT_TIMEOUT_S = 20.0


def together(*calls: Callable[[], Any], timeout_s: float = 30.0) -> list[Any]:
    """Runs each call on a thread of its own; returns their results. Raises the first error, or AssertionError at the
    deadline, naming the calls that did not come back."""
    results: list[Any] = [None] * len(calls)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = calls[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(calls))]
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
    stuck = [index for index, thread in enumerate(threads) if thread.is_alive()]
    assert not stuck, f"calls {stuck} of {len(calls)} did not come back within {timeout_s} s"
    return results


class Network:
    """``size`` connected ranks of transport ``kind``. Index it for the mailbox of a rank."""

    def __init__(self, kind: str, size: int, **options: Any) -> None:
        self.kind = kind
        self.handles: list[SendHandle] = []
        self.boxes: Sequence[Mailbox] = [Mailbox(transport) for transport in _make_transports(kind, size, options)]
        addresses = [box.transport.address() for box in self.boxes]
        together(*(lambda box=box: box.transport.connect(addresses, CONNECT_TIMEOUT_S) for box in self.boxes))

    def __getitem__(self, rank: int) -> Mailbox:
        return self.boxes[rank]

    def __len__(self) -> int:
        return len(self.boxes)

    def post(self, source: int, target: int, message_id: int = 1, header: bytes = b"", *pieces: Any) -> SendHandle:
        """Sends; at the end of the test the transport must have called ``done`` of it exactly once."""
        handle = self.boxes[source].send(target, message_id, header, pieces)
        self.handles.append(handle)
        return handle

    @contextlib.contextmanager
    def serving(self, *ranks: int) -> Iterator[None]:
        """Meanwhile, threads make progress for ``ranks``, whose mailboxes the caller must leave alone."""
        stop = threading.Event()

        def serve(box: Mailbox) -> None:
            while not stop.is_set():
                box.run_for(0.01)

        threads = [threading.Thread(target=serve, args=(self.boxes[rank],)) for rank in ranks]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def close(self, timeout_s: float = 5.0) -> None:
        """Closes all ranks side by side, as a job's end does."""
        together(*(lambda box=box: box.close(timeout_s) for box in self.boxes))

    def check(self) -> None:
        """What must hold after every test, whatever it did."""
        for handle in self.handles:
            assert handle.done_calls == 1, f"done was called {handle.done_calls} times for one send"
        for rank, box in enumerate(self.boxes):
            reported = [loss.rank for loss in box.lost]
            assert len(reported) == len(set(reported)), f"rank {rank} was told of a loss twice: {box.lost}"


def _make_transports(kind: str, size: int, options: dict[str, Any]) -> list[Any]:
    if kind == "loopback":
        network = load("loopback")(size)
        return [network.transport(rank) for rank in range(size)]
    name, fixed = {
        "tcp4": ("tcp", {"host": "127.0.0.1"}),
        "tcp6": ("tcp", {"host": "::1"}),
        "ucx": ("ucx", {}),
        "ucx-tcp": ("ucx", {"options": {"TLS": "tcp"}}),
    }[kind]
    options = {**fixed, **options}
    secret = os.urandom(32)
    return [load(name)(rank, size, secret, **options) for rank in range(size)]


@contextlib.contextmanager
def open_network(kind: str, size: int, **options: Any) -> Iterator[Network]:
    """A connected network, closed and checked at the end. Skips the test, with the reason, where it cannot run."""
    try:
        network = Network(kind, size, **options)
    except TransportUnavailableError as error:
        pytest.skip(str(error))
    try:
        yield network
    finally:
        network.close()
    network.check()
