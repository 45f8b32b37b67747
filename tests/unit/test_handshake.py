"""Connecting over tcp: who is let in, who is not, and what the errors say."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from support.network import together

from intentpm.foundation.errors import ConfigError, Error, TransportError, VersionMismatchError
from intentpm.transports.handshake import HELLO_BYTES, VERDICT_BYTES, make_hello
from intentpm.transports.mailbox import Mailbox
from intentpm.transports.tcp import TcpTransport
from intentpm.transports.tcp_address import (
    Candidate,
    Identity,
    RankAddress,
    decode_address,
    encode_address,
    open_listeners,
)
from intentpm.transports.tcp_connect import connect_ranks

SECRET = bytes(range(32))


class Rank:
    """One side of a connect phase, with each of its claims open to forgery."""

    def __init__(
        self, rank: int, size: int = 2, secret: bytes = SECRET, version: str = "1.0", protocol: int = 1
    ) -> None:
        self.me = Identity(rank, size, secret, os.urandom(16), version, protocol)
        self.listeners, self.candidates = open_listeners("127.0.0.1", 0)

    @property
    def address(self) -> RankAddress:
        """What a rank with the right claims would publish: the connections alone must tell."""
        me = self.me
        return RankAddress(
            me.rank, me.size, me.instance.hex(), me.package_version, me.protocol_version, self.candidates
        )

    def connect(self, addresses: list[RankAddress], timeout_s: float = 2.0, gone_after_s: float = 60.0) -> str:
        """Returns "" or the error's text with its type in front."""
        try:
            sockets = connect_ranks(self.me, self.listeners, addresses, timeout_s, gone_after_s)
        except Error as error:
            return f"{type(error).__name__}: {error}"
        finally:
            for listener in self.listeners:
                listener.close()
        for sock in sockets.values():
            sock.close()
        return ""

    @property
    def port(self) -> int:
        return self.candidates[0].port


def meet(*ranks: Rank, timeout_s: float = 2.0) -> list[str]:
    addresses = [rank.address for rank in ranks]
    return together(*(lambda rank=rank: rank.connect(addresses, timeout_s) for rank in ranks), timeout_s=timeout_s + 10)


# -- ranks that do not fit ---------------------------------------------------------------------------------------------


def test_ranks_that_fit_connect() -> None:
    assert meet(*(Rank(rank, 4) for rank in range(4))) == ["", "", "", ""]


def test_wrong_secret_is_named_on_both_sides() -> None:
    listener, dialler = meet(Rank(0), Rank(1, secret=bytes(32)))
    for error in (listener, dialler):
        assert error.startswith("TransportError")
        assert "does not have this job's secret" in error
    assert "it claims to be rank 1" in listener
    assert "is not connected to rank 0" in dialler


@pytest.mark.parametrize("other", [{"version": "2.0"}, {"protocol": 2}])
def test_other_version_is_named_on_both_sides_at_once(other: dict[str, object]) -> None:
    begin = time.monotonic()
    errors = meet(Rank(0), Rank(1, **other), timeout_s=20)
    assert time.monotonic() - begin < 5, "an authenticated mismatch need not wait for the deadline"
    for error in errors:
        assert error.startswith("VersionMismatchError")
        assert str(next(iter(other.values()))) in error
        assert "install the same version" in error


def test_other_size_is_named_on_both_sides_at_once() -> None:
    ranks = [Rank(0, 2), Rank(1, 3)]
    addresses = [rank.address for rank in ranks]
    third = Rank(2, 3)
    errors = together(
        lambda: ranks[0].connect(addresses, 20), lambda: ranks[1].connect([*addresses, third.address], 20)
    )
    third.connect([*addresses, third.address], 0.01)
    for error in errors:
        assert "rank 1 of 3 tried to join rank 0 of 2" in error


