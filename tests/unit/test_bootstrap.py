"""``start_transport`` between threads: the ranks agree, or all get an error, and nothing is left open."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from intentpm.foundation.errors import ConfigError, TransportError, VersionMismatchError
from intentpm.launch import bootstrap
from intentpm.launch.agreement import Greeting
from intentpm.launch.rendezvous import Rendezvous
from intentpm.launch.rendezvous_server import RendezvousServer
from intentpm.runtime.config import Config

pytestmark = pytest.mark.timeout(60)

SECRET = b"sixteen bytes or more"


class ThreadWorld:
    """A world whose ranks are threads."""

    launcher = "test"
    secret = SECRET

    def __init__(self, server: RendezvousServer, rank: int) -> None:
        self.rank, self.size, self.local_ranks = rank, server.size, server.size
        self._rendezvous = Rendezvous([server.address], rank, server.size, SECRET, timeout_s=10)
        self.allgather = self._rendezvous.allgather
        self.close = self._rendezvous.close


class Stub:
    """A transport that opens and connects, and notes that it was closed."""

    name = "stub"
    opened: ClassVar[list["Stub"]] = []

    def __init__(self) -> None:
        self.closed = False
        Stub.opened.append(self)

    def address(self) -> bytes:
        return b"here"

    def connect(self, addresses: list[bytes], timeout_s: float) -> None:
        assert addresses == [b"here"] * 3

    def close(self, timeout_s: float = 5.0) -> None:
        self.closed = True


def start_all(size: int, config_of: Callable[[int], Config]) -> list[Any]:
    """What ``start_transport`` returned or raised, per rank."""
    server = RendezvousServer(size, SECRET)

    def start(rank: int) -> Any:
        threading.current_thread().name = f"rank {rank}"
        world = ThreadWorld(server, rank)
        try:
            return bootstrap.start_transport(config_of(rank), world)
        except Exception as error:
            return error
        finally:
            world.close()

    with ThreadPoolExecutor(size) as pool:
        results = list(pool.map(start, range(size)))
    server.close(timeout_s=0)
    return results


def own_rank() -> int:
    return int(threading.current_thread().name.removeprefix("rank "))


@pytest.fixture
def stub_transports(monkeypatch: pytest.MonkeyPatch) -> None:
    Stub.opened = []
    monkeypatch.setattr(bootstrap, "survey_transports", lambda wish, *_: {"ucx": "", "tcp": ""})


def test_tcp_connects(capsys: pytest.CaptureFixture[str]) -> None:
    transports = start_all(3, lambda _: Config(transport="tcp", start_timeout=20.0))
    assert [transport.name for transport in transports] == ["tcp"] * 3
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda transport: transport.close(), transports))
    assert capsys.readouterr().err == ""


def test_one_rank_takes_loopback() -> None:
    (transport,) = start_all(1, lambda _: Config())
    assert transport.name == "loopback"
    transport.close()


def test_unknown_transport_is_refused_on_every_rank() -> None:
    assert all(isinstance(result, ConfigError) for result in start_all(2, lambda _: Config(transport="smoke")))


def test_taken_port_on_one_rank_fails_all() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        configs = [Config(transport="tcp", host="127.0.0.1", port=port if rank == 1 else 0) for rank in range(3)]
        results = start_all(3, lambda rank: configs[rank])
    assert all(isinstance(result, TransportError) for result in results)
    assert all(str(port) in str(result) for result in results), results
    assert all("rank 1" in str(results[rank]) for rank in (0, 2))


def test_auto_falls_back_on_all_ranks_when_one_cannot_open(
    stub_transports: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(name: str, config: Config, world: object, plan: object) -> Stub:
        if name == "ucx" and own_rank() == 1:
            raise TransportError("no device")
        stub = Stub()
        stub.name = name
        return stub

    monkeypatch.setattr(bootstrap, "_make", make)
    assert [transport.name for transport in start_all(3, lambda _: Config())] == ["tcp"] * 3
    assert [stub.closed for stub in Stub.opened if stub.name == "ucx"] == [True, True]
    said = capsys.readouterr().err
    because = "it cannot open the ucx transport: rank 1: TransportError: no device"
    assert said == f"intentpm: using the tcp transport, because {because}\n"


def test_auto_falls_back_on_all_ranks_when_one_cannot_connect(
    stub_transports: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unreachable(Stub):
        def connect(self, addresses: list[bytes], timeout_s: float) -> None:
            if self.name == "ucx" and own_rank() == 2:
                raise TransportError("no way")

    def make(name: str, config: Config, world: object, plan: object) -> Stub:
        stub = Unreachable()
        stub.name = name
        return stub

    monkeypatch.setattr(bootstrap, "_make", make)
    assert [transport.name for transport in start_all(3, lambda _: Config())] == ["tcp"] * 3
    assert [stub.closed for stub in Stub.opened if stub.name == "ucx"] == [True] * 3
    because = "it cannot connect over ucx: rank 2: TransportError: no way"
    assert capsys.readouterr().err == f"intentpm: using the tcp transport, because {because}\n"


def test_failure_to_connect_on_one_rank_fails_all_and_closes_all(
    stub_transports: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Stub):
        def connect(self, addresses: list[bytes], timeout_s: float) -> None:
            if own_rank() == 2:
                raise TransportError("no route to rank 0")

    monkeypatch.setattr(bootstrap, "_make", lambda *_: Failing())
    results = start_all(3, lambda _: Config())
    assert all(isinstance(result, TransportError) for result in results)
    assert str(results[0]) == "cannot connect over tcp: rank 2: TransportError: no route to rank 0"
    assert len(Stub.opened) == 6  # ucx, then tcp
    assert all(stub.closed for stub in Stub.opened)


def test_different_versions_are_an_error_on_every_rank(stub_transports: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bootstrap, "_greet", lambda *_: Greeting("2.0" if own_rank() == 1 else "1.0", 1, "auto", {"tcp": ""})
    )
    results = start_all(3, lambda _: Config())
    assert all(isinstance(result, VersionMismatchError) for result in results)
    assert len({str(result) for result in results}) == 1


IMPORT = """
import sys, time
import numpy
start = time.perf_counter()
import intentpm
seconds = time.perf_counter() - start
optional = ("mpi4py", "torch", "ucxx", "libucx", "click", "rich", "scipy")
print(seconds, *[name for name in optional if name in sys.modules])
"""


def test_import_is_fast_and_loads_nothing_optional() -> None:
    best_s = 1e9
    for _ in range(3):
        # With a launcher's variables too: only init() may look for its package.
        env = {**os.environ, "OMPI_COMM_WORLD_SIZE": "2", "RANK": "0"}
        done = subprocess.run(
            [sys.executable, "-c", IMPORT], capture_output=True, text=True, env=env, timeout=30, check=True
        )
        seconds, *loaded = done.stdout.split()
        assert loaded == []
        best_s = min(best_s, float(seconds))
    assert best_s < 0.1, f"import intentpm took {best_s * 1e3:.0f} ms beyond numpy"


def test_every_public_name_exists() -> None:
    import intentpm

    assert all(hasattr(intentpm, name) for name in intentpm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = intentpm.nonsense
