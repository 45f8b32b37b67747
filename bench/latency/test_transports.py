"""Round trips and streams of messages between two ranks of this machine: the transports themselves, without a runtime.

Both sides poll. A round trip has as many bytes there as back; of a stream, a round is one message among many, so its
bandwidth is ``bytes`` / seconds.
"""

import os
from typing import Any

import pytest

from intentpm.bench.benchmarks import SUBJECT
from intentpm.bench.latency import mpi, sockets
from intentpm.bench.latency.job import MeasuringRank, Rank
from intentpm.bench.latency.measuring import declare, record, time_calls
from intentpm.bench.latency.perftest import UnavailableError, one_way_s, stream_s
from intentpm.bench.links import LINKS, Link, usable_links
from intentpm.launch.launchers import detect_launcher

pytestmark = pytest.mark.usefixtures("peers")

KIB, MIB = 1 << 10, 1 << 20
ROUND_TRIP_BYTES = (8, 64, 512, 1 * KIB, 4 * KIB)
STREAM_BYTES = (64 * KIB, 256 * KIB, 1 * MIB, 4 * MIB, 16 * MIB)
STREAMED_BYTES, STREAMS = 128 * MIB, 3
ROUND_TRIPS, WARM_UP = 1000, 100
SECRET = b"a benchmark of two processes"
CONNECT_S = 20.0

over_links = pytest.mark.parametrize("way", usable_links(), ids=lambda way: way.name)
round_trips = pytest.mark.parametrize("size_bytes", ROUND_TRIP_BYTES)
streams = pytest.mark.parametrize("size_bytes", STREAM_BYTES)


def messages_of(size_bytes: int) -> int:
    """How many messages a stream has."""
    return max(8, STREAMED_BYTES // size_bytes)


def open_mailbox(here: Rank, way: Link) -> Any:
    """A transport of its own between ranks 0 and 1; None on others. Collective."""
    from intentpm.transports.mailbox import Mailbox
    from intentpm.transports.registry import load

    options: dict[str, Any] = {"host": "127.0.0.1"} if way.transport == "tcp" else {}
    if way.ucx_tls:
        options = {"options": {"TLS": way.ucx_tls}}
    transport = load(way.transport)(here.rank, 2, SECRET, **options) if here.rank < 2 else None
    addresses = here.exchange(transport.address() if transport else b"")
    if transport is None:
        return None
    box = Mailbox(transport)
    transport.connect(addresses[:2], CONNECT_S)
    return box


def close_mailbox(here: Rank, box: Any) -> None:
    box.expect_close(1 - here.rank)
    box.run_for(0.05)
    box.close(2)


def echo(here: Rank, way: Link, count: int) -> None:
    """Rank 1's part of round trips, as a task."""
    if box := open_mailbox(here, way):
        box.echo(0, count)
        close_mailbox(here, box)


def sink(here: Rank, way: Link, *counts: int) -> None:
    """Rank 1's part of streams, as a task."""
    if box := open_mailbox(here, way):
        for count in counts:
            box.sink(0, count)
        close_mailbox(here, box)


@over_links
@round_trips
def test_round_trip(benchmark: Any, job: MeasuringRank, way: Link, size_bytes: int) -> None:
    declare(benchmark, "round trip", SUBJECT, bytes=size_bytes, transport=way.name)
    count = ROUND_TRIPS + WARM_UP
    with job.others(echo, way, count):
        box = open_mailbox(job, way)
        taken_ns = box.pingpong(1, size_bytes, count)[WARM_UP:]
        close_mailbox(job, box)
    record(benchmark, [sample * 1e-9 for sample in taken_ns])


@over_links
@streams
def test_stream(benchmark: Any, job: MeasuringRank, way: Link, size_bytes: int) -> None:
    declare(benchmark, "stream", SUBJECT, bytes=size_bytes, transport=way.name)
    count = messages_of(size_bytes)
    with job.others(sink, way, 8, *[count] * STREAMS):
        box = open_mailbox(job, way)
        box.stream(1, size_bytes, 8)
        taken_s = [box.stream(1, size_bytes, count) for _ in range(STREAMS)]
        close_mailbox(job, box)
    record(benchmark, [sample / count for sample in taken_s])


UCX_WAYS = [way for way in LINKS if way.perftest_tls]
perftest_ways = pytest.mark.parametrize(
    ("way", "peer_errors"), [(UCX_WAYS[0], True), (UCX_WAYS[0], False), (UCX_WAYS[1], True)],
    ids=["ucx-shm -e", "ucx-shm", "ucx-tcp -e"],
)  # fmt: skip


@perftest_ways
@round_trips
def test_perftest_round_trip(benchmark: Any, way: Link, peer_errors: bool, size_bytes: int) -> None:
    """UCX's own benchmark. -e: with reports of lost peers, which our transports always use."""
    name = "ucx_perftest" + (" -e" if peer_errors else "")
    declare(benchmark, "round trip", name, bytes=size_bytes, transport=way.name)
    try:
        record(benchmark, [2 * one_way_s(size_bytes, str(way.perftest_tls), peer_errors=peer_errors)])
    except UnavailableError as why:
        pytest.skip(str(why))


@perftest_ways
@streams
def test_perftest_stream(benchmark: Any, way: Link, peer_errors: bool, size_bytes: int) -> None:
    name = "ucx_perftest" + (" -e" if peer_errors else "")
    declare(benchmark, "stream", name, bytes=size_bytes, transport=way.name)
    try:
        record(benchmark, [stream_s(size_bytes, str(way.perftest_tls), messages_of(size_bytes), peer_errors)])
    except UnavailableError as why:
        pytest.skip(str(why))


@streams
def test_socket_stream(benchmark: Any, job: MeasuringRank, size_bytes: int) -> None:
    declare(benchmark, "stream", sockets.NAME, bytes=size_bytes, transport="tcp")
    count = messages_of(size_bytes)
    with job.others(sockets.sink, size_bytes, count, STREAMS), sockets.connect(job) as peer:
        taken_s = [sockets.stream(peer, size_bytes, count) for _ in range(STREAMS)]
    record(benchmark, [sample / count for sample in taken_s])


def skip_unless_mpi() -> None:
    if detect_launcher(os.environ) != "mpi":
        pytest.skip("MPI's ranks are those that mpirun starts")


@round_trips
def test_mpi_round_trip(benchmark: Any, job: MeasuringRank, size_bytes: int, budget_s: float) -> None:
    """mpi4py over the way that MPI chooses itself."""
    skip_unless_mpi()
    declare(benchmark, "round trip", mpi.SEND_RECV, bytes=size_bytes, transport=usable_links()[0].name)
    with job.others(mpi.echo, size_bytes):
        time_calls(benchmark, mpi.round_trip(size_bytes), budget_s)
        mpi.end_echo(size_bytes)


@streams
def test_mpi_stream(benchmark: Any, job: MeasuringRank, size_bytes: int) -> None:
    skip_unless_mpi()
    declare(benchmark, "stream", mpi.SEND_RECV, bytes=size_bytes, transport=usable_links()[0].name)
    count = messages_of(size_bytes)
    with job.others(mpi.sink, size_bytes, count, STREAMS):
        taken_s = [mpi.stream(size_bytes, count) for _ in range(STREAMS)]
    record(benchmark, [sample / count for sample in taken_s])