def test_second_process_with_the_same_rank_is_turned_away_and_the_first_gets_in() -> None:
    zero, first, second = Rank(0), Rank(1), Rank(1)
    addresses = [zero.address, first.address]
    impostor_error: list[str] = []
    impostor = threading.Thread(target=lambda: impostor_error.append(second.connect(addresses, 10)))
    impostor.start()

    def come_later() -> str:
        impostor.join(10)
        return first.connect(addresses, 10)

    assert together(lambda: zero.connect(addresses, 20), come_later) == ["", ""]
    assert "two processes of the job claim to be rank 1" in impostor_error[0]


def test_missing_rank_is_named_with_what_was_tried() -> None:
    zero, one, two = (Rank(rank, 3) for rank in range(3))
    addresses = [zero.address, one.address, two.address]
    begin = time.monotonic()
    errors = together(lambda: zero.connect(addresses, 1.0), lambda: two.connect(addresses, 1.0))
    assert time.monotonic() - begin < 5
    assert "rank 0 of 3 is not connected to rank 1 within 1 s" in errors[0]
    assert "rank 2 of 3 is not connected to rank 1 within 1 s" in errors[1]
    assert f"127.0.0.1 port {one.port}: connected, but nothing answered the handshake" in errors[1]
    one.connect(addresses, 0.01)


def test_dead_rank_is_noticed_before_the_deadline_from_both_sides() -> None:
    ranks = [Rank(rank, 3) for rank in range(3)]
    addresses = [rank.address for rank in ranks]
    for listener in ranks[1].listeners:
        listener.close()
    begin = time.monotonic()
    errors = together(
        lambda: ranks[0].connect(addresses, 60, gone_after_s=0.8),
        lambda: ranks[2].connect(addresses, 60, gone_after_s=0.8),
    )
    assert time.monotonic() - begin < 10
    # Whoever gives up first stops listening, and the other may notice that instead.
    assert any("rank 1 stopped listening" in error for error in errors)
    assert all("stopped listening" in error for error in errors)


# -- strangers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def disturbed() -> Iterator[tuple[Rank, Rank, int]]:
    zero, one = Rank(0), Rank(1)
    yield zero, one, zero.port
    for rank in (zero, one):
        for listener in rank.listeners:
            listener.close()


def knock(port: int, *parts: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), 5)
    for part in parts:
        sock.sendall(part)
    return sock


def test_strangers_do_not_disturb_a_job(disturbed: tuple[Rank, Rank, int]) -> None:
    zero, one, port = disturbed
    hello = make_hello(one.me, 0).pack()
    strangers = [
        knock(port),
        knock(port, b"GET / HTTP/1.1\r\n\r\n"),
        knock(port, os.urandom(5000)),
        knock(port, hello[:20]),
        knock(port, hello),
        knock(port, hello, os.urandom(32)),
        *(knock(port) for _ in range(200)),
    ]
    closed = knock(port)
    closed.close()
    begin = time.monotonic()
    assert meet(zero, one, timeout_s=10) == ["", ""]
    assert time.monotonic() - begin < 8, "strangers delayed the job"
    for stranger in strangers:
        stranger.close()


def test_strangers_do_not_extend_the_deadline(disturbed: tuple[Rank, Rank, int]) -> None:
    zero, one, port = disturbed
    stop = threading.Event()

    def drip() -> None:
        """One byte at a time, and new silent connections all the while."""
        dripping, silent = knock(port), []
        while not stop.wait(0.05):
            try:
                dripping.send(b"i")
                silent.append(knock(port))
            except OSError:
                break
        for sock in (dripping, *silent):
            sock.close()

    thread = threading.Thread(target=drip)
    thread.start()
    begin = time.monotonic()
    error = zero.connect([zero.address, one.address], 1.0)
    assert time.monotonic() - begin < 8
    stop.set()
    thread.join(5)
    assert "is not connected to rank 1 within 1 s" in error


def test_a_stranger_learns_nothing_and_is_shown_the_door(disturbed: tuple[Rank, Rank, int]) -> None:
    zero, one, port = disturbed
    waiting = threading.Thread(target=lambda: zero.connect([zero.address, one.address], 2.0))
    waiting.start()
    with knock(port, make_hello(one.me, 0).pack()) as stranger:
        stranger.settimeout(5)
        answer = stranger.recv(HELLO_BYTES, socket.MSG_WAITALL)
        assert SECRET not in answer
        stranger.sendall(os.urandom(32))
        assert len(stranger.recv(VERDICT_BYTES, socket.MSG_WAITALL)) == VERDICT_BYTES
        assert stranger.recv(1) == b"", "a connection without proof stayed open"
    waiting.join(5)
    assert not waiting.is_alive()


