"""The transport contract (transports/base.pxd), over every transport there is."""

import random
import select
import time
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from support.network import KINDS, Network, open_network, together

from intentpm.foundation.errors import PeerLostError, TransportError, WaitTimeoutError
from intentpm.transports.mailbox import Mailbox
from intentpm.transports.messenger import Message

MIB = 1 << 20


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[int], Network]]:
    """make(size) -> Network, of each transport in turn."""
    opened = []

    def make_network(size: int) -> Network:
        opened.append(open_network(request.param, size))
        return opened[-1].__enter__()

    yield make_network
    for network in opened:
        network.__exit__(None, None, None)


def pattern(size_bytes: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(size_bytes)


# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [0, 1, 10, 4096, (1 << 14) - 16, 1 << 16, (1 << 20) + 1, 64 * MIB])
def test_message_arrives_whole(make: Callable[[int], Network], size_bytes: int) -> None:
    network = make(2)
    body = pattern(size_bytes)
    network.post(0, 1, 7, b"header", body)
    with network.serving(0):
        assert network[1].receive(20) == Message(0, 7, b"header", body)


@pytest.mark.parametrize("header_bytes", [0, 1, 7, 8, 255, 256])
def test_header_arrives_whole(make: Callable[[int], Network], header_bytes: int) -> None:
    network = make(2)
    for message_id in (0, 249):
        network.post(1, 0, message_id, pattern(header_bytes), b"body")
        assert network[0].receive(5) == Message(1, message_id, pattern(header_bytes), b"body")


def test_header_too_long_is_refused_and_harms_nobody(make: Callable[[int], Network]) -> None:
    network = make(2)
    with pytest.raises(TransportError, match="257"):
        network[0].send(1, 1, bytes(257))
    network.post(0, 1, 1, b"after")
    assert network[1].receive(5).header == b"after"


@pytest.mark.parametrize("piece_sizes", [[], [0], [0, 0, 3], [8, 8], [1, 0, 7, 1000], [5] * 300, [MIB, 1, MIB]])
def test_pieces_are_gathered_in_order(make: Callable[[int], Network], piece_sizes: list[int]) -> None:
    network = make(2)
    pieces = [pattern(size_bytes, seed) for seed, size_bytes in enumerate(piece_sizes)]
    network.post(0, 1, 3, b"h", *pieces)
    with network.serving(0):
        message = network[1].receive(10)
    assert message.body == b"".join(pieces)


def test_many_small_messages_both_ways_at_once(make: Callable[[int], Network]) -> None:
    network, count = make(2), 3000

    def converse(rank: int) -> dict[int, Message]:
        dice = random.Random(rank)
        for number in range(count):
            body = dice.randbytes(dice.choice([0, 3, 8, 64, 200, 5000]))
            network.post(rank, 1 - rank, 1, number.to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little"), body)
            if number % 16 == 0:
                network[rank].progress()
        received = network[rank].receive_many(count, 20)
        network[rank].run_for(0.2)
        return {int.from_bytes(message.header[:4], "little"): message for message in received}

    for received in together(lambda: converse(0), lambda: converse(1)):
        assert sorted(received) == list(range(count))
        for message in received.values():
            assert zlib.crc32(message.body) == int.from_bytes(message.header[4:], "little")


def test_a_rank_can_send_to_itself(make: Callable[[int], Network]) -> None:
    network = make(2)
    bodies = [pattern(size_bytes) for size_bytes in (0, 5, MIB)]
    for body in bodies:
        network.post(0, 0, 2, b"own", body)
    received = network[0].receive_many(3, 5)
    assert {message.body for message in received} == set(bodies)
    assert {message.source for message in received} == {0}


def test_handlers_may_send(make: Callable[[int], Network]) -> None:
    network, count = make(2), 400
    network[1].auto_echo = True
    sizes = [0, 1, 9, 700, 20_000, 300_000]
    sent = {number: pattern(sizes[number % 6], number) for number in range(count)}

    with network.serving(1):
        for number, body in sent.items():
            network.post(0, 1, 5, number.to_bytes(4, "little"), body)
        answers = network[0].receive_many(count, 25)
    assert {int.from_bytes(message.header, "little"): message.body for message in answers} == sent
    assert network[1].echoed_messages == count


def test_eight_ranks_all_to_all(make: Callable[[int], Network]) -> None:
    network, rounds = make(8), 10

    def converse(rank: int) -> set[tuple[int, int]]:
        for number in range(rounds):
            for target in set(range(8)) - {rank}:
                network.post(rank, target, number, bytes([rank, target]), pattern(100 * number, rank))
        received = network[rank].receive_many(7 * rounds, 25)
        assert all(message.header == bytes([message.source, rank]) for message in received)
        assert all(message.body == pattern(100 * message.message_id, message.source) for message in received)
        network[rank].run_for(0.5)
        return {(message.source, message.message_id) for message in received}

    for received in together(*(lambda rank=rank: converse(rank) for rank in range(8))):
        assert len(received) == 7 * rounds


def test_one_rank_alone(make: Callable[[int], Network]) -> None:
    network = make(1)
    network.post(0, 0, 1, b"me", b"body")
    assert network[0].receive(5) == Message(0, 1, b"me", b"body")
    assert network[0].is_alive(0)


def test_counters_agree_across_a_connection(make: Callable[[int], Network]) -> None:
    network = make(2)
    for size_bytes in (0, 1, 1000, 100_000):
        network.post(0, 1, 1, b"abc", pattern(size_bytes))
    network[1].receive_many(4, 5)
    sent, received = network[0].transport.counters(), network[1].transport.counters()
    assert sent["sent_messages"] == received["received_messages"] == 4
    assert sent["sent_bytes"] == received["received_bytes"] >= 4 * 3 + 101_001


# -- flow --------------------------------------------------------------------------------------------------------------


def test_a_slow_receiver_holds_little(make: Callable[[int], Network]) -> None:
    network = make(2)
    bodies = [pattern(MIB, seed) for seed in range(96)]
    handles = [network.post(0, 1, 1, number.to_bytes(1, "little"), body) for number, body in enumerate(bodies)]
    network[0].run_for(0.3)
    taken = sum(handle.done for handle in handles)
    assert taken <= 48, f"{taken} MiB left the sender although the receiver does nothing"
    assert network[0].backlog_bytes(1) >= (96 - 49) * MIB
    with network.serving(0):
        received = network[1].receive_many(96, 20)
    assert [message.body for message in sorted(received, key=lambda message: message.header)] == bodies
    assert all(handle.wait(5) == 0 for handle in handles)
    assert network[0].backlog_bytes(1) == 0


def test_a_sleeping_receiver_is_woken(make: Callable[[int], Network]) -> None:
    network = make(2)
    for _ in range(20):
        fall_asleep(network[1])
        assert select.select([network[1].fileno()], [], [], 0.02)[0] == [], "woken although nothing happened"
        network.post(0, 1)
        assert select.select([network[1].fileno()], [], [], 5)[0], "a message did not wake its sleeping receiver"
        network[1].receive(5)


def fall_asleep(box: Mailbox) -> None:
    deadline = time.monotonic() + 5
    box.progress()
    while not box.arm():
        box.progress()
        assert time.monotonic() < deadline, "arm() never succeeds although nothing happens"


def test_a_sleeping_sender_is_woken_when_there_is_room(make: Callable[[int], Network]) -> None:
    network = make(2)
    for _ in range(64):
        network.post(0, 1, 1, b"", bytes(MIB))
    network[0].run_for(0.2)
    fall_asleep(network[0])
    network[1].receive(5)
    network[1].run_for(0.2)
    assert select.select([network[0].fileno()], [], [], 5)[0], "room at the receiver did not wake the sender"
    with network.serving(0):
        network[1].receive_many(63, 20)


def test_arm_refuses_while_work_is_waiting(make: Callable[[int], Network]) -> None:
    network = make(2)
    network[0].drop(1, "a test")
    assert not network[0].arm()
    network[0].wait_lost(1, 5)


def test_silence_is_measured(make: Callable[[int], Network]) -> None:
    network = make(2)
    time.sleep(0.2)
    assert network[1].silence_s(0) >= 0.2
    network.post(0, 1)
    network[1].receive(5)
    assert network[1].silence_s(0) < 0.2
    assert network[1].silence_s(1) < 0.01, "a rank always hears itself"


# -- losses and ends ---------------------------------------------------------------------------------------------------


def test_a_loss_is_reported_once_and_only_for_the_lost(make: Callable[[int], Network]) -> None:
    network = make(3)
    together(network[2].close, lambda: network[0].wait_lost(2, 10), lambda: network[1].wait_lost(2, 10))
    for rank in (0, 1):
        network[rank].run_for(0.1)
        assert [loss.rank for loss in network[rank].lost] == [2]
        assert network[rank].lost[0].why
        assert not network[rank].is_alive(2)
        with pytest.raises(PeerLostError, match="rank 2") as caught:
            network[rank].send(2, 1)
        assert caught.value.rank == 2
    network.post(0, 1, 1, b"still here")
    assert network[1].receive(5).header == b"still here"


def test_what_was_sent_before_a_close_still_arrives(make: Callable[[int], Network]) -> None:
    network = make(2)
    for number in range(24):
        network.post(0, 1, number, b"", pattern(MIB, number))
    received = together(lambda: network[1].receive_many(24, 15), lambda: network[0].close(10))[0]
    assert all(message.body == pattern(MIB, message.message_id) for message in received)
    network[1].wait_lost(0, 10)


def test_the_end_of_a_peer_that_said_goodbye_is_no_loss(make: Callable[[int], Network]) -> None:
    network = make(2)
    network[0].expect_close(1)
    together(network[1].close, lambda: network[0].run_for(0.5))
    assert network[0].lost == []
    with pytest.raises(PeerLostError):
        network[0].send(1, 1)


def test_close_ends_at_its_deadline_and_fails_what_is_unsent(make: Callable[[int], Network]) -> None:
    network = make(2)
    handles = [network.post(0, 1, 1, b"", bytes(MIB)) for _ in range(96)]
    begin = time.monotonic()
    network[0].close(0.5)
    assert time.monotonic() - begin < 10
    assert handles[-1].status != 0
    assert all(handle.done_calls == 1 for handle in handles)


def test_closing_twice_and_using_a_closed_transport(make: Callable[[int], Network]) -> None:
    network = make(2)
    together(network[0].close, network[1].close)
    network[0].close()
    assert network[0].progress() == 0
    with pytest.raises(PeerLostError):
        network[0].send(1, 1)
    assert network[0].lost == [], "the ranks closed together: nobody was lost"


def test_all_close_at_once_while_all_have_unsent_data(make: Callable[[int], Network]) -> None:
    network = make(3)
    for source in range(3):
        for target in set(range(3)) - {source}:
            for _ in range(16):
                network.post(source, target, 1, b"", bytes(MIB))
    _close_within_its_deadline(network)


def test_all_close_at_once_while_each_has_unsent_data_for_the_next(make: Callable[[int], Network]) -> None:
    """A ring: each waits for one that has nothing to send to it, and has to take what that one does send."""
    network = make(3)
    for source in range(3):
        for _ in range(16):
            network.post(source, (source + 1) % 3, 1, b"", bytes(MIB))
    _close_within_its_deadline(network)


def _close_within_its_deadline(network: Network) -> None:
    deadline_s = 25.0
    begin = time.monotonic()
    network.close(deadline_s)
    assert time.monotonic() - begin < deadline_s, "ranks that close together waited for each other"


def test_drop_cuts_both_sides_and_fails_what_is_queued(make: Callable[[int], Network]) -> None:
    network = make(3)
    handles = [network.post(0, 1, 1, b"", bytes(MIB)) for _ in range(64)]
    network[0].drop(1, "it said something strange")
    assert network[0].lost == [], "on_lost ran outside progress()"
    assert "something strange" in network[0].wait_lost(1, 5)
    assert handles[-1].wait(5) != 0
    # Not every network tells rank 1 by itself: rank 0 must go on making progress, as engines do.
    with network.serving(0):
        network[1].wait_lost(0, 15)
    network[0].drop(1, "again")
    network[0].run_for(0.1)
    assert [loss.rank for loss in network[0].lost] == [1]
    network.post(0, 2, 1, b"unharmed")
    assert network[2].receive(5).header == b"unharmed"


def test_a_handler_may_drop_the_sender(make: Callable[[int], Network]) -> None:
    network = make(2)
    network[1].auto_drop = True
    for number in range(20):
        network.post(0, 1, number, b"", bytes(1000))
    network[1].wait_lost(0, 5)
    assert network[1].pending <= 1, "messages of a rank were delivered after its handler dropped it"
    network[0].wait_lost(1, 15)


def test_waiting_for_nothing_ends_with_what_was_waited_for(make: Callable[[int], Network]) -> None:
    network = make(2)
    with pytest.raises(WaitTimeoutError, match="a message"):
        network[0].receive(0.1)
    with pytest.raises(WaitTimeoutError, match="3 round trips with rank 1"):
        network[0].pingpong(1, 8, 3, timeout_s=0.2)


# -- measurements ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sleep", [False, True], ids=["polling", "sleeping"])
def test_round_trips_are_measured(make: Callable[[int], Network], sleep: bool) -> None:
    network = make(2)
    samples = together(
        lambda: network[0].pingpong(1, 100, 200, 20, sleep=sleep), lambda: network[1].echo(0, 200, 20, sleep=sleep)
    )[0]
    assert samples.shape == (200,)
    assert (samples > 0).all()


def test_a_stream_is_measured(make: Callable[[int], Network]) -> None:
    network = make(2)
    seconds = together(lambda: network[0].stream(1, MIB, 50, 20), lambda: network[1].sink(0, 50, 20))[0]
    assert 0 < seconds < 20


def test_a_measurement_ends_when_its_peer_is_lost(make: Callable[[int], Network]) -> None:
    network = make(2)

    def leave() -> None:
        network[1].echo(0, 10, 10)
        network[1].close()

    with pytest.raises(PeerLostError, match="rank 1"):
        together(lambda: network[0].pingpong(1, 4096, 1_000_000, 20), leave)
