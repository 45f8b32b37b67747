"""A rank that is killed in the middle of training ends the job soon, by name, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.multiprocess

EPOCHS_BEFORE_THE_KILL = 3
PEER_TIMEOUT_S = 10
END_TIMEOUT_S = 30
COMMAND = ["train", "mf", "--generate", "users=2000,items=600,ratings=60000", "--epochs", "100000", "-n", "3"]


@pytest.fixture
def job(tmp_path):
    """``intentpm train mf`` on three ranks over tcp, some epochs into its training; killed at the end."""
    with open(tmp_path / "errors", "w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "intentpm", *COMMAND, "--transport", "tcp"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        try:
            for line in process.stdout:
                if line.split()[:1] == [str(EPOCHS_BEFORE_THE_KILL)]:
                    break
            yield process
        finally:
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
                child.kill()
            process.kill()
            process.wait(10)
            process.stdout.close()


def rank_processes(process):
    """The ranks of the job: rank -> psutil.Process."""
    ranks = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        rank = child.environ().get("INTENTPM_RANK")
        if rank is not None and child.environ().get("INTENTPM_RENDEZVOUS"):
            ranks[int(rank)] = child
    return ranks


def test_a_killed_rank_ends_the_job(job, tmp_path):
    ranks = rank_processes(job)
    assert sorted(ranks) == [0, 1, 2]
    start = time.monotonic()
    os.kill(ranks[1].pid, signal.SIGKILL)
    _, alive = psutil.wait_procs([ranks[0], ranks[2]], timeout=PEER_TIMEOUT_S)
    assert not alive, f"ranks still running {time.monotonic() - start:.1f} s after rank 1 was killed: {alive}"
    job.stdout.read()
    assert job.wait(END_TIMEOUT_S) != 0
    errors = (tmp_path / "errors").read_text()
    assert errors.count("PeerLostError: rank 1 ended without a goodbye") == 2, errors
    assert "Traceback" not in errors