def test_a_recorded_handshake_cannot_be_replayed(disturbed: tuple[Rank, Rank, int]) -> None:
    """A man in the middle passes a real handshake through, then plays it again to a second listener of the rank."""
    zero, one, port = disturbed
    proxy, (candidate,) = open_listeners("127.0.0.1", 0)
    proxy[0].setblocking(True)
    proxy[0].settimeout(5)
    recorded: list[bytes] = []

    def relay() -> None:
        client = proxy[0].accept()[0]
        client.settimeout(5)
        with client, knock(port) as server:
            server.settimeout(5)
            for size_bytes, source, sink in [
                (HELLO_BYTES, client, server),
                (HELLO_BYTES, server, client),
                (32, client, server),
                (VERDICT_BYTES, server, client),
            ]:
                data = source.recv(size_bytes, socket.MSG_WAITALL)
                recorded.append(data)
                sink.sendall(data)

    through_proxy = replace(zero.address, candidates=(candidate,))
    addresses = [zero.address, one.address]
    assert together(lambda: zero.connect(addresses, 5), lambda: one.connect([through_proxy, one.address], 5), relay)[
        :2
    ] == [
        "",
        "",
    ]
    proxy[0].close()
    again = Rank(0)
    again.me = replace(again.me, instance=zero.me.instance)
    waiting: list[str] = []
    thread = threading.Thread(target=lambda: waiting.append(again.connect([again.address, one.address], 1.5)))
    thread.start()
    with knock(again.port, recorded[0]) as stranger:
        stranger.settimeout(5)
        stranger.recv(HELLO_BYTES, socket.MSG_WAITALL)
        stranger.sendall(recorded[2])
        stranger.recv(VERDICT_BYTES, socket.MSG_WAITALL)
        assert stranger.recv(1) == b""
    thread.join(5)
    assert "does not have this job's secret" in waiting[0]


def test_a_candidate_where_something_else_listens_is_passed_over() -> None:
    other = socket.create_server(("127.0.0.1", 0))
    zero, one = Rank(0), Rank(1)
    wrong = Candidate("127.0.0.1", other.getsockname()[1])
    addresses = [replace(zero.address, candidates=(wrong, *zero.candidates)), one.address]
    begin = time.monotonic()
    assert together(lambda: zero.connect(addresses, 10), lambda: one.connect(addresses, 10)) == ["", ""]
    assert time.monotonic() - begin < 8, "the silent candidate held up the good one"
    other.close()


# -- addresses and options ---------------------------------------------------------------------------------------------


def test_addresses_are_checked_before_anything_is_dialled() -> None:
    zero = Rank(0)
    good = encode_address(replace(zero.address, rank=1), SECRET)
    assert decode_address(good, 1, zero.me).rank == 1
    with pytest.raises(TransportError, match="another job secret"):
        decode_address(encode_address(replace(zero.address, rank=1), bytes(32)), 1, zero.me)
    with pytest.raises(VersionMismatchError, match=r"9\.9"):
        decode_address(encode_address(replace(zero.address, rank=1, package_version="9.9"), SECRET), 1, zero.me)
    with pytest.raises(TransportError, match="says it is rank 1 of 2"):
        decode_address(good, 0, zero.me)
    for nonsense in (b"", b"loopback", good[:40], good[:32] + b"[]", good[:32] + b'{"rank": 1}'):
        with pytest.raises(TransportError, match="same transport and version"):
            decode_address(nonsense, 1, zero.me)
    zero.connect([zero.address, zero.address], 0.01)


def test_transport_with_another_secret_is_told_so_at_once() -> None:
    transports = [TcpTransport(0, 2, bytes(16)), TcpTransport(1, 2, bytes(range(16)))]
    addresses = [transport.address() for transport in transports]
    for transport in transports:
        with pytest.raises(TransportError, match="another job secret"):
            transport.connect(addresses, 10)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", None, "lo"])
