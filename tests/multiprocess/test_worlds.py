"""The worlds of every launcher that is installed here, with real ranks."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.slurm import running_slurm, why_no_slurm

from intentpm.foundation.errors import ConfigError, Error, PeerLostError, TransportError, WaitTimeoutError
from intentpm.launch.world import find_world
from intentpm.runtime.config import read_config

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(120)]

SCRIPT = """
import json, os, sys, time
from intentpm.launch.world import find_world
from intentpm.runtime.config import read_config
start = time.monotonic()
{before}
world = find_world(read_config({{}}))
first = [item.decode() for item in world.allgather(f"from {{world.rank}}".encode(), 20)]
sizes = [len(item) for item in world.allgather(bytes(world.rank * 1000), 20)]
{after}
world.close()
world.close()
second = find_world(read_config({{}}))
secret = second.allgather(second.secret, 20)
second.close()
facts = [world.launcher, world.rank, world.size, world.local_ranks, first, sizes]
facts += [len(set(secret)), len(secret[0]) >= 16]
# One write, so that the lines of two ranks do not mix.
os.write(1, (json.dumps(facts) + chr(10)).encode())
"""


def write_script(folder: Path, before: str = "", after: str = "") -> str:
    path = folder / "world.py"
    path.write_text(SCRIPT.format(before=before, after=after))
    return str(path)


def expected_lines(launcher: str, size: int) -> list[list[object]]:
    said = [f"from {rank}" for rank in range(size)]
    sizes = [rank * 1000 for rank in range(size)]
    return [[launcher, rank, size, size, said, sizes, 1, True] for rank in range(size)]


def facts_of(output: str) -> list[list[object]]:
    return sorted(
        (json.loads(line) for line in output.splitlines() if line.startswith("[")), key=lambda facts: facts[1]
    )


def execute(
    argv: list[str], env: dict[str, str] | None = None, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


# -- local -------------------------------------------------------------------------------------------------------------


def gather_twice() -> tuple[str, int, int, int, list[bytes], list[bytes]]:
    world = find_world(read_config({}))
    try:
        first = world.allgather(b"%d" % world.rank, 20)
        return world.launcher, world.rank, world.size, world.local_ranks, first, world.allgather(b"x" * world.rank, 20)
    finally:
        world.close()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_local_ranks_meet(spawn_world, size: int) -> None:
    gathered = [b"%d" % rank for rank in range(size)], [b"x" * rank for rank in range(size)]
    assert spawn_world(size, gather_twice) == [("local", rank, size, size, *gathered) for rank in range(size)]


def leave_or_wait(leaver: int, how: str) -> None:
    if int(os.environ["INTENTPM_RANK"]) == leaver:
        if how == "never opens its world":
            sys.exit(0)
        world = find_world(read_config({}))
        if how == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        world.close()
        return
    world = find_world(read_config({}))
    try:
        world.allgather(b"", 40)
    finally:
        world.close()


@pytest.mark.parametrize("how", ["never opens its world", "is killed", "closes early"])
def test_a_rank_lost_before_the_start_is_an_error_on_the_others_at_once(spawn_world, how: str) -> None:
    started = time.monotonic()
    outcomes = spawn_world.outcomes(3, leave_or_wait, 1, how)
    assert time.monotonic() - started < 20
    for rank in (0, 2):
        assert isinstance(outcomes[rank].error, PeerLostError), outcomes[rank].traceback
        assert outcomes[rank].error.rank == 1


def come_late(delay_s: float) -> None:
    if os.environ["INTENTPM_RANK"] == "1":
        time.sleep(delay_s)
        return
    world = find_world(read_config({}))
    try:
        world.allgather(b"", 0.5)
    finally:
        world.close()


def test_a_rank_that_does_not_come_is_named(spawn_world) -> None:
    outcomes = spawn_world.outcomes(2, come_late, 5.0, grace_s=20)
    assert isinstance(outcomes[0].error, WaitTimeoutError)
    assert "rank 1 never connected" in str(outcomes[0].error)


def use_own_secret() -> str:
    secret = "another secret, " + os.environ["INTENTPM_RANK"]
    try:
        find_world(read_config({"secret": secret}))
    except TransportError as error:
        return str(error)
    raise AssertionError("the rendezvous took a secret that is not the job's")


def test_wrong_secret_is_refused(spawn_world) -> None:
    assert all("INTENTPM_SECRET differs" in message for message in spawn_world(2, use_own_secret))


def leave_things_open() -> None:
    import threading

    threading.Thread(target=time.sleep, args=(30,), daemon=True, name="forgotten").start()


def test_spawn_world_reports_leaks_hangs_and_tracebacks(spawn_world) -> None:
    from support.world import RankFailedError

    with pytest.raises(RankFailedError, match=r"left open: \{'threads': 1\}; Python threads: \['forgotten'\]"):
        spawn_world(1, leave_things_open)
    with pytest.raises(RankFailedError, match=r"(?s)did not end within 4 s.*the target did not return.*in time_away"):
        spawn_world(1, time_away, timeout_s=4.0)
    with pytest.raises(RankFailedError, match=r"(?s)rank 1 of 2 failed .*1\).*in fail_on.*ValueError: on purpose"):
        spawn_world(2, fail_on, 1)


def time_away() -> None:
    time.sleep(50)


def fail_on(rank: int) -> None:
    if int(os.environ["INTENTPM_RANK"]) == rank:
        raise ValueError("on purpose")


# -- mpirun ------------------------------------------------------------------------------------------------------------


def mpirun_of(kind: str) -> list[str]:
    if kind == "wheel":
        found = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        found = found if found and not found.startswith("/usr/bin") else None
    else:
        found = shutil.which("mpirun.openmpi")
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'intentpm[mpi]'")
    if found is None:
        pytest.skip(f"no mpirun of the {'openmpi wheel' if kind == 'wheel' else 'Debian package openmpi-bin'}")
    return [found, *(["--allow-run-as-root"] if os.geteuid() == 0 else []), "--oversubscribe"]


@pytest.mark.parametrize("kind", ["wheel", "system"])
@pytest.mark.parametrize("size", [1, 3])
def test_mpi_ranks_meet(tmp_path: Path, kind: str, size: int) -> None:
    done = execute([*mpirun_of(kind), "-n", str(size), sys.executable, write_script(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert facts_of(done.stdout) == expected_lines("mpi", size), done.stderr


def test_mpi_is_left_to_the_program(tmp_path: Path) -> None:
    before = (
        "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; MPI.Init_thread(MPI.THREAD_SERIALIZED)"
    )
    after = (
        "assert MPI.COMM_WORLD.allreduce(1) == world.size and not MPI.Is_finalized() "
        "and MPI.Query_thread() == MPI.THREAD_SERIALIZED"
    )
    path = write_script(tmp_path, before, after)
    with open(path, "a") as file:
        file.write("assert MPI.COMM_WORLD.allreduce(2) == 2 * world.size; MPI.Finalize()")
    done = execute([*mpirun_of("wheel"), "-n", "2", sys.executable, path])
    assert done.returncode == 0, done.stderr
    assert facts_of(done.stdout) == expected_lines("mpi", 2)


MPI_FAILURES = {
    # rank 1 has started MPI but never opens its world
    "late": (
        "from mpi4py import MPI\nif MPI.COMM_WORLD.rank == 1: time.sleep(30)\n",
        "WaitTimeoutError: rank 0: not all 2 ranks came",
    ),
    # rank 1 has not even started MPI, so MPI_Init does not return on rank 0
    "never": (
        "if os.environ['OMPI_COMM_WORLD_RANK'] == '1': time.sleep(30)\n",
        "_wait_for_all_ranks_in_mpi_init",
    ),
}


@pytest.mark.parametrize(("before", "message"), MPI_FAILURES.values(), ids=MPI_FAILURES.keys())
def test_mpi_rank_that_does_not_come_is_no_hang(tmp_path: Path, before: str, message: str) -> None:
    env = {**os.environ, "INTENTPM_START_TIMEOUT": "2"}
    started = time.monotonic()
    done = execute([*mpirun_of("wheel"), "-n", "2", sys.executable, write_script(tmp_path, before)], env=env)
    assert done.returncode != 0
    assert message in done.stderr
    assert time.monotonic() - started < 25


def test_mpi_rank_that_dies_of_an_exception_ends_the_job(tmp_path: Path) -> None:
    after = "if world.rank == 0: raise ValueError('on purpose')\ntime.sleep(40)"
    started = time.monotonic()
    done = execute([*mpirun_of("wheel"), "-n", "2", sys.executable, write_script(tmp_path, "", after)])
    assert done.returncode != 0
    assert "ValueError: on purpose" in done.stderr
    assert time.monotonic() - started < 25


def test_missing_mpi4py_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setattr(os, "environ", {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"})
    with pytest.raises(ConfigError, match=r"OMPI_COMM_WORLD_SIZE=2.*mpi4py is not installed.*'intentpm\[mpi\]'"):
        find_world(read_config({}))


def test_missing_torch_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    monkeypatch.setattr(os, "environ", variables)
    with pytest.raises(ConfigError, match=r"torch is not installed: pip install 'intentpm\[torch\]'"):
        find_world(read_config({}))


# -- torchrun ----------------------------------------------------------------------------------------------------------

PROCESS_GROUP = (
    "import datetime, torch, torch.distributed as dist\n"
    "dist.init_process_group('gloo', timeout=datetime.timedelta(seconds=20))\n"
    "total = torch.ones(1); dist.all_reduce(total); assert total.item() == dist.get_world_size()\n"
)


def skip_without_torch() -> None:
    # Found, not imported: the ranks import it, in processes of their own.
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: pip install 'intentpm[torch]'")


@pytest.fixture(params=["torchrun", "env"])
def torch_launch(request: pytest.FixtureRequest, free_port: int):
    """Runs a script on n ranks under torchrun, or with nothing but the variables of ``env://`` set."""
    skip_without_torch()

    def under_torchrun(n: int, path: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), "--master-port"]
        return execute([*argv, str(free_port), path], timeout_s=90)

    def with_variables(n: int, path: str) -> subprocess.CompletedProcess[str]:
        # The shell's `wait` with the last of the ids gives that rank's exit code; all must be 0.
        rank = f"RANK=$r WORLD_SIZE={n} MASTER_ADDR=127.0.0.1 MASTER_PORT={free_port} {sys.executable} {path}"
        command = f'ids=; for r in $(seq 0 {n - 1}); do {rank} & ids="$ids $!"; done; '
        return execute(["sh", "-c", command + "for id in $ids; do wait $id || exit 1; done"], timeout_s=90)

    return under_torchrun if request.param == "torchrun" else with_variables


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.mark.parametrize(("before", "after"), [("", PROCESS_GROUP), (PROCESS_GROUP, "")], ids=["before", "after"])
def test_torchrun_ranks_meet_and_torch_is_not_disturbed(torch_launch, tmp_path: Path, before: str, after: str) -> None:
    done = torch_launch(2, write_script(tmp_path, before, after))
    assert done.returncode == 0, done.stderr
    assert facts_of(done.stdout) == expected_lines("torchrun", 2), done.stderr


