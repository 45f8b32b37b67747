"""Ranks that meet where others have met before, or tried to: restarted jobs, second programs, ranks that come again."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.slurm import running_slurm, why_no_slurm

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(150)]

RUN = [sys.executable, "-m", "intentpm", "run", "--no-prefix", "--timeout", "100", "-n", "2"]
MPIRUN = [*("mpirun", "--oversubscribe"), *(["--allow-run-as-root"] if os.geteuid() == 0 else []), "-n", "2"]
NEEDS_TORCH = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed: pip install 'intentpm[torch]'"
)

MEET = """
import os, sys, time
from intentpm.launch.world import find_world
from intentpm.runtime.config import read_config
def meet(word, start_timeout=30.0):
    world = find_world(read_config({"start_timeout": start_timeout}))
    said = world.allgather(f"{word}{world.rank}".encode(), start_timeout)
    world.close()
    return b" ".join(said).decode()
def say(text):
    os.write(1, (text + chr(10)).encode())
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    def write(text: str, name: str = "program.py") -> str:
        (tmp_path / name).write_text(MEET + text)
        return str(tmp_path / name)

    return write


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    if why_no_slurm():
        pytest.skip(why_no_slurm())
    with running_slurm() as environment:
        yield environment


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a program in a session of its own; what is left of these is killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(argv: list[str], **variables: str) -> subprocess.Popen[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            argv, env={**os.environ, "PATH": path, **variables}, stdout=-1, stderr=-1, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=20)


def lines_of(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    return sorted(out.splitlines())


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options]


# -- a job that is restarted -------------------------------------------------------------------------------------------


@NEEDS_TORCH
def test_two_torchrun_agents_that_count_restarts_apart(start, script, tmp_path: Path, free_port: int) -> None:
    """A rank dies while the other notices nothing: its agent restarts it without counting a restart."""
    mark = tmp_path / "mark"
    path = script(f"""
import intentpm
first = not os.path.exists({str(mark)!r})
try:
    with intentpm.init(start_timeout=60) as pm:
        pm.barrier()
        if first:
            if pm.rank == 1:
                open({str(mark)!r}, "w").close()
                os._exit(3)
            time.sleep(90)
        pm.barrier()
        say(f"rank {{pm.rank}} trained")
except intentpm.Error as error:
    say(f"the restart failed: {{error}}")
    raise
""")
    options = [f"--rdzv-endpoint=127.0.0.1:{free_port}", "--rdzv-backend=c10d", "--rdzv-id=7", "--max-restarts=1"]
    agents = [start(torchrun("--nnodes=2", "--nproc-per-node=1", *options, path)) for _ in range(2)]
    assert sorted(line for agent in agents for line in lines_of(agent)) == ["rank 0 trained", "rank 1 trained"]


# -- a second program, started by the shell that is the rank -----------------------------------------------------------

TWO_PROGRAMS = "{python} {first} && {python} {second}"


@pytest.fixture
def two_programs(script) -> list[str]:
    # The first ends at once, without closing anything; rank 1 is the slower one of the second.
    first = script("say(meet('a'))\nos._exit(0)", "first.py")
    second = script("time.sleep(0.3 * int(sys.argv[1]))\nsay(meet('b'))", "second.py")
    rank = "${INTENTPM_RANK:-${RANK:-$SLURM_PROCID}}"
    return ["sh", "-c", f"{sys.executable} {first} && exec {sys.executable} {second} {rank}"]


BOTH = ["a0 a1", "a0 a1", "b0 b1", "b0 b1"]


def test_second_program_of_each_rank_under_intentpm_run(start, two_programs: list[str]) -> None:
    assert lines_of(start([*RUN, *two_programs])) == BOTH


@NEEDS_TORCH
def test_second_program_of_each_rank_under_torchrun(start, two_programs: list[str], free_port: int) -> None:
    options = ["--no-python", "--nproc-per-node=2", f"--master-port={free_port}"]
    assert lines_of(start(torchrun(*options, *two_programs))) == BOTH


