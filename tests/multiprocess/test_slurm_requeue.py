"""A Slurm job that is put into the queue again, as after the loss of a node, goes on from its last checkpoint."""

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.slurm import running_slurm, why_no_slurm

import intentpm
import intentpm.checkpoint

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, pytest.mark.timeout(600)]

DEADLINE_S = 250.0
REQUEUE_AFTER_S = 15
EPOCHS = 6
TRAIN = [
    *(sys.executable, "-m", "intentpm", "train", "kge", "--generate", "entities=300,relations=5,triples=6000,types=5"),
    *("--dim", "8", "--epochs", str(EPOCHS), "--batch", "20", "--checkpoint-every", "0.3s", "--resume"),
]


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    if why_no_slurm():
        pytest.skip(why_no_slurm())
    with running_slurm(requeue_after_s=REQUEUE_AFTER_S) as environment:
        yield environment


def told_by(command: list[str], slurm: dict[str, str]) -> str:
    done = subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
    return done.stdout.strip()


def wait_until(is_so: Callable[[], bool], what: str, output: Path) -> None:
    end = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < end, f"{what}: not within {DEADLINE_S:g} s\n{output.read_text(errors='replace')}"
        time.sleep(0.1)


def ranks(slurm: dict[str, str]) -> dict[str, psutil.Process]:
    """The processes of this Slurm's steps, by rank."""
    found = {}
    for process in psutil.process_iter():
        try:
            variables = process.environ()
        except psutil.Error:
            continue
        if variables.get("SLURM_CONF") == slurm["SLURM_CONF"] and "SLURM_STEP_NUM_TASKS" in variables:
            found[variables["SLURM_PROCID"]] = process
    return found


def returned(node: str, slurm: dict[str, str]) -> bool:
    """It may have come back by itself: then there is nothing to resume."""
    command = ["scontrol", "update", f"NodeName={node}", "State=RESUME"]
    done = subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode == 0 or "down" not in told_by(["sinfo", "-h", "-o", "%T"], slurm)


@pytest.mark.parametrize("cause", ["a rank is killed", "an administrator's", "the node is lost"])
def test_a_requeued_job_goes_on(slurm: dict[str, str], tmp_path: Path, cause: str) -> None:
    job, output, runs = tmp_path / "job.sh", tmp_path / "output", tmp_path / "runs"
    train = shlex.join([*TRAIN, "--out", str(tmp_path)])
    job.write_text(f"""#!/bin/sh
        echo "${{SLURM_RESTART_COUNT:-0}}" >> {runs}
        srun -n 2 {train} && exit 0
        [ -z "$SLURM_RESTART_COUNT" ] && scontrol requeue "$SLURM_JOB_ID"
        exit 1
    """)
    output.touch()
    options = ["--requeue", "--open-mode=append", "-n", "2", "-o", str(output), "-e", str(output)]
    number = told_by(["sbatch", "--parsable", *options, str(job)], slurm)

    def state() -> str:
        return told_by(["scontrol", "--oneliner", "show", "job", number], slurm).split("JobState=")[1].split()[0]

    checkpoints = tmp_path / "checkpoints-kge"
    wait_until(lambda: intentpm.latest(checkpoints) is not None or state() == "FAILED", "a checkpoint", output)
    if cause == "a rank is killed":
        ranks(slurm)["1"].kill()
    elif cause == "an administrator's":
        told_by(["scontrol", "requeue", number], slurm)
    else:
        node = told_by(["sinfo", "-h", "-o", "%n"], slurm)
        told_by(["scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test"], slurm)
        wait_until(lambda: state() == "PENDING", "the job in the queue", output)
        wait_until(lambda: not ranks(slurm), "the end of the ranks of a lost node", output)
        wait_until(lambda: returned(node, slurm), "the node's return", output)
    wait_until(lambda: state() in ("COMPLETED", "FAILED", "CANCELLED"), "the end of the job", output)
    assert state() == "COMPLETED", output.read_text()
    assert runs.read_text().split() == ["0", "1"]
    # The second run has loaded a checkpoint of the first: into a folder of another job it could not have saved.
    with intentpm.checkpoint.verify(checkpoints) as opened:
        assert opened.extra[0]["epoch"] == EPOCHS + 1
        assert [row["epoch"] for row in opened.extra[0]["rows"]] == list(range(EPOCHS + 1))
        assert np.isfinite(opened[opened.tables[0]].rows()).all()
