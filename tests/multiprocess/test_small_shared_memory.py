"""Ranks over UCX where its shared memory does not suffice, or its settings crash it: they run, or say why not."""

import os
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("intentpm.transports.ucx", exc_type=Exception)
pytestmark = pytest.mark.timeout(90)

SCRIPT = """
import os, sys
import numpy as np
if len(sys.argv) > 2:  # by rank
    os.environ["UCX_TLS"] = sys.argv[2 + int(os.environ["INTENTPM_RANK"])]
import intentpm
with intentpm.init(sys.argv[1], start_timeout=20) as pm:
    table = pm.create_table("t", 2000, 256)
    worker = pm.worker()
    for step in range(3):
        keys = np.arange(1500)
        worker.push_async(table, keys, np.ones((1500, 256), np.float32))
        worker.pull(table, keys)
        worker.advance_clock()
    pm.barrier()
    print(f"over {pm.transport_name}: {worker.pull(table, [20])[0, 0]:g}", flush=True)
"""


@pytest.fixture
def run(tmp_path: Path):
    """run(setup, ranks, transport, **variables): the script's ranks, in a namespace of their own after ``setup``."""
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))

    def start(setup: str, ranks: int, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        job = [sys.executable, "-m", "intentpm", "run", "-n", str(ranks), str(tmp_path / "script.py"), *arguments]
        command = job
        if setup:
            if os.geteuid() != 0 or subprocess.run(["unshare", "-mi", "true"], check=False).returncode != 0:
                pytest.skip("needs root, for namespaces")
            command = ["unshare", "-mi", "bash", "-ec", f"{setup}\nexec {shlex.join(job)}"]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=80, check=False, env={**os.environ, **variables}
        )

    return start


def shm(options: str) -> str:
    return f"mount -t tmpfs -o {options} tmpfs /dev/shm"


@pytest.mark.parametrize("transport", ["ucx", "auto"])
@pytest.mark.parametrize(
    ("setup", "ranks", "part", "why"),
    [
        (shm("size=16m"), 2, "posix", "16 MiB free"),
        (shm("size=64m") + "; head -c 50000000 /dev/zero > /dev/shm/taken", 4, "posix", "16 MiB free"),
        (shm("size=64m,nr_inodes=1"), 2, "posix", "room for 0 files"),
        (shm("size=64m,ro"), 2, "posix", "not writable"),
        ("sysctl -qw kernel.shmmax=1000000", 2, "sysv", "kernel.shmmax"),
        ("sysctl -qw kernel.shmall=100", 2, "sysv", "kernel.shmall"),
        ("sysctl -qw kernel.shmmni=3", 2, "sysv", "kernel.shmmni"),
    ],
    ids=["small", "nearly full", "no inodes", "read-only", "shmmax", "shmall", "shmmni"],
)
def test_shared_memory_that_does_not_suffice_is_left_out(
    run, transport: str, setup: str, ranks: int, part: str, why: str
) -> None:
    done = run(setup, ranks, transport)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"over ucx: {3 * ranks}") == ranks
    said = [line for line in done.stderr.splitlines() if "using the ucx transport with less" in line]
    assert len(said) == 1
    assert f"without {part} shared memory" in said[0]
    assert why in said[0]


def test_without_any_shared_memory_ucx_takes_the_network(run) -> None:
    done = run(f"{shm('size=16m')}; sysctl -qw kernel.shmmni=0", 2, "ucx")
    assert done.stdout.count("over ucx: 6") == 2, done.stderr


def test_enough_shared_memory_is_used_without_a_word(run) -> None:
    done = run(shm("size=64m"), 2, "ucx")
    assert done.stdout.count("over ucx: 6") == 2
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"UCX_TLS": "self"}, "UCX_TLS=self allows ucx no way between ranks"),
        ({"UCX_SYSV_SEG_SIZE": "64k"}, "UCX_SYSV_SEG_SIZE=64k, UCX crashes: a process that tried it was killed by SIG"),
        ({"UCX_MM_RX_MAX_BUFS": "4"}, "UCX_MM_RX_MAX_BUFS=4, UCX does not work"),
    ],
    ids=["self", "segments", "buffers"],
)
def test_settings_that_leave_no_way_or_crash(run, variables: dict[str, str], why: str) -> None:
    fallen_back = run("", 2, "auto", **variables)
    if "killed" in why and "over ucx" in fallen_back.stdout:
        pytest.skip("this UCX does not crash of it")
    assert fallen_back.stdout.count("over tcp: 6") == 2, fallen_back.stderr
    assert "using the tcp transport, because ucx cannot be used" in fallen_back.stderr
    assert why in fallen_back.stderr
    refused = run("", 2, "ucx", **variables)
    assert refused.returncode == 1
    assert refused.stderr.count("TransportUnavailableError: transport 'ucx' cannot be used") == 2
    assert why in refused.stderr


def test_auto_falls_back_on_all_ranks_when_ucx_cannot_connect_them(run) -> None:
    done = run("", 2, "auto", "posix,self", "sysv,self")
    assert done.stdout.count("over tcp: 6") == 2, done.stderr
    assert "using the tcp transport, because it cannot connect over ucx: rank" in done.stderr
    assert run("", 2, "ucx", "posix,self", "sysv,self").returncode == 1
