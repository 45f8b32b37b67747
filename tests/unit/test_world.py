"""Which launcher is found from which variables, and the pure parts of the worlds."""

import pytest

from intentpm.foundation.errors import ConfigError, TransportError, TransportUnavailableError, VersionMismatchError
from intentpm.launch.agreement import Greeting, check_versions, usable_transports
from intentpm.launch.launchers import detect_launcher
from intentpm.launch.local import LocalWorld, parse_address
from intentpm.launch.mpi import check_size
from intentpm.launch.slurm import first_host, meeting_point, meeting_secret
from intentpm.runtime.config import Config

LOCAL = {"INTENTPM_RANK": "0", "INTENTPM_SIZE": "2", "INTENTPM_RENDEZVOUS": "127.0.0.1:5", "INTENTPM_SECRET": "s" * 16}
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_RANK": "0"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1"}
HYDRA = {"PMI_SIZE": "2", "PMI_RANK": "1", "PMI_FD": "7"}
SRUN = {
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "2",
}
SBATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_NODELIST": "n1"}


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({}, "alone"),
        (LOCAL, "local"),
        (TORCHRUN, "torchrun"),
        (OPEN_MPI, "mpi"),
        (HYDRA, "mpi"),
        (SRUN, "slurm"),
        (SBATCH, "alone"),
        (SRUN | HYDRA, "slurm"),  # srun --mpi=pmi2
        (SRUN | {"PMIX_RANK": "1"}, "slurm"),  # srun --mpi=pmix
        (SRUN | HYDRA | {"PMI_SIZE": "8"}, "mpi"),  # hydra starts its proxies with srun
        (SRUN | OPEN_MPI, "mpi"),  # so does Open MPI
        (SRUN | TORCHRUN, "torchrun"),
        (SRUN | OPEN_MPI | TORCHRUN | LOCAL, "local"),
        (OPEN_MPI | {"INTENTPM_LAUNCHER": "alone"}, "alone"),
        ({"RANK": "0"}, "alone"),
        ({"INTENTPM_LAUNCHER": "auto"}, "alone"),
    ],
)
def test_launcher_is_the_innermost(environment: dict[str, str], launcher: str) -> None:
    assert detect_launcher(environment) == launcher


def test_unknown_launcher_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"INTENTPM_LAUNCHER='pbs': choose one of auto, alone"):
        detect_launcher({"INTENTPM_LAUNCHER": "pbs"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"INTENTPM_RANK": "2"}, "needs 0 <= rank < size"),
        ({"INTENTPM_RANK": "one"}, "INTENTPM_RANK='one': needs a whole number"),
        ({"INTENTPM_RENDEZVOUS": "nowhere"}, "INTENTPM_RENDEZVOUS='nowhere': needs host:port"),
    ],
)
def test_broken_local_variables_are_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LocalWorld(Config(secret="s" * 16), LOCAL | change)


def test_short_secret_is_refused() -> None:
    with pytest.raises(ConfigError, match="INTENTPM_SECRET has 5 bytes: needs at least 16"):
        LocalWorld(Config(secret="short"), LOCAL)


@pytest.mark.parametrize(
    ("value", "address"), [("h:1", ("h", 1)), ("[::1]:65535", ("::1", 65535)), ("::1:9", ("::1", 9))]
)
def test_addresses(value: str, address: tuple[str, int]) -> None:
    assert parse_address({"A": value}, "A") == address


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("a,b", "a"),
        ("n[007-010,12],m1", "n007"),
        ("n[3,5]", "n3"),
        ("rack[1-2]n[30-40]-ib,x", "rack1n30-ib"),
    ],
)
def test_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_slurm_meeting_point_is_the_same_for_all_ranks_and_differs_between_steps() -> None:
    step = SRUN | {"SLURM_STEP_NODELIST": "n[1-2]"}
    host, ports = meeting_point(step)
    assert host == "n1"
    assert len(set(ports)) > 10
    assert all(1024 < port < 32768 for port in ports)
    assert meeting_point(step | {"SLURM_PROCID": "0"}) == (host, ports)
    assert meeting_point(step | {"SLURM_STEP_ID": "1"})[1] != ports
    assert meeting_point(step | {"SLURM_RESTART_COUNT": "1"})[1] != ports, "a requeued job keeps its number"
    assert meeting_point(step | {"INTENTPM_RENDEZVOUS": "head:7"}) == ("head", [7])
    with pytest.raises(ConfigError, match="SLURM_STEP_NODELIST is not set"):
        meeting_point(SRUN)


