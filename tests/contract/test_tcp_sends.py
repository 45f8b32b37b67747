"""What waits for a tcp socket: in which order it goes, and in how many bytes."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
from support.network import Network, open_network

MIB = 1 << 20


@pytest.fixture
def network() -> Iterator[Network]:
    with open_network("tcp4", 2) as opened:
        yield opened


def floats(seed: int) -> bytes:
    return bytes(np.random.default_rng(seed).normal(size=MIB // 4).astype(np.float32))


def fill(network: Network) -> int:
    """Until the socket to rank 1 takes no more; returns how many messages are on their way, of MiB each."""
    count = 0
    while network[0].backlog_bytes(1) == 0:
        network.post(0, 1, 0, b"", bytes(MIB))
        count += 1
    return count


def send(network: Network, message_id: int, in_s: float, body: bytes = b"") -> None:
    """A message that is needed in so many seconds; 0: at once."""
    due_ns = time.monotonic_ns() + int(1e9 * in_s) if in_s else 0
    network.handles.append(network[0].send(1, message_id, b"", (body,), due_ns))


def test_what_is_needed_sooner_goes_first(network: Network) -> None:
    before = fill(network)
    for message_id, in_s in ((1, 300), (2, 200), (3, 0), (4, 201), (5, 0), (6, 250), (7, 1000), (8, 0)):
        send(network, message_id, in_s)
    with network.serving(0):
        received = network[1].receive_many(before + 8, 20)
    assert [message.message_id for message in received] == [0] * before + [3, 5, 8, 2, 4, 6, 1, 7]


def test_what_was_needed_by_now_is_not_overtaken(network: Network) -> None:
    before = fill(network)
    for message_id, in_s in ((1, 0.05), (2, 300)):
        send(network, message_id, in_s)
    time.sleep(0.1)
    for message_id, in_s in ((3, 0), (4, 0)):
        send(network, message_id, in_s)
    with network.serving(0):
        received = network[1].receive_many(before + 4, 20)
    assert [message.message_id for message in received] == [0] * before + [1, 3, 4, 2]


def test_what_is_sent_while_others_are_done_keeps_its_place(network: Network) -> None:
    """Echoes are sent from inside handlers, while the queue moves."""
    network[1].auto_echo = True
    before = fill(network)
    for number in range(200):
        send(network, 1 + number % 7, number % 3 * 10, floats(number)[: 4096 * (1 + number % 5)])
    with network.serving(1):
        received = network[0].receive_many(before + 200, 20)
    assert sorted(len(message.body) for message in received)[:200] == sorted(4096 * (1 + n % 5) for n in range(200))


@pytest.mark.parametrize("codes", [True, False])
def test_what_waits_for_a_slow_link_is_coded(network: Network, codes: bool) -> None:
    transport = network[0].transport
    transport.codes_all = codes
    before = fill(network)
    bodies = [floats(1), np.random.default_rng(2).bytes(MIB), floats(3)[:100_003], b"short", bytes(MIB)]
    for message_id, body in enumerate(bodies, 1):
        send(network, message_id, 0, body)
    with network.serving(0):
        received = network[1].receive_many(before + len(bodies), 20)
    assert [message.body for message in received[before:]] == bodies
    assert (transport.spared_bytes > MIB // 3) == codes
    if not codes:
        assert transport.spared_bytes == 0
