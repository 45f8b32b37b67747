"""The tcp transport between processes on several hosts: network namespaces, which share this kernel but no loopback."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from intentpm.bench.hosts import Host, make_hosts, why_unavailable

pytestmark = [pytest.mark.netns, pytest.mark.multiprocess]

RANK_SCRIPT = Path(__file__).parents[1] / "support" / "transport_rank.py"


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    if reason := why_unavailable():
        pytest.skip(reason)
    with make_hosts(3) as made:
        yield made


@contextmanager
def start_ranks(prefixes: list[list[str]], options: list[str], *mode: str, timeout_s: float = 10.0) -> Iterator[list]:
    """Ranks as processes, connected; killed at the end if they still run."""
    secret = os.urandom(32).hex()
    with ExitStack() as stack:
        ranks = []
        for rank, (prefix, host) in enumerate(zip(prefixes, options, strict=True)):
            arguments = [str(rank), str(len(prefixes)), secret, host, str(timeout_s), *mode]
            process = subprocess.Popen(
                [*prefix, sys.executable, str(RANK_SCRIPT), *arguments],
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


def finish(rank: subprocess.Popen, timeout_s: float = 40) -> list[str]:
    out, err = rank.communicate(timeout=timeout_s)
    assert rank.returncode == 0, f"a rank failed:\n{out}\n{err}"
    return out.splitlines()


@pytest.mark.parametrize("choice", ["default", "IPv4 address", "IPv6 address", "interface name"])
def test_three_hosts_exchange_messages(hosts: list[Host], choice: str) -> None:
    options = {
        "default": ["", "", ""],
        "IPv4 address": [host.address4 for host in hosts],
        "IPv6 address": [host.address6 for host in hosts],
        "interface name": ["eth0"] * 3,
    }[choice]
    with start_ranks([host.prefix for host in hosts], options, "exchange") as ranks:
        for rank in ranks:
            connected, verdict = finish(rank)
            assert verdict == "received 100"
            assert "127.0.0.1" not in connected
            assert ("fd77::" in connected) == (choice == "IPv6 address")


def test_two_ranks_of_one_host_use_loopback_and_the_third_the_network(hosts: list[Host]) -> None:
    prefixes = [hosts[0].prefix, hosts[0].prefix, hosts[1].prefix]
    with start_ranks(prefixes, ["", "", ""], "exchange") as ranks:
        reports = [finish(rank) for rank in ranks]
    assert "127.0.0.1" in reports[0][0]
    assert "127.0.0.1" in reports[1][0]
    assert "127.0.0.1" not in reports[2][0]


def test_a_socket_on_a_full_and_slow_link_sends_about_what_the_link_carries() -> None:
    if reason := why_unavailable("200mbit"):
        pytest.skip(reason)
    paces: list[int] = []
    for _ in range(6):  # beside other work packets may not wait long enough on the way for a pace
        with (
            make_hosts(2, "200mbit") as hosts,
            start_ranks([host.prefix for host in hosts], ["", ""], "flood") as ranks,
        ):
            paced, received = (finish(rank)[1] for rank in ranks)
        assert received == f"received {60 << 20}"
        paces = [pace for pace in json.loads(paced.removeprefix("paced ")) if pace < 0xFFFFFFFF]
        if paces:
            break
    assert paces
    assert 5_000_000 < paces[len(paces) // 2] < 50_000_000  # 25 MB/s, and whatever else the machine does


def test_a_host_that_vanishes_is_lost_within_the_peer_timeout(hosts: list[Host]) -> None:
    with start_ranks([host.prefix for host in hosts], ["", "", ""], "lose", "2", timeout_s=2.0) as ranks:
        for rank in ranks:
            assert rank.stdout.readline().startswith("connected")
        time.sleep(0.3)
        hosts[2].unplug()
        begin = time.monotonic()
        for rank in ranks[:2]:
            report = finish(rank, 20)[0]
            assert report.startswith("lost 2: cannot be reached any more by rank ")
            assert "no answer for 2.0 s" in report
        assert time.monotonic() - begin < 10


def test_a_killed_process_is_lost_at_once(hosts: list[Host]) -> None:
    with start_ranks([host.prefix for host in hosts], ["", "", ""], "lose", "2") as ranks:
        for rank in ranks:
            assert rank.stdout.readline().startswith("connected")
        ranks[2].kill()
        begin = time.monotonic()
        for rank in ranks[:2]:
            assert finish(rank, 20)[0].startswith("lost 2: ")
        assert time.monotonic() - begin < 15
