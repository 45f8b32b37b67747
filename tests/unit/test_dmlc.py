"""The variables by which DMLC's processes meet, and ranks that the rendezvous numbers."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from intentpm.foundation.errors import ConfigError, TransportError, WaitTimeoutError
from intentpm.launch.dmlc import DmlcWorld, is_dmlc, run_scheduler
from intentpm.launch.rendezvous import ANY_RANK, Rendezvous
from intentpm.launch.rendezvous_server import RendezvousServer
from intentpm.runtime.config import Config

pytestmark = pytest.mark.timeout(30)

SECRET = b"sixteen bytes or more"
SERVER = {
    "DMLC_NUM_SERVER": "2",
    "DMLC_ROLE": "server",
    "DMLC_PS_ROOT_URI": "127.0.0.1",
    "DMLC_PS_ROOT_PORT": "9091",
}


def come(server: RendezvousServer, **options: Any) -> Rendezvous:
    options = {"size": server.size, "secret": SECRET, "timeout_s": 5.0, **options}
    return Rendezvous([server.address], ANY_RANK, **options)


def test_ranks_are_numbered_as_they_come_and_a_free_number_is_given_again() -> None:
    server = RendezvousServer(3, SECRET)
    members = [come(server), come(server)]
    assert [member.rank for member in members] == [0, 1]
    members[0].close()
    members[0] = come(server)
    members.append(come(server))
    assert [member.rank for member in members] == [0, 1, 2]
    with ThreadPoolExecutor(3) as pool:
        gathered = list(pool.map(lambda member: member.allgather(b"%d" % member.rank, 10.0), members))
    assert gathered == [[b"0", b"1", b"2"]] * 3
    with pytest.raises(TransportError, match="rank 3 of 3 came to the rendezvous of a job of 3 ranks"):
        come(server)
    with pytest.raises(TransportError, match="of 4 came to the rendezvous of a job of 3 ranks"):
        come(server, size=4)
    with pytest.raises(TransportError, match=r"process \d+: .* does not have this rank's job secret"):
        come(server, secret=b"another secret, of another job")
    for member in members:
        member.close()
    server.close()


def test_the_server_waits_until_all_have_left() -> None:
    server = RendezvousServer(2, SECRET)
    members = [come(server), come(server)]
    with ThreadPoolExecutor(3) as pool:
        waiting = pool.submit(server.wait, 20.0)
        list(pool.map(lambda member: member.allgather(b"", 10.0), members))
        members[0].close()
        with pytest.raises(TimeoutError):
            waiting.result(0.2)
        members[1].close()
        assert waiting.result(10) == {}
    server.close()


def test_the_server_knows_who_left_without_a_goodbye() -> None:
    server = RendezvousServer(2, SECRET)
    members = [come(server), come(server)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda member: member.allgather(b"", 10.0), members))
    members[1]._socket.close()
    members[0].close()
    assert server.wait(10.0) == {1: "ended without a goodbye: it closed its connection to the rendezvous"}
    server.close()


def test_ranks_that_do_not_all_come() -> None:
    server = RendezvousServer(2, SECRET)
    member = come(server)
    with pytest.raises(WaitTimeoutError, match=r"1 of 2 ranks came within 0\.2 s"):
        server.wait(0.2)
    with pytest.raises(WaitTimeoutError, match="rank 1 never connected"):
        member.allgather(b"", 0.2)
    member.close()
    with pytest.raises(TransportError, match="left before all 2 were there"):
        server.wait(10.0)
    server.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"DMLC_ROLE": ""}, "DMLC_ROLE not set: the processes of a job meet by DMLC_NUM_SERVER"),
        ({"DMLC_PS_ROOT_PORT": "", "DMLC_PS_ROOT_URI": ""}, "DMLC_PS_ROOT_URI, DMLC_PS_ROOT_PORT not set"),
        ({"DMLC_ROLE": "worker"}, "DMLC_ROLE='worker': choose server"),
        ({"DMLC_NUM_SERVER": "two"}, "DMLC_NUM_SERVER='two'"),
        ({"DMLC_NUM_SERVER": "0"}, "DMLC_NUM_SERVER=0"),
        ({"DMLC_PS_ROOT_PORT": "70000"}, "DMLC_PS_ROOT_PORT=70000"),
    ],
)
def test_variables_that_cannot_be_used(change: dict[str, str], message: str) -> None:
    for role, start in ("server", DmlcWorld), ("scheduler", run_scheduler):
        with pytest.raises(ConfigError, match=message):
            start(Config(start_timeout=1.0), {**SERVER, "DMLC_ROLE": role, **change})


def test_roles_are_not_mixed_up() -> None:
    with pytest.raises(ConfigError, match=r"DMLC_ROLE='scheduler': setup\(\) and Server\(\) are for"):
        DmlcWorld(Config(), {**SERVER, "DMLC_ROLE": "scheduler"})
    with pytest.raises(ConfigError, match=r"DMLC_ROLE='server': scheduler\(\) is for"):
        run_scheduler(Config(), SERVER)


def test_which_variables_count() -> None:
    assert is_dmlc(SERVER)
    assert is_dmlc({"DMLC_ROLE": "server"})
    assert not is_dmlc({"DMLC_INTERFACE": "eth0", "DMLC_ROLE": ""})


def test_two_ranks_and_their_scheduler() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        variables = {**SERVER, "DMLC_PS_ROOT_PORT": str(listener.getsockname()[1])}
    config = Config(start_timeout=10.0)
    scheduler = threading.Thread(target=run_scheduler, args=(config, {**variables, "DMLC_ROLE": "scheduler"}))
    scheduler.start()
    with ThreadPoolExecutor(2) as pool:
        worlds = list(pool.map(lambda _: DmlcWorld(config, variables), range(2)))
    assert sorted((world.rank, world.size, world.local_ranks) for world in worlds) == [(0, 2, 2), (1, 2, 2)]
    assert len({world.secret for world in worlds}) == 1
    assert len(worlds[0].secret) == 32
    for world in worlds:
        world.close()
    scheduler.join(10)
    assert not scheduler.is_alive()