def test_torchrun_rank_that_does_not_come_is_named(tmp_path: Path, free_port: int) -> None:
    skip_without_torch()
    env = {**os.environ, "RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    env["INTENTPM_START_TIMEOUT"] = "1"
    done = execute([sys.executable, write_script(tmp_path)], env=env)
    assert "WaitTimeoutError: not all 3 ranks came within 1 s: ranks 1, 2 did not" in done.stderr


# -- srun --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    if why_no_slurm():
        pytest.skip(why_no_slurm())
    with running_slurm() as environment:
        yield environment


@pytest.mark.parametrize("options", [[], ["--mpi=pmi2"]], ids=["plain", "pmi2"])
def test_slurm_ranks_meet(slurm: dict[str, str], tmp_path: Path, options: list[str]) -> None:
    done = execute(["srun", *options, "-n", "3", sys.executable, write_script(tmp_path)], env=slurm)
    assert done.returncode == 0, done.stderr
    assert facts_of(done.stdout) == expected_lines("slurm", 3), done.stderr


def test_batch_script_is_alone_and_its_steps_are_not(slurm: dict[str, str], tmp_path: Path) -> None:
    path = write_script(tmp_path)
    batch = tmp_path / "batch.sh"
    batch.write_text(f"#!/bin/sh\n{sys.executable} {path}\nsrun {sys.executable} {path}\n")
    done = execute(["sbatch", "--wait", "-n", "2", "-o", str(tmp_path / "out"), str(batch)], env=slurm)
    output = (tmp_path / "out").read_text()
    assert done.returncode == 0, done.stderr + output
    alone, *step = sorted(output.splitlines(), key=lambda line: "slurm" in line)
    assert facts_of(alone) == expected_lines("alone", 1)
    assert facts_of("\n".join(step)) == expected_lines("slurm", 2)


def test_slurm_rank_that_does_not_come_is_named(slurm: dict[str, str], tmp_path: Path) -> None:
    path = write_script(tmp_path, "if os.environ['SLURM_PROCID'] == '1': time.sleep(10); sys.exit(0)")
    done = execute(["srun", "-n", "2", sys.executable, path], env={**slurm, "INTENTPM_START_TIMEOUT": "2"})
    assert done.returncode != 0
    assert "WaitTimeoutError: not all 2 ranks came within 2 s: rank 1 never connected" in done.stderr


def test_slurm_without_rank_0_is_a_clear_error(slurm: dict[str, str], tmp_path: Path) -> None:
    path = write_script(tmp_path, "if os.environ['SLURM_PROCID'] == '0': time.sleep(10); sys.exit(0)")
    done = execute(["srun", "-n", "2", sys.executable, path], env={**slurm, "INTENTPM_START_TIMEOUT": "2"})
    assert done.returncode != 0
    assert "rank 1: rank 0 could not be reached within 2 s" in done.stderr


def test_world_of_a_process_alone() -> None:
    done = execute([sys.executable, "-c", SCRIPT.format(before="", after="")])
    assert facts_of(done.stdout) == expected_lines("alone", 1), done.stderr
    assert issubclass(ConfigError, Error)
