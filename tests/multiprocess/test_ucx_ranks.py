"""The ucx transport between processes: over shared memory, over TCP, across network namespaces, under mpirun."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from intentpm.bench.hosts import make_hosts, why_unavailable
from intentpm.foundation.errors import TransportUnavailableError
from intentpm.transports.registry import load

pytestmark = pytest.mark.multiprocess

RANK_SCRIPT = Path(__file__).parents[1] / "support" / "ucx_rank.py"
SHARED_MEMORY = {"UCX_TLS": "posix,sysv,cma,self"}
TCP = {"UCX_TLS": "tcp"}


@pytest.fixture(scope="module", autouse=True)
def _needs_ucx() -> None:
    try:
        load("ucx")
    except TransportUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(params=[SHARED_MEMORY, TCP], ids=["shm", "tcp"])
def network(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment that makes UCX take one kind of transport."""
    return request.param


@contextmanager
def start_ranks(size: int, network: dict[str, str], *mode: str, prefixes: tuple = ()) -> Iterator[list]:
    """Ranks as processes that have each other's addresses; killed at the end if they still run."""
    secret = os.urandom(32).hex()
    with ExitStack() as stack:
        ranks = []
        for rank in range(size):
            command = [sys.executable, str(RANK_SCRIPT), str(rank), str(size), secret, *mode]
            process = subprocess.Popen(
                [*(prefixes[rank] if prefixes else ()), *command], env={**os.environ, **network},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            ranks.append(process)
        addresses = [rank.stdout.readline().strip() for rank in ranks]
        for rank in ranks:
            rank.stdin.write(" ".join(addresses) + "\n")
            rank.stdin.flush()
        yield ranks


def finish(rank: subprocess.Popen, timeout_s: float = 60) -> list[str]:
    out, err = rank.communicate(timeout=timeout_s)
    assert rank.returncode == 0, f"a rank failed:\n{out}\n{err}"
    return [line for line in out.splitlines() if " UCX  " not in line]


@pytest.mark.parametrize("size", [3, 8])
def test_all_to_all_and_a_clean_end(network: dict[str, str], size: int) -> None:
    with start_ranks(size, network, "exchange") as ranks:
        for rank in ranks:
            connected, verdict = finish(rank)
            assert verdict == f"received {50 * (size - 1)}"
            assert ("tcp/" in connected) == (network is TCP), connected


def test_bodies_up_to_256_mib(network: dict[str, str]) -> None:
    with start_ranks(2, network, "sizes", "256") as ranks:
        for rank in ranks:
            assert finish(rank)[-1].startswith("moved")


def test_a_million_small_messages(network: dict[str, str]) -> None:
    with start_ranks(2, network, "many", "1000000") as ranks:
        for rank in ranks:
            assert finish(rank)[-1].startswith("streamed")


def test_a_rank_killed_in_a_transfer_is_lost_soon_and_only_once(network: dict[str, str]) -> None:
    with start_ranks(3, network, "lose", "1") as ranks:
        for index in (0, 2):
            assert ranks[index].stdout.readline().startswith("connected")
            assert ranks[index].stdout.readline() == "sending\n"
        time.sleep(0.02)
        ranks[1].kill()
        # Not collected before the others have noticed: to them a zombie must be as dead as it is.
        begin = time.monotonic()
        for index in (0, 2):
            assert finish(ranks[index], 30)[-1].startswith("lost 1: ")
        assert time.monotonic() - begin < 15


def test_an_idle_rank_sleeps(network: dict[str, str]) -> None:
    with start_ranks(2, network, "idle", "2") as ranks:
        for rank in ranks:
            share = float(finish(rank)[-1].split()[1])
            assert share < 0.05, f"an idle rank used {share:.0%} of a CPU"


def test_a_forked_child_is_refused(network: dict[str, str]) -> None:
    with start_ranks(2, network, "fork") as ranks:
        for rank in ranks:
            assert finish(rank)[-1] == "the child was refused"


@pytest.mark.parametrize("choice", ["wheel", "system"])
def test_the_library_can_be_chosen(choice: str) -> None:
    probe = "from intentpm.transports import ucp, ucx_library; ucp.version(); print(ucx_library.loaded_library())"
    environment = {**os.environ, "INTENTPM_UCX_LIBRARY": choice}
    found = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    if found.returncode != 0:
        pytest.skip(f"no {choice} UCX here: {found.stderr.strip().splitlines()[-1]}")
    assert ("site-packages" in found.stdout) == (choice == "wheel")
    with start_ranks(2, {"INTENTPM_UCX_LIBRARY": choice}, "exchange") as ranks:
        for rank in ranks:
            connected, verdict = finish(rank)
            assert found.stdout.strip() in connected
            assert verdict == "received 50"


@pytest.mark.netns
def test_three_hosts_exchange_messages() -> None:
    if reason := why_unavailable():
        pytest.skip(reason)
    with (
        make_hosts(3) as hosts,
        start_ranks(3, TCP, "exchange", prefixes=tuple(host.prefix for host in hosts)) as ranks,
    ):
        for rank in ranks:
            connected, verdict = finish(rank)
            assert verdict == "received 100"
            assert "tcp/eth0" in connected


@pytest.mark.netns
def test_a_rank_killed_on_another_host_is_lost_soon() -> None:
    if reason := why_unavailable():
        pytest.skip(reason)
    with make_hosts(3) as hosts, start_ranks(3, TCP, "lose", "1", prefixes=tuple(h.prefix for h in hosts)) as ranks:
        for index in (0, 2):
            assert ranks[index].stdout.readline().startswith("connected")
            assert ranks[index].stdout.readline() == "sending\n"
        ranks[1].kill()
        begin = time.monotonic()
        for index in (0, 2):
            assert finish(ranks[index], 30)[-1].startswith("lost 1: ")
        assert time.monotonic() - begin < 15


def test_under_mpirun(network: dict[str, str]) -> None:
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    pytest.importorskip("mpi4py")
    if mpirun is None:
        pytest.skip("no mpirun beside this Python or on PATH")
    command = [sys.executable, str(RANK_SCRIPT), "mpi", "00" * 16, "exchange"]
    done = subprocess.run(
        [mpirun, "--allow-run-as-root", "--oversubscribe", "-n", "3", *command],
        capture_output=True, text=True, timeout=90, check=False, env={**os.environ, **network},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.count("received 100") == 3
