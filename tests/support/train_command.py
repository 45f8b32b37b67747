"""``intentpm`` as a user runs it, in a process of its own."""

import json
import os
import subprocess
import sys

TIMEOUT_S = 110


def intentpm(*arguments, cwd, succeeds=True):
    """Runs the command in ``cwd`` and returns the finished process."""
    command = [sys.executable, "-m", "intentpm", *map(str, arguments)]
    # One thread each: with more ranks than cores, BLAS threads that wait for each other take longer than the work.
    environment = os.environ | {"NO_COLOR": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=cwd, env=environment)
    assert (run.returncode == 0) == succeeds, f"exit code {run.returncode}\n{run.stdout}\n{run.stderr}"
    return run


def results_of(task, cwd, *arguments):
    """The results of a training run with ``--json``."""
    return json.loads(intentpm("train", task, "--json", *arguments, cwd=cwd).stdout)
