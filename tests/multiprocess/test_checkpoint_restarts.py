"""Training whose rank is killed goes on from its last checkpoint: started anew by a launcher, or with fewer ranks."""

import importlib.util
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import intentpm
import intentpm.checkpoint

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(600)]

TASKS = {
    "kge": ["--generate", "entities=300,relations=5,triples=6000,types=5", "--dim", "8", "--epochs", "6"],
    "wv": ["--generate", "words=300,tokens=60000", "--dim", "8", "--epochs", "4"],
    "ctr": ["--generate", "rows=6000,held_out=400,fields=4,keys=400", "--dim", "4", "--hidden", "16", "--epochs", "4"],
    "gnn": ["--generate", "nodes=1500,edges=6000", "--dim", "8", "--epochs", "8"],
    "mf": ["--generate", "users=600,items=300,ratings=40000", "--dim", "4", "--epochs", "8"],
}
NEEDS_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
NEEDS_FSSPEC = pytest.mark.skipif(importlib.util.find_spec("fsspec") is None, reason="fsspec is not installed")
OF_TORCH = ("ctr", "gnn")
DEADLINE_S = 250.0


def train(task: str, out: Path, *more: str) -> list[str]:
    options = ["--out", str(out), "--checkpoint-every", "0.3s", "--resume", "--batch", "20"]
    return ["-m", "intentpm", "train", task, *TASKS[task], *options, *more]


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(argv: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=20)


def kill_a_rank(process: subprocess.Popen[str], checkpoints: Path | str, rank_variables: tuple[str, ...]) -> None:
    """Once there is a checkpoint, rank 1 dies."""
    end = time.monotonic() + DEADLINE_S
    while intentpm.latest(checkpoints) is None:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "no checkpoint was made"
        time.sleep(0.02)
    for child in psutil.Process(process.pid).children(recursive=True):
        if any(child.environ().get(name) == "1" for name in rank_variables):
            child.send_signal(signal.SIGKILL)
            return
    raise AssertionError("there is no rank 1")


def check_whole(task: str, out: Path, ranks: int) -> None:
    """All epochs are in the results, and it has learned something."""
    rows = json.loads((out / f"train-{task}-n{ranks}.json").read_text())["rows"]
    epochs = int(TASKS[task][-1])
    assert [row["epoch"] for row in rows] == list(range(epochs + 1))
    if task == "kge":
        assert rows[-1]["mrr"] > rows[0]["mrr"] + 0.05
    else:
        losses = [row["loss"] for row in rows[1:] if row["loss"] is not None and math.isfinite(row["loss"])]
        assert len(losses) >= epochs - 1, "the epoch gone on with may have had no batch left"
        assert losses[-1] < 1.1 * losses[0]
    with intentpm.checkpoint.open(out / f"checkpoints-{task}") as opened:
        assert opened.extra[0]["epoch"] == epochs + 1


@pytest.mark.parametrize("task", [pytest.param(task, marks=NEEDS_TORCH if task in OF_TORCH else ()) for task in TASKS])
def test_intentpm_run_starts_the_job_anew(start, tmp_path: Path, task: str) -> None:
    ranks = 2 if task in OF_TORCH else 3  # PyTorch takes long to import
    run = [sys.executable, "-m", "intentpm", "run", "-n", str(ranks), "--restarts", "1", "--timeout", "400"]
    process = start([*run, *train(task, tmp_path)])
    kill_a_rank(process, tmp_path / f"checkpoints-{task}", ("INTENTPM_RANK",))
    said = process.communicate(timeout=DEADLINE_S)[0]
    assert process.returncode == 0, said
    assert "starts the job anew (1 of 1 restarts)" in said
    check_whole(task, tmp_path, ranks)


@NEEDS_TORCH
def test_torchrun_starts_the_job_anew(start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3", "--max-restarts=1"]
    process = start([*run, f"--master-port={port}", *train("kge", tmp_path)])
    kill_a_rank(process, tmp_path / "checkpoints-kge", ("RANK",))
    said = process.communicate(timeout=DEADLINE_S)[0]
    assert process.returncode == 0, said
    check_whole("kge", tmp_path, 3)


@pytest.mark.parametrize("scheme", ["", pytest.param("local://", marks=NEEDS_FSSPEC)], ids=["folder", "url"])
def test_fewer_ranks_go_on(start, tmp_path: Path, scheme: str) -> None:
    checkpoints = f"{scheme}{tmp_path}/checkpoints-kge"
    run = [sys.executable, "-m", "intentpm", "run", "--timeout", "400", "-n"]
    process = start([*run, "3", *train("kge", tmp_path, "--checkpoints", checkpoints)])
    kill_a_rank(process, checkpoints, ("INTENTPM_RANK",))
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 128 + signal.SIGKILL
    process = start([*run, "2", *train("kge", tmp_path, "--checkpoints", checkpoints)])
    said = process.communicate(timeout=DEADLINE_S)[0]
    assert process.returncode == 0, said
    check_whole("kge", tmp_path, 2)
    newest = intentpm.latest(checkpoints)
    assert str(newest).startswith(checkpoints)
    assert Path(tmp_path, "checkpoints-kge", newest.name, "begun").exists() == bool(scheme)


def test_checkpoints_of_an_earlier_run_are_not_mixed_with_others(tmp_path: Path) -> None:
    command = [sys.executable, *train("mf", tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)
    command.remove("--resume")
    again = subprocess.run(command, check=False, capture_output=True, text=True, timeout=DEADLINE_S)
    assert again.returncode != 0
    assert "has checkpoints of an earlier run: go on from them (--resume)" in again.stderr
