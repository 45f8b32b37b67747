"""Remote pull and push between two ranks of this machine, over each link, next to what else could fetch these rows.

The server's main thread waits in a barrier, polling a little, unless it computes ("python loop" and the like).
Baselines: UCX's own round trip (plain sockets' for the tcp transport), MPI one-sided access, torch's RPC. The last two
choose their own way, and are measured once: MPI in the groups of the first link, RPC in those of the last.
"""

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pytest

from intentpm.bench.accesses import access as local_access
from intentpm.bench.benchmarks import SUBJECT
from intentpm.bench.latency import mpi, rpc, sockets
from intentpm.bench.latency.busy_loops import BUSY_LOOPS, come_to_barrier, serve
from intentpm.bench.latency.job import MeasuringRank, create_table
from intentpm.bench.latency.measuring import declare, record, time_calls
from intentpm.bench.latency.perftest import UnavailableError, one_way_s
from intentpm.bench.links import Link, usable_links
from intentpm.launch.launchers import detect_launcher

pytestmark = pytest.mark.usefixtures("peers")

DIM, NUM_KEYS = 64, 25_000
BACK_TO_BACK, SPACED = "back to back", "spaced"
INTERVAL_S = 300e-6
"""Between spaced requests: the server has gone to sleep."""
ACCESS_BYTES = 4
"""Of a request, per key; the limit has no headers."""


class Access(NamedTuple):
    """What rank 0 asks rank 1 for. ``situation``: between the requests, or in the main thread of the server."""

    situation: str
    operation: str
    keys: int

    def __str__(self) -> str:
        return f"{self.situation}-{self.operation}-{self.keys}"

    @property
    def pause_s(self) -> float:
        """Before each request."""
        return INTERVAL_S if self.situation == SPACED else 0.0


ACCESSES = [Access(BACK_TO_BACK, operation, keys) for keys in (1, 10, 100, 1000, 10_000) for operation in mpi.NAMES]
ACCESSES += [Access(SPACED, operation, 1) for operation in mpi.NAMES]
ACCESSES += [Access(loop, "pull", keys) for loop in BUSY_LOOPS for keys in (1, 100)]
WIRE_ACCESSES = [access for access in ACCESSES if access.situation == BACK_TO_BACK]


def of(accesses: list[Access]) -> pytest.MarkDecorator:
    """A test of each of ``accesses``."""
    return pytest.mark.parametrize("access", accesses, ids=str)


def declare_access(benchmark: Any, by: str, access: Access, transport: str) -> None:
    if access.situation == "torch":
        pytest.importorskip("torch")
    declare(
        benchmark, access.operation, by, situation=access.situation, keys=access.keys, dim=DIM, num_keys=NUM_KEYS,
        ranks=2, transport=transport,
    )  # fmt: skip


def measure_access(
    benchmark: Any, job: MeasuringRank, call: Callable[[], object], access: Access, budget_s: float
) -> None:
    with job.others(serve, access.situation):
        job.exchange()  # the server is ready
        time_calls(benchmark, call, budget_s, pause_s=access.pause_s)


@pytest.fixture(scope="module")
def rows(job: MeasuringRank, link: Link) -> tuple[Any, Any]:
    """A worker and a table."""
    job.everywhere(create_table, "remote", job.size * NUM_KEYS // 2, DIM)
    return job.pm.worker(), job.tables["remote"]


@of(ACCESSES)
def test_intentpm(
    benchmark: Any, job: MeasuringRank, link: Link, rows: tuple[Any, Any], access: Access, budget_s: float
) -> None:
    declare_access(benchmark, SUBJECT, access, link.name)
    worker, table = rows
    away = np.setdiff1d(np.arange(table.num_keys), table.owned_keys())
    keys = np.random.default_rng(0).choice(away, access.keys, replace=False)
    values = np.ones((len(keys), DIM), np.float32)
    call = local_access(access.operation, SUBJECT, worker, table, None, values)
    if access.situation in BUSY_LOOPS:
        measure_access(benchmark, job, lambda: call(keys), access, budget_s)
        return
    with job.others(come_to_barrier):
        try:
            time_calls(benchmark, lambda: call(keys), budget_s, pause_s=access.pause_s)
        finally:
            come_to_barrier(job)


@of(WIRE_ACCESSES)
def test_wire(benchmark: Any, job: MeasuringRank, link: Link, access: Access, budget_s: float) -> None:
    """As many bytes there and back, with nothing done to them; a push sends its rows instead of receiving them."""
    request_bytes, reply_bytes = max(8, ACCESS_BYTES * access.keys), 4 * DIM * access.keys
    if link.perftest_tls:
        declare_access(benchmark, "ucx_perftest round trip", access, link.name)
        try:
            record(benchmark, [one_way_s(request_bytes, link.perftest_tls) + one_way_s(reply_bytes, link.perftest_tls)])
        except UnavailableError as why:
            pytest.skip(str(why))
        return
    declare_access(benchmark, f"{sockets.NAME} round trip", access, link.name)
    request, reply = np.ones(request_bytes, np.uint8), np.ones(reply_bytes, np.uint8)
    with job.others(sockets.echo, request_bytes, reply_bytes), sockets.connect(job) as peer:

        def round_trip() -> None:
            sockets.send(peer, request)
            sockets.receive(peer, reply)

        time_calls(benchmark, round_trip, budget_s)
        request[0] = 0  # the last one
        round_trip()


@pytest.fixture(scope="module")
def window(job: MeasuringRank, peers: None) -> Iterator[Any]:
    """Locked: MPI's rows at rank 1."""
    if detect_launcher(os.environ) != "mpi":
        pytest.skip("MPI's ranks are those that mpirun starts")
    from mpi4py import MPI

    job.everywhere(mpi.open_window, NUM_KEYS, DIM)
    job.state["window"].Lock(mpi.SERVER, MPI.LOCK_SHARED)
    yield job.state["window"]
    job.state["window"].Unlock(mpi.SERVER)
    job.everywhere(mpi.close_window)


@of(ACCESSES)
def test_mpi(benchmark: Any, job: MeasuringRank, window: Any, access: Access, budget_s: float) -> None:
    declare_access(benchmark, mpi.NAMES[access.operation], access, usable_links()[0].name)
    call = mpi.access(window, access.operation, NUM_KEYS, DIM, access.keys)
    measure_access(benchmark, job, call, access, budget_s)


@pytest.fixture(scope="module")
def rpc_server(job: MeasuringRank, peers: None) -> Iterator[None]:
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    job.everywhere(rpc.start, NUM_KEYS, DIM)
    yield
    job.everywhere(rpc.stop)


@of(ACCESSES)
def test_rpc(benchmark: Any, job: MeasuringRank, rpc_server: None, access: Access, budget_s: float) -> None:
    declare_access(benchmark, rpc.NAME, access, usable_links()[-1].name)
    call = rpc.access(access.operation, NUM_KEYS, DIM, access.keys)
    measure_access(benchmark, job, call, access, budget_s)