@NEEDS_TORCH
def test_second_program_of_each_rank_where_rank_0_serves_the_store(start, script, free_port: int) -> None:
    # Rank 0 stays a while, so that rank 1's second program finds the store of the first.
    first = script("say(meet('a'))\nif os.environ['RANK'] == '0': time.sleep(2)", "first.py")
    second = script("say(meet('b'))", "second.py")
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    command = ["sh", "-c", f"{sys.executable} {first} && exec {sys.executable} {second}"]
    ranks = [start(command, RANK=str(rank), **job) for rank in range(2)]
    assert sorted(line for rank in ranks for line in lines_of(rank)) == BOTH


def test_second_program_of_each_rank_under_srun(start, two_programs: list[str], slurm: dict[str, str]) -> None:
    assert lines_of(start(["srun", "-n", "2", *two_programs], **slurm)) == BOTH


def test_second_program_of_a_rank_that_comes_before_rank_0s_first_has_ended_under_srun(
    start, script, slurm: dict[str, str]
) -> None:
    first = script("say(meet('a'))\ntime.sleep(2.0 * (os.environ['SLURM_PROCID'] == '0'))\nos._exit(0)", "first.py")
    second = script("say(meet('b'))", "second.py")
    command = ["sh", "-c", f"{sys.executable} {first} && exec {sys.executable} {second}"]
    assert lines_of(start(["srun", "-n", "2", *command], **slurm)) == BOTH


# -- two jobs where one could be ---------------------------------------------------------------------------------------


@NEEDS_TORCH
def test_two_torchrun_jobs_on_one_store(start, script, free_port: int) -> None:
    path = script("word = os.environ['TORCHELASTIC_RUN_ID']\ntime.sleep(1.0 * (word == 'x'))\nsay(meet(word))")
    serve = f"import time, torch.distributed as d; s = d.TCPStore('127.0.0.1', {free_port}, is_master=True, "
    server = start([sys.executable, "-c", serve + "wait_for_workers=False); time.sleep(140)"])
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    job["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    ranks = [
        start([sys.executable, path], RANK=str(rank), TORCHELASTIC_RUN_ID=run, **job)
        for rank in range(2)
        for run in ("x", "y")
    ]
    assert sorted(line for rank in ranks for line in lines_of(rank)) == ["x0 x1", "x0 x1", "y0 y1", "y0 y1"]
    assert server.poll() is None, "the store that both jobs used"


# -- a rank that gives up and comes again ------------------------------------------------------------------------------

COMES_AGAIN = """
from intentpm.foundation.errors import Error
{before}
if os.environ["{variable}"] == "1":
    try:
        meet("never", 0.5)
    except Error as error:
        assert "0.5 s" in str(error), error
    else:
        raise AssertionError("rank 0 cannot have come yet")
    open(sys.argv[1], "w").close()
else:
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
say(meet("a"))
say(meet("b"))
"""


@pytest.fixture
def coming_again(script, tmp_path: Path) -> Callable[..., list[str]]:
    def write(variable: str, before: str = "") -> list[str]:
        return [script(COMES_AGAIN.format(variable=variable, before=before)), str(tmp_path / "gave up")]

    return write


def test_a_rank_that_gave_up_comes_again_under_intentpm_run(start, coming_again) -> None:
    assert lines_of(start([*RUN, *coming_again("INTENTPM_RANK")])) == BOTH


def test_a_rank_that_gave_up_comes_again_under_mpirun(start, coming_again) -> None:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'intentpm[mpi]'")
    # MPI_Init waits for all ranks, without a deadline of ours.
    command = coming_again("OMPI_COMM_WORLD_RANK", "from mpi4py import MPI")
    assert lines_of(start([*MPIRUN, sys.executable, *command])) == BOTH


@NEEDS_TORCH
def test_a_rank_that_gave_up_comes_again_under_torchrun(start, coming_again, free_port: int) -> None:
    options = ["--nproc-per-node=2", f"--master-port={free_port}"]
    assert lines_of(start(torchrun(*options, *coming_again("RANK")))) == BOTH


def test_a_rank_that_gave_up_comes_again_under_srun(start, coming_again, slurm: dict[str, str]) -> None:
    assert lines_of(start(["srun", "-n", "2", sys.executable, *coming_again("SLURM_PROCID")], **slurm)) == BOTH
