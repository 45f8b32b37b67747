"""The TCP rendezvous: what it gives, and what no stray connection, dead rank or late rank can do to it."""

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from intentpm.foundation.errors import PeerLostError, TransportError, WaitTimeoutError
from intentpm.launch import rendezvous_server
from intentpm.launch.meeting import Meeting
from intentpm.launch.rendezvous import (
    ACCEPTED,
    FRAME,
    GATHER,
    HELLO,
    JOIN,
    MAGIC,
    MAX_PAYLOAD_BYTES,
    WELCOME,
    WRONG_SECRET,
    Rendezvous,
    join_proof,
    pack_gather,
    unpack_list,
)
from intentpm.launch.rendezvous_server import RendezvousServer

pytestmark = pytest.mark.timeout(30)

SECRET = b"sixteen bytes or more"


@pytest.fixture
def serve() -> Iterator[Callable[..., RendezvousServer]]:
    servers: list[RendezvousServer] = []

    def start(size: int, **options: object) -> RendezvousServer:
        servers.append(RendezvousServer(size, SECRET, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close(timeout_s=0)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


@pytest.fixture
def join(serve: Callable[..., RendezvousServer]) -> Iterator[Callable[..., Rendezvous]]:
    """Connects a rank; all are closed after the test, before the server."""
    members: list[Rendezvous] = []

    def connect(server: RendezvousServer, rank: int, **options: object) -> Rendezvous:
        options = {"timeout_s": 5.0, "size": server.size, "secret": SECRET, **options}
        members.append(Rendezvous([server.address], rank, **options))
        return members[-1]

    yield connect
    for member in members:
        member.close()


def gather_all(members: list[Rendezvous], pool: ThreadPoolExecutor, payloads: list[bytes]) -> list[list[bytes]]:
    futures = [pool.submit(member.allgather, payload, 10.0) for member, payload in zip(members, payloads, strict=True)]
    return [future.result(timeout=15) for future in futures]


def waits(future: "Future[object]") -> bool:
    time.sleep(0.1)
    return not future.done()


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_everybody_gets_everything_in_rank_order(serve, join, pool, size) -> None:
    server = serve(size)
    members = [join(server, rank) for rank in range(size)]
    for round_number in range(3):
        payloads = [os.urandom(rank * 100 * round_number) for rank in range(size)]
        assert gather_all(members, pool, payloads) == [payloads] * size


def test_largest_payload(serve, join, pool) -> None:
    server = serve(3)
    payloads = [bytes([rank]) * MAX_PAYLOAD_BYTES for rank in range(3)]
    assert gather_all([join(server, rank) for rank in range(3)], pool, payloads) == [payloads] * 3


def test_a_larger_payload_is_refused_at_home(serve, join) -> None:
    with pytest.raises(ValueError, match="at most 1048576"):
        join(serve(1), 0).allgather(bytes(MAX_PAYLOAD_BYTES + 1), 1.0)


@pytest.mark.parametrize("closing", [(0, 1), (1,), ()], ids=["all close", "one closes", "none closes"])
def test_worlds_opened_one_after_the_other_do_not_meet(serve, join, pool, closing) -> None:
    server = serve(2)
    for number in range(3):
        members = [join(server, rank) for rank in range(2)]
        payloads = [b"%d" % number] * 2
        assert gather_all(members, pool, payloads) == [payloads] * 2
        for rank in closing:
            members[rank].close()


def test_a_rank_that_gave_up_and_comes_again_meets_the_one_that_is_late(serve, join, pool) -> None:
    server = serve(2)
    hasty = join(server, 1)
    hasty.close()
    hasty = join(server, 1)
    with pytest.raises(WaitTimeoutError, match="rank 0 never connected"):
        hasty.allgather(b"", 0.1)
    hasty.close()
    again = pool.submit(join(server, 1).allgather, b"again", 10.0)
    assert join(server, 0).allgather(b"late", 10.0) == [b"late", b"again"]
    assert again.result(timeout=5) == [b"late", b"again"]


def test_a_late_rank_hears_who_was_lost_first_and_then_meets_the_others(serve, join, pool) -> None:
    server = serve(3)
    join(server, 1).close()
    for rank in (0, 2):  # rank 2 comes when rank 0 has heard, and has left
        member = join(server, rank)
        with pytest.raises(PeerLostError, match="rank 1 has closed") as error:
            member.allgather(b"", 25.0)
        assert error.value.rank == 1
        member.close()
    again = [join(server, rank) for rank in (1, 0, 2)]
    assert gather_all(again, pool, [b"1", b"0", b"2"]) == [[b"0", b"1", b"2"]] * 3


def test_a_program_that_a_rank_runs_after_another_meets_its_like(serve, join, pool) -> None:
    """As ``sh -c 'python a.py; python b.py'`` in each rank: new processes of the same ranks."""
    server = serve(2)
    first = [join(server, rank, process=bytes([rank] * 16)) for rank in range(2)]
    assert gather_all(first, pool, [b"a", b"a"]) == [[b"a", b"a"]] * 2
    first[1]._socket.close()  # killed
    second = pool.submit(join(server, 1, process=b"b" * 16).allgather, b"b", 10.0)
    assert waits(second)
    first[0].close()
    assert join(server, 0, process=b"c" * 16).allgather(b"c", 10.0) == [b"c", b"b"]
    assert second.result(timeout=5) == [b"c", b"b"]


def test_ranks_that_never_come_are_named(serve, join, pool) -> None:
    server = serve(5)
    late = join(server, 3)
    futures = [pool.submit(join(server, rank).allgather, b"", 0.5) for rank in (0, 2)]
    for future in futures:
        with pytest.raises(WaitTimeoutError, match=r"within 0.5 s: ranks 1, 4 never connected; rank 3 connected but"):
            future.result(timeout=5)
    with pytest.raises(WaitTimeoutError, match="ranks 1, 4 never"):  # and so is told the one that comes too late
        late.allgather(b"", 10.0)


def test_the_first_deadline_ends_the_wait_of_all(serve, join, pool) -> None:
    server = serve(3)
    patient = pool.submit(join(server, 0).allgather, b"", 25.0)
    hasty = pool.submit(join(server, 1).allgather, b"", 0.2)
    for future in (patient, hasty):
        with pytest.raises(WaitTimeoutError, match="rank 2 never connected"):
            future.result(timeout=5)


def test_a_rank_that_dies_ends_the_wait_at_once(serve, join, pool) -> None:
    server = serve(3)
    dying = join(server, 2)
    waiting = [pool.submit(join(server, rank).allgather, b"", 25.0) for rank in (0, 1)]
    assert waits(waiting[0])
    dying._socket.close()  # as the kernel does for a killed process: no goodbye
    for future in waiting:
        with pytest.raises(PeerLostError, match="rank 2 ended without a goodbye: it closed its connection") as error:
            future.result(timeout=5)
        assert error.value.rank == 2


def test_a_rank_that_dies_before_it_connects_is_reported_by_the_launcher(serve, join, pool) -> None:
    server = serve(2)
    waiting = pool.submit(join(server, 0).allgather, b"", 25.0)
    assert waits(waiting)
    server.fail_rank(1, "ended with exit code 3")
    with pytest.raises(PeerLostError, match="rank 1 ended with exit code 3"):
        waiting.result(timeout=5)


def test_a_rank_that_died_before_anybody_waited(serve, join) -> None:
    server = serve(2)
    member = join(server, 0)
    server.fail_rank(1, "was killed by SIGKILL")
    with pytest.raises(PeerLostError, match="rank 1 was killed by SIGKILL"):
        member.allgather(b"", 25.0)


def test_a_rank_that_dies_after_its_part_does_no_harm(serve, join, pool) -> None:
    server = serve(2)
    members = [join(server, rank) for rank in range(2)]
    first = pool.submit(members[1].allgather, b"1", 25.0)
    assert waits(first)
    server.fail_rank(1, "ended with exit code 0")
    assert members[0].allgather(b"0", 5.0) == [b"0", b"1"]
    assert first.result(timeout=5) == [b"0", b"1"]


def test_a_rank_that_leaves_early_is_no_mystery(serve, join, pool) -> None:
    server = serve(2)
    leaving = join(server, 1)
    waiting = pool.submit(join(server, 0).allgather, b"", 25.0)
    assert waits(waiting)
    leaving.close()
    with pytest.raises(PeerLostError, match="rank 1 has closed"):
        waiting.result(timeout=5)


def test_wrong_secret_is_refused_and_said(serve, join) -> None:
    server = serve(2)
    started = time.monotonic()
    with pytest.raises(TransportError, match=r"does not have this rank's job secret.*INTENTPM_SECRET"):
        join(server, 0, secret=b"some other job's secret", timeout_s=20.0)
    assert time.monotonic() - started < 15
    join(server, 0)


def test_impostor_without_the_secret_takes_no_part(serve, join, pool) -> None:
    """One that does not mind the server's answer: what it sends as rank 1 counts for nothing."""
    server = serve(2)
    waiting = pool.submit(join(server, 0).allgather, b"", 25.0)
    with socket.create_connection(server.address, timeout=5) as impostor:
        _, nonce = HELLO.unpack(impostor.recv(HELLO.size, socket.MSG_WAITALL))
        wrong = join_proof(b"a guess at the secret", nonce, bytes(16), 1, 2, bytes(16))
        body = pack_gather(b"poison", 5.0)
        impostor.sendall(JOIN.pack(MAGIC, bytes(16), 1, 2, bytes(16), wrong) + FRAME.pack(GATHER, 0, len(body)) + body)
        assert waits(waiting)
        assert impostor.recv(1000, socket.MSG_WAITALL)[0] == WRONG_SECRET
    assert join(server, 1).allgather(b"true", 5.0) == [b"", b"true"]
    assert waiting.result(timeout=5) == [b"", b"true"]


def test_recorded_proof_does_not_work_twice(serve) -> None:
    server = serve(2)
    answers = []
    record = b""
    for _ in range(2):
        with socket.create_connection(server.address, timeout=5) as connection:
            _, nonce = HELLO.unpack(connection.recv(HELLO.size, socket.MSG_WAITALL))
            record = record or JOIN.pack(
                MAGIC, bytes(16), 1, 2, bytes(16), join_proof(SECRET, nonce, bytes(16), 1, 2, bytes(16))
            )
            connection.sendall(record)
            answers.append(connection.recv(WELCOME.size, socket.MSG_WAITALL)[0])
    assert answers == [ACCEPTED, WRONG_SECRET]


def test_server_that_does_not_know_the_secret_is_not_believed(pool) -> None:
    def welcome_anybody(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(HELLO.pack(MAGIC, bytes(16)))
            connection.recv(JOIN.size, socket.MSG_WAITALL)
            connection.sendall(WELCOME.pack(ACCEPTED, bytes(32)))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        serving = pool.submit(welcome_anybody, listener)
        with pytest.raises(TransportError, match="does not have this rank's job secret"):
            Rendezvous([listener.getsockname()], 0, 2, SECRET, timeout_s=5)
        serving.result(timeout=5)


def test_second_process_of_one_rank_is_refused(serve, join, pool) -> None:
    server = serve(2)
    members = [join(server, 0), join(server, 1)]
    with pytest.raises(TransportError, match="rank 1 has already joined"):
        join(server, 1).allgather(b"intruder", 5.0)
    assert gather_all(members, pool, [b"a", b"b"]) == [[b"a", b"b"]] * 2
    with pytest.raises(TransportError, match="rank 1 has already joined"):
        join(server, 1, process=b"that of a child.").allgather(b"intruder", 5.0)


@pytest.mark.parametrize(("rank", "size"), [(2, 3), (5, 2)])
def test_rank_of_another_job_size_is_refused(serve, join, rank, size) -> None:
    with pytest.raises(TransportError, match=f"rank {rank} of {size} came to the rendezvous of a job of 2 ranks"):
        join(serve(2), rank, size=size).allgather(b"", 5.0)


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls": bytes.fromhex("16030100c4010000c00303"),
    "random": os.urandom(5000),
    "zeros": bytes(1 << 20),
    "magic and no more": MAGIC,
    "magic and noise": MAGIC + os.urandom(JOIN.size - len(MAGIC)),
    "empty": b"",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_strangers_change_nothing(serve, join, pool, garbage) -> None:
    server = serve(2)
    members = [join(server, 0)]
    strangers = []
    for how in range(3):
        stranger = socket.create_connection(server.address, timeout=5)
        try:
            stranger.sendall(garbage)
            if how == 1:  # a reset instead of an end
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # it was thrown out meanwhile
        stranger.close() if how else strangers.append(stranger)
    members.append(join(server, 1))
    assert gather_all(members, pool, [b"a", b"b"]) == [[b"a", b"b"]] * 2
    for stranger in strangers:
        stranger.close()


def test_silent_strangers_are_thrown_out(serve, join, monkeypatch) -> None:
    monkeypatch.setattr(rendezvous_server, "HANDSHAKE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(rendezvous_server, "MAX_STRANGERS", 4)
    server = serve(1)
    crowd = [socket.create_connection(server.address, timeout=5) for _ in range(20)]
    assert join(server, 0).allgather(b"me", 5.0) == [b"me"]  # not shut out by the crowd
    for stranger in crowd:
        try:
            while stranger.recv(100):
                pass
        except ConnectionResetError:
            pass
        stranger.close()


@pytest.mark.parametrize(
    ("kind", "sequence", "body"),
    [(GATHER, 0, b"short"), (GATHER, 0, struct.pack("!d", float("nan"))), (77, 0, b""), (GATHER, 0, None)],
    ids=["short", "nan deadline", "unknown kind", "endless"],
)
def test_malformed_frames_of_a_member_cost_it_its_membership(serve, join, pool, kind, sequence, body) -> None:
    server = serve(2)
    waiting = pool.submit(join(server, 0).allgather, b"", 25.0)
    with socket.create_connection(server.address, timeout=5) as member:
        _, nonce = HELLO.unpack(member.recv(HELLO.size))
        member.sendall(
            JOIN.pack(MAGIC, bytes(16), 1, 2, bytes(16), join_proof(SECRET, nonce, bytes(16), 1, 2, bytes(16)))
        )
        assert len(member.recv(WELCOME.size, socket.MSG_WAITALL)) == WELCOME.size
        length = 0xFFFFFFF0 if body is None else len(body)
        member.sendall(FRAME.pack(kind, sequence, length) + (body or b""))
        with pytest.raises(PeerLostError) as error:
            waiting.result(timeout=5)
        assert error.value.rank == 1


def test_no_server_is_a_clear_error_within_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = probe.getsockname()
    started = time.monotonic()
    with pytest.raises(WaitTimeoutError, match=r"rank 3: rank 0 could not be reached within 0.5 s .*refused"):
        Rendezvous([address], 3, 4, SECRET, timeout_s=0.5, server_name="rank 0")
    assert time.monotonic() - started < 10


def test_a_server_that_says_nothing_does_not_hold_up_the_search(serve, monkeypatch) -> None:
    monkeypatch.setattr("intentpm.launch.rendezvous.HANDSHAKE_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        closed_address = closed.getsockname()
        closed.close()
        addresses = [silent.getsockname(), closed_address, serve(1).address]
        member = Rendezvous(addresses, 0, 1, SECRET, timeout_s=10)
    assert member.allgather(b"found", 5.0) == [b"found"]
    member.close()


def test_a_late_server_is_found(serve, pool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    member = pool.submit(Rendezvous, [("127.0.0.1", port)], 0, 1, SECRET, timeout_s=10)
    assert waits(member)
    serve(1, ports=[port])
    joined = member.result(timeout=10)
    assert joined.allgather(b"x", 5.0) == [b"x"]
    joined.close()


def test_taken_ports_are_passed_over(serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve(1, ports=[port, 0]).address[1] != port
        with pytest.raises(TransportError, match=f"cannot listen on 127.0.0.1: port {port}: .*in use"):
            RendezvousServer(1, SECRET, ports=[port])


def test_server_that_ends_is_a_clear_error(serve, join, pool) -> None:
    server = serve(2)
    waiting = pool.submit(join(server, 0).allgather, b"", 25.0)
    assert waits(waiting)
    server.close(timeout_s=0)
    with pytest.raises(TransportError, match="rank 0: lost the connection to the rendezvous server"):
        waiting.result(timeout=5)


def test_server_stays_until_its_members_have_left(serve, join, pool) -> None:
    server = serve(1)
    member = join(server, 0)
    closing = pool.submit(server.close, 20.0)
    assert waits(closing)
    assert member.allgather(b"late", 5.0) == [b"late"]
    member.close()
    closing.result(timeout=5)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_rank_0_is_answered_last(order: tuple[int, ...]) -> None:
    """Its process, in which the server may live, may end as soon as it has its answer."""
    sent: list[int] = []
    meeting = Meeting(3, {}, lambda member, kind, sequence, body: sent.append(member))
    for rank in order:
        meeting.join(rank, rank)
    for rank in order:
        meeting.contribute(rank, 0, b"", 5.0)
    assert sorted(sent) == [0, 1, 2]
    assert sent[-1] == 0


def test_every_address_includes_both_families(serve) -> None:
    server = serve(1, host="")
    port = server.address[1]
    for host in ("127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])):
        with socket.create_connection((host, port), timeout=5) as connection:
            assert connection.recv(HELLO.size).startswith(MAGIC)


@pytest.fixture
def ports() -> list[int]:
    """Two that were free just now."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        return [first.getsockname()[1], second.getsockname()[1]]


@pytest.mark.parametrize("close_s", [20.0, 0.0], ids=["told to stop", "killed"])
def test_a_program_that_came_to_the_server_of_the_program_before_finds_the_next_one(
    serve, join, pool, ports, close_s
) -> None:
    """Rank 0 serves, as under Slurm: rank 1's second program comes while rank 0's first has not ended."""
    before = serve(2, ports=ports[:1], serving_rank=0)
    first = [join(before, rank, process=bytes([rank] * 16)) for rank in range(2)]
    assert gather_all(first, pool, [b"a", b"a"]) == [[b"a", b"a"]] * 2
    for member in first:
        member.close()
    second = Rendezvous([("127.0.0.1", port) for port in ports], 1, 2, SECRET, timeout_s=5.0, process=b"b" * 16)
    waiting = pool.submit(second.allgather, b"1", 20.0)
    assert waits(waiting)
    pool.submit(before.close, close_s).result(timeout=5)  # does not wait for those whom rank 0 will never meet there
    after = serve(2, ports=ports[1:], serving_rank=0)
    assert join(after, 0, process=b"c" * 16).allgather(b"0", 10.0) == [b"0", b"1"]
    assert waiting.result(timeout=5) == [b"0", b"1"]
    second.close()


def test_a_server_that_is_not_followed_is_told_at_the_deadline(serve, join, pool) -> None:
    server = serve(2, serving_rank=0)
    waiting = pool.submit(join(server, 1).allgather, b"", 3.0)
    assert waits(waiting)
    pool.submit(server.close, 20.0).result(timeout=5)
    with pytest.raises(
        WaitTimeoutError, match=r"rank 1: the rendezvous server could not be reached within [12][\d.]* s"
    ):
        waiting.result(timeout=10)


@pytest.mark.parametrize("comes_first", [0, 1])
def test_a_death_of_the_rank_that_serves_is_told_at_once(serve, join, pool, comes_first) -> None:
    server = serve(3, serving_rank=0)
    members = {rank: join(server, rank) for rank in (comes_first, 1 - comes_first)}
    waiting = pool.submit(members[1].allgather, b"", 25.0)
    assert waits(waiting)
    server.close(timeout_s=0)
    with pytest.raises(TransportError, match="rank 1: lost the connection to the rendezvous server"):
        waiting.result(timeout=5)


def test_a_server_that_ends_takes_nobody_in(serve, join, pool) -> None:
    server = serve(2, serving_rank=0)
    members = [join(server, rank) for rank in range(2)]
    with socket.create_connection(server.address, timeout=5) as stranger:
        assert stranger.recv(HELLO.size, socket.MSG_WAITALL).startswith(MAGIC)
        closing = pool.submit(server.close, 20.0)
        assert stranger.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.address, timeout=5)
    assert gather_all(members, pool, [b"a", b"b"]) == [[b"a", b"b"]] * 2  # these it serves to the end
    for member in members:
        member.close()
    closing.result(timeout=5)


@pytest.mark.parametrize("body", [b"", b"\0\0\0", struct.pack("!I", 5) + b"four", struct.pack("!I", 0) + b"more"])
def test_lists_are_length_checked(body) -> None:
    with pytest.raises(ValueError, match="too"):
        unpack_list(body, 1)
