"""Seconds, wherever a call takes them: infinite and huge ones wait, past ones mean now, what is no number is named."""

import math
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import intentpm
from intentpm.foundation.deadlines import LONGEST_S, call_s, wait_ns, wait_s
from intentpm.launch.commands import intentpm as command
from intentpm.launch.job import LocalJob
from intentpm.launch.rendezvous import Rendezvous, pack_gather, unpack_gather
from intentpm.launch.rendezvous_server import RendezvousServer
from intentpm.launch.seconds_option import Seconds
from intentpm.runtime.config import Config
from intentpm.testing import run_ranks
from intentpm.transports.loopback import LoopbackNetwork
from intentpm.transports.mailbox import Mailbox
from intentpm.transports.sim import SimNetwork
from intentpm.transports.sim_model import NetworkModel
from intentpm.transports.tcp import TcpTransport
from intentpm.transports.tcp_connect import set_data_path_options

pytestmark = pytest.mark.timeout(60)

SECRET = b"sixteen bytes or more"
LONG = [math.inf, 1e10, 9.3e9, 1e300, 10**400, np.float64("inf"), np.float32(1e38)]
PAST = [0, -1, -math.inf, -(10**400), -0.0]
NO_SECONDS = [math.nan, np.float32("nan"), "5", b"5", True, timedelta(seconds=5), 1j, [1.0]]


@pytest.mark.parametrize(
    "number", [2, 2.0, np.int64(2), np.float16(2), Fraction(2), Decimal(2), np.array(2)], ids=lambda n: type(n).__name__
)
def test_any_number_of_seconds_will_do(number: Any) -> None:
    assert wait_s(number) == 2.0
    assert wait_ns(number) == 2_000_000_000


@pytest.mark.parametrize("number", LONG)
def test_a_long_time_fits_every_clock(number: Any) -> None:
    assert wait_s(number) == LONGEST_S
    assert 7 * wait_ns(number) < 2**63
    assert threading.TIMEOUT_MAX > LONGEST_S
    assert wait_s(number) + 2.0 > LONGEST_S
    assert call_s(wait_s(number)) * 1000 < 2**31


@pytest.mark.parametrize("number", PAST)
def test_what_is_past_means_now(number: Any) -> None:
    assert wait_s(number) == wait_ns(number) == 0


def test_a_moment_is_not_nothing() -> None:
    assert wait_ns(1e-12) == 1
    assert wait_ns(5e-6) == 5000


@pytest.mark.parametrize("value", [*NO_SECONDS, None], ids=repr)
def test_what_is_no_number_is_refused_by_its_name(value: Any) -> None:
    with pytest.raises(intentpm.ConfigError, match=r"^patience=.*needs a number of seconds"):
        wait_s(value, "patience")


# -- the calls of a job ------------------------------------------------------------------------------------------------


def _calls(pm: Any) -> dict[str, Callable[[Any], object]]:
    table, worker = pm.create_table("t", 10, 2), pm.worker()
    return {
        "barrier": lambda timeout: pm.barrier(timeout=timeout),
        "allgather": lambda timeout: pm.allgather(b"x", timeout=timeout),
        "wait_sync": lambda timeout: worker.wait_sync(timeout=timeout),
        "pull_async": lambda timeout: worker.pull_async(table, np.arange(10)).result(timeout),
        "push_async": lambda timeout: worker.push_async(table, np.arange(10), np.ones((10, 2), "f4")).wait(timeout),
    }


@pytest.mark.parametrize("transport", ["loopback", "tcp"])
@pytest.mark.parametrize("number", [math.inf, 1e10])
def test_calls_wait_for_the_others_however_long_they_may(transport: str, number: float) -> None:
    def rank_main(pm: Any) -> None:
        for call in _calls(pm).values():
            if pm.rank == 1:
                time.sleep(0.05)  # so that rank 0 has to wait
            call(number)

    run_ranks(2, rank_main, transport=transport)


def test_calls_refuse_what_is_no_number_and_nothing_has_happened() -> None:
    def rank_main(pm: Any) -> None:
        for call in _calls(pm).values():
            for value in (math.nan, "1"):
                with pytest.raises(intentpm.ConfigError, match="timeout="):
                    call(value)
            call(10)

    run_ranks(2, rank_main)


def test_a_past_timeout_ends_at_once() -> None:
    tried = threading.Event()

    def rank_main(pm: Any) -> None:
        if pm.rank == 0:
            with pytest.raises(intentpm.WaitTimeoutError, match="waited 0 s"):
                pm.allgather(b"", timeout=-5)
            tried.set()
        assert tried.wait(30)

    run_ranks(2, rank_main)


def test_explain_takes_any_seconds() -> None:
    def rank_main(pm: Any) -> None:
        table = pm.create_table("t", 10, 2)
        for key in range(10):
            pm.explain(table, key, ask_owner=True, timeout=math.inf)
        elsewhere = next(key for key in range(10) if not pm.count_local(table, [key]))
        with pytest.raises(intentpm.ConfigError, match="timeout=nan"):
            pm.explain(table, elsewhere, ask_owner=True, timeout=math.nan)
        pm.barrier()

    run_ranks(2, rank_main)


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["loopback", "tcp", "ucx"])
@pytest.mark.parametrize("number", [math.inf, 2.2e6, 9.3e9])
def test_a_job_runs_with_long_times(transport: str, number: float) -> None:
    if transport == "ucx":
        pytest.importorskip("intentpm.transports.ucx", exc_type=Exception)

    def rank_main(pm: Any) -> None:
        table, worker = pm.create_table("t", 10, 2), pm.worker()
        worker.intent(table, np.arange(10), 0, 5)
        worker.push(table, np.arange(10), np.ones((10, 2), "f4"))
        worker.wait_sync()
        pm.barrier()
        assert (worker.pull(table, np.arange(10)) == 2).all()

    run_ranks(2, rank_main, transport=transport, peer_timeout=number, spin_us=min(number, 5.0))


