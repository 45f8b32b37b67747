"""Baseline: MPI one-sided access to the same rows with mpi4py, Win.Get for pull and Win.Accumulate for push.

Passive target: rank 1 accesses, rank 0 makes no call for it. One call per request, with a datatype that picks the rows
of its keys, made for that request as a program with ever new keys must. ``python -m`` it under mpirun.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from intentpm.bench.scenarios.busy_loops import BUSY_LOOPS, spin
from intentpm.bench.scenarios.calls import timed_calls
from intentpm.bench.scenarios.links import ONE_THREAD
from intentpm.bench.scenarios.remote_access import BUSY_SHARE, CLIENT, SERVER
from intentpm.bench.scenarios.transport_contenders import UnavailableError, mpirun_command

NAMES = {"pull": "mpi4py Win.Get", "push": "mpi4py Win.Accumulate"}
START_S = 60.0
END_S = 10.0
LAST_LINE = "cases: "


def mpi_rows(arguments: Mapping[str, Any], mpi_options: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Measures ``arguments`` as ``remote_access`` does. Raises UnavailableError.

    mpi_options: of mpirun, such as which way to take; without any, the client reads and writes shared memory itself.
    """
    plan = json.dumps({**arguments, "shared_memory": not mpi_options})
    command = [
        *mpirun_command(), "--bind-to", "none", *mpi_options, "-n", "2", sys.executable, "-m", __name__, plan,
    ]  # fmt: skip
    timeout_s = START_S + 3 * len(arguments["cases"]) * arguments["case_s"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD
    ) as run:
        try:
            out, errors = run.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _end(run)
            raise UnavailableError(f"mpirun did not finish in {timeout_s:g} s") from None
    lines = [line for line in out.splitlines() if line.startswith(LAST_LINE)]
    if run.returncode != 0 or not lines:
        raise UnavailableError(f"mpirun: {errors.strip() or out.strip()}")
    cases: list[dict[str, Any]] = json.loads(lines[-1].removeprefix(LAST_LINE))
    return cases


def _end(mpirun: subprocess.Popen[str]) -> None:
    """By SIGTERM, upon which mpirun ends its ranks; SIGKILL would leave them behind."""
    mpirun.terminate()
    try:
        mpirun.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        mpirun.kill()


def _run_rank(arguments: Mapping[str, Any]) -> None:
    from mpi4py import MPI

    world, dim = MPI.COMM_WORLD, arguments["dim"]
    mine = arguments["num_keys"] if world.rank == SERVER else 0
    if arguments["shared_memory"]:
        window = MPI.Win.Allocate(4 * dim * mine, 4 * dim, comm=world)
    else:  # rows that MPI allocates it finds in shared memory, whatever way it was told to take
        window = MPI.Win.Create(np.empty((mine, dim), np.float32), 4 * dim, comm=world)
    if mine:
        np.asarray(window.tomemory()).view(np.float32)[:] = 1.0
    row = MPI.FLOAT.Create_contiguous(dim).Commit()
    cases = []
    for situation, operation, keys in arguments["cases"]:
        step = BUSY_LOOPS[situation]() if situation in BUSY_LOOPS else None
        world.Barrier()
        if world.rank == CLIENT:
            call = _call(window, row, operation, keys, arguments)
            pause_s = arguments["interval_s"] if situation == "spaced" else 0.0
            window.Lock(SERVER, MPI.LOCK_SHARED)
            samples = timed_calls(call, arguments["repeats"], BUSY_SHARE * arguments["case_s"], pause_s)
            window.Unlock(SERVER)
            cases.append({"situation": situation, "operation": operation, "keys": keys, "samples": samples})
        elif step is not None:
            spin(step, arguments["case_s"])
    world.Barrier()
    if world.rank == CLIENT:
        print(LAST_LINE + json.dumps(cases), flush=True)
    row.Free()
    window.Free()


def _call(window: Any, row: Any, operation: str, count: int, arguments: Mapping[str, Any]) -> Callable[[], object]:
    from mpi4py import MPI

    random = np.random.default_rng(arguments["seed"])
    keys = random.choice(arguments["num_keys"], count, replace=False).astype(np.int32)
    rows = np.ones((count, arguments["dim"]), np.float32)

    def move(target: Sequence[Any]) -> None:
        if operation == "pull":
            window.Get([rows, rows.size, MPI.FLOAT], SERVER, target)
        else:
            window.Accumulate([rows, rows.size, MPI.FLOAT], SERVER, target, op=MPI.SUM)
        window.Flush(SERVER)

    def picked() -> None:
        rows_of_keys = row.Create_indexed_block(1, keys).Commit()
        move((0, 1, rows_of_keys))
        rows_of_keys.Free()

    return picked if count > 1 else lambda: move((int(keys[0]), 1, row))


if __name__ == "__main__":
    _run_rank(json.loads(sys.argv[1]))