def test_a_port_already_taken_is_a_clear_error(host: str | None) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TransportError, match=rf"port {port}.*Address already in use.*Choose another port"):
            TcpTransport(0, 2, SECRET, host=host, port=port)


def test_a_fixed_port_is_used_and_free_again_after_connecting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    for _ in range(2):
        transports = [TcpTransport(rank, 2, SECRET, host="127.0.0.1", port=port * (rank == 0)) for rank in range(2)]
        boxes = [Mailbox(transport) for transport in transports]
        join(*transports)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 2)
        together(boxes[0].close, boxes[1].close)


def join(*transports: TcpTransport) -> None:
    addresses = [transport.address() for transport in transports]
    together(*(lambda transport=transport: transport.connect(addresses, 10) for transport in transports))


def test_unknown_host_names_the_interfaces() -> None:
    with pytest.raises(TransportError, match=r"no-such-interface.*interfaces: .*lo"):
        TcpTransport(0, 1, SECRET, host="no-such-interface")


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(TransportError, match=r"cannot listen on 203\.0\.113\.1"):
        TcpTransport(0, 1, SECRET, host="203.0.113.1")


@pytest.mark.parametrize(("rank", "size"), [(-1, 2), (2, 2)])
def test_rank_out_of_range(rank: int, size: int) -> None:
    with pytest.raises(ConfigError, match="rank"):
        TcpTransport(rank, size, SECRET)


def test_short_secret() -> None:
    with pytest.raises(ConfigError, match="at least 16 bytes"):
        TcpTransport(0, 2, b"short")


def test_wrong_number_of_addresses() -> None:
    transport = TcpTransport(0, 2, SECRET)
    with pytest.raises(TransportError, match="1 addresses for 2 ranks"):
        transport.connect([transport.address()], 1)


def test_connect_works_inside_an_event_loop() -> None:
    import asyncio

    ranks = [Rank(0), Rank(1)]
    addresses = [rank.address for rank in ranks]

    def inside(rank: Rank) -> str:
        async def main() -> str:
            return rank.connect(addresses, 5)

        return asyncio.run(main())

    assert together(lambda: inside(ranks[0]), lambda: inside(ranks[1])) == ["", ""]


# -- after the handshake -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "wrong magic number"),
        (b"IP\x01" + bytes(13), "other protocol version"),
        (b"IP\x02\x00" + b"\xff" * 2 + bytes(10), "header too long"),
        (b"IP\x02\x00" + bytes(4) + b"\xff" * 8, "body too long"),
        (b"IP\x02\x00" + bytes(4) + b"\xff\xff\xff\xff" + bytes(4) + b"x" * 100_000, "its connection was closed"),
    ],
)
def test_a_malformed_frame_costs_that_peer_its_connection(stream: bytes, why: str) -> None:
    transport = TcpTransport(0, 3, SECRET, host="127.0.0.1")
    box = Mailbox(transport)
    good = TcpTransport(1, 3, SECRET, host="127.0.0.1")
    good_box = Mailbox(good)
    bad = Rank(2, 3, version="")
    me = transport.describe()
    bad.me = replace(bad.me, package_version=_package_version(), protocol_version=me["protocol_version"])
    addresses = [transport.address(), good.address(), encode_address(bad.address, SECRET)]
    decoded = [decode_address(payload, rank, bad.me) for rank, payload in enumerate(addresses)]
    sockets = together(
        lambda: connect_ranks(bad.me, bad.listeners, decoded, 5, 60),
        lambda: transport.connect(addresses, 5),
        lambda: good.connect(addresses, 5),
    )[0]
    sockets[0].sendall(stream)
    sockets[0].close()
    assert why in box.wait_lost(2, 5)
    good_box.send(0, 1, b"fine")
    assert box.receive(5).header == b"fine"
    for sock in (sockets[1], *bad.listeners):
        sock.close()
    together(box.close, good_box.close)


def _package_version() -> str:
    from importlib.metadata import version

    return version("intentpm")