def test_slurm_secret_is_the_one_given_or_derived_from_the_step() -> None:
    assert meeting_secret(Config(secret="given by the user"), SRUN) == b"given by the user"
    derived = meeting_secret(Config(), SRUN)
    assert derived == meeting_secret(Config(), SRUN | {"SLURM_PROCID": "0"})
    assert derived != meeting_secret(Config(), SRUN | {"SLURM_STEP_ID": "1"})
    assert derived != meeting_secret(Config(), SRUN | {"SLURM_RESTART_COUNT": "1"})


def test_mismatched_mpi_libraries_are_explained() -> None:
    check_size(2, OPEN_MPI, "Open MPI v5")
    with pytest.raises(ConfigError, match=r"started 2 ranks, but mpi4py sees a world of 1: .*\(Open MPI v5, x\)"):
        check_size(1, HYDRA, "Open MPI v5, x\nmore")


def greeting(version: str = "1.0", protocol: int = 1, wish: str = "auto", **transports: str) -> Greeting:
    return Greeting(version, protocol, wish, transports or {"ucx": "", "tcp": ""})


NO_UCX = {"ucx": "ucxx is not installed", "tcp": ""}


@pytest.mark.parametrize(
    ("greetings", "usable", "passed_over"),
    [
        ([greeting(), greeting()], ["ucx", "tcp"], []),
        ([greeting(), greeting(**NO_UCX)], ["tcp"], ["ucx cannot be used: rank 1: ucxx is not installed"]),
        ([greeting(wish="tcp"), greeting()], ["tcp"], []),
        ([greeting(wish="tcp"), greeting(wish="tcp")], ["tcp"], []),
    ],
)
def test_all_ranks_take_one_transport(greetings: list[Greeting], usable: list[str], passed_over: list[str]) -> None:
    assert usable_transports(greetings) == (usable, passed_over)


@pytest.mark.parametrize(
    ("greetings", "kind", "message"),
    [
        ([greeting(wish="tcp"), greeting(wish="ucx")], ConfigError, "tcp by rank 0, ucx by rank 1"),
        ([greeting(wish="ucx"), greeting(**NO_UCX)], TransportUnavailableError, "'ucx' .* rank 1: ucxx is not inst"),
        ([greeting(wish="smoke")] * 2, TransportUnavailableError, "'smoke' .* ranks 0, 1: no transport of that name"),
        ([greeting(tcp="no network")] * 2, TransportError, "no transport works on every rank: tcp .* no network"),
    ],
)
def test_no_common_transport(greetings: list[Greeting], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        usable_transports(greetings)


def test_versions_must_be_equal() -> None:
    check_versions([greeting()] * 3)
    with pytest.raises(
        VersionMismatchError, match=r"intentpm 1.0 \(protocol 1\) on ranks 0, 2; intentpm 1.1 .* rank 1"
    ):
        check_versions([greeting(), greeting(version="1.1"), greeting()])
    with pytest.raises(VersionMismatchError, match="protocol 2"):
        check_versions([greeting(), greeting(protocol=2)])


def test_greetings_travel() -> None:
    assert Greeting.unpack(greeting(**NO_UCX).pack(), 0) == greeting(**NO_UCX)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", "rank 3 does not speak"),
        (b"[]", "rank 3 does not"),
        (b'{"version": "9.1"}', "rank 3 runs intentpm 9.1"),
    ],
)
def test_greetings_of_another_kind_are_a_version_mismatch(data: bytes, message: str) -> None:
    with pytest.raises(VersionMismatchError, match=message):
        Greeting.unpack(data, 3)