@pytest.mark.parametrize("name", ["peer_timeout", "start_timeout", "sync_interval"])
def test_options_of_seconds(name: str) -> None:
    assert getattr(Config(**{name: math.inf}), name) == LONGEST_S
    for value in (*NO_SECONDS, 0, -1):
        with pytest.raises(intentpm.ConfigError, match=f"{name}="):
            Config(**{name: value})


@pytest.mark.parametrize("value", [math.nan, "5", -1])
def test_spin_us_that_is_no_time_is_named(value: Any) -> None:
    with pytest.raises(intentpm.ConfigError, match="spin_us="):
        Config(spin_us=value)


@pytest.mark.parametrize("peer_timeout_s", [1e-3, 1.0, 98_400.0, 2.2e6, LONGEST_S])
def test_the_kernel_takes_every_peer_timeout(peer_timeout_s: float) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        set_data_path_options(sock, peer_timeout_s)
        milliseconds = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert milliseconds == min(max(1, int(peer_timeout_s * 1000)), 2**31 - 1)


# -- transports --------------------------------------------------------------------------------------------------------


def test_a_mailbox_waits_for_ever_if_it_is_told_to() -> None:
    network = LoopbackNetwork(2)
    near, far = Mailbox(network.transport(0)), Mailbox(network.transport(1))
    threading.Timer(0.05, lambda: near.send(1, 1, b"", [b"body"])).start()
    assert far.receive(math.inf).body == b"body"
    with pytest.raises(intentpm.WaitTimeoutError):
        far.receive(-1)
    with pytest.raises(intentpm.ConfigError, match="timeout=nan"):
        far.receive(math.nan)
    for mailbox in (near, far):
        mailbox.close(math.inf)


def test_a_transport_connects_and_closes_within_any_time() -> None:
    transport = TcpTransport(0, 1, SECRET, peer_timeout_s=math.inf)
    with pytest.raises(intentpm.ConfigError, match="timeout=nan"):
        transport.close(math.nan)
    transport.connect([transport.address()], math.inf)
    transport.close(math.inf)
    with pytest.raises(intentpm.ConfigError, match="peer_timeout_s=nan"):
        TcpTransport(0, 1, SECRET, peer_timeout_s=math.nan)


def test_a_simulation_takes_any_time() -> None:
    SimNetwork(2, 0, max_virtual_s=math.inf)
    with pytest.raises(intentpm.ConfigError, match="max_virtual_s=nan"):
        SimNetwork(2, 0, max_virtual_s=math.nan)
    with pytest.raises(intentpm.ConfigError, match="latency_us=nan"):
        SimNetwork(2, 0, NetworkModel(latency_us=math.nan))


# -- start-up ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_s", [1e8, 1e10, math.inf])
def test_the_rendezvous_lives_through_a_long_start(timeout_s: float) -> None:
    server = RendezvousServer(2, SECRET)
    try:
        members = [Rendezvous([server.address], rank, 2, SECRET, timeout_s=timeout_s) for rank in (0, 1)]
        answers: list[list[bytes]] = []
        first = threading.Thread(target=lambda: answers.append(members[0].allgather(b"0", timeout_s)))
        first.start()
        time.sleep(0.05)  # the server sleeps until rank 0's deadline meanwhile
        answers.append(members[1].allgather(b"1", timeout_s))
        first.join(10)
        assert answers == [[b"0", b"1"]] * 2
    finally:
        for member in members:
            member.close()
        server.close(timeout_s=math.inf)


def test_a_rank_that_says_how_long_it_waits_is_believed() -> None:
    assert unpack_gather(pack_gather(b"payload", math.inf)) == (b"payload", LONGEST_S)


@pytest.mark.parametrize("seconds", [math.inf, 1e8])
def test_a_job_may_take_long(seconds: float) -> None:
    with LocalJob(1, [sys.executable, "-c", ""], prefix=False, grace_s=seconds) as job:
        assert job.wait(seconds) == 0


def test_run_takes_long_timeouts_and_names_what_is_none() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "intentpm", "run", "-n", "1", "--timeout", "1e8", "--grace", "inf", "true"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for option in ("--timeout", "--grace"):
        refused = CliRunner().invoke(command, ["run", "-n", "1", option, "nan", "true"])
        assert refused.exit_code == 2
        assert option in refused.output


def test_an_option_of_seconds_has_a_least() -> None:
    assert Seconds(least=0.1).convert("inf", None, None) == LONGEST_S
    with pytest.raises(Exception, match="less than"):
        Seconds(least=0.1).convert("0.05", None, None)


# -- the whole tree ----------------------------------------------------------------------------------------------------

_CONVERSIONS = re.compile(
    r"<int64_t>\(?\w+_(s|us) \*|\w*timeout\w* \* ?(1e9|1000)\b|monotonic\(\) \+ (timeout_s|config\.\w+timeout)\b"
)


def test_nobody_converts_seconds_by_hand() -> None:
    root = Path(__file__).resolve().parents[2]
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for folder in ("foundation", "transports", "runtime", "launch", "testing")
        for path in sorted((root / folder).rglob("*.py*"))
        if path.suffix in (".py", ".pyx", ".pxd")
        for line in path.read_text().splitlines()
        if _CONVERSIONS.search(line) and "config.start_timeout" not in line
    ]
    for_the_kernel = "user_timeout_ms = min(max(1, int(peer_timeout_s * 1000)), MOST_USER_TIMEOUT_MS)"
    assert found == [f"transports/tcp_connect.py: {for_the_kernel}"]
