"""Runs parts of the suite, several times if wanted: each leaves a file of pytest-benchmark's, ``OUT/PART-RUN.json``.

Two parts are ``pytest bench/latency``, alone and on two ranks. The others measure what pytest-benchmark cannot, in a
module ``intentpm.bench.scenarios.PART`` with ``measure(effort) -> list[Case]``: it measures everything once, starts its
own ranks, if any, and leaves out what this machine lacks. ``effort`` 1.0 is the full run; a smaller one takes fewer
samples and smaller sizes, down to 0.05 for a smoke run of a few seconds.
"""

import importlib
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from intentpm.bench.benchmarks import Benchmark, read_benchmarks, write_benchmarks

LOCAL, RANKS = "local", "ranks"
PARTS: Mapping[str, str] = {
    LOCAL: "local pull, push and set next to NumPy, PyTorch and memcpy",
    RANKS: "2 ranks: remote pull and push, transports, intents, next to perftest, MPI, torch RPC",
    "threads": "local pull and push with 1, 2 and 4 threads",
    "memory": "bytes per key and rank beyond the rows, and per replica",
    "idle_cost": "processor time and bytes of a job that does nothing",
    "turns": "from an intent's being due until its keys are local; rows relocated",
    "refresh": "rows refreshed, and staleness under load",
    "scaling": "time, bytes and messages per rank and round as the job grows, real and simulated",
    "growth": "cost as keys, replicas, ranks and intents grow a hundredfold",
}
"""Name and what it measures; in the order in which they run."""
CASE_S = 0.05
"""``--benchmark-max-time`` at full effort."""
QUICK_EFFORT = 0.2
"""Below, local cases are measured on one table only."""
PYTEST_S, END_S = 1500.0, 10.0


def run_suite(
    names: Sequence[str], effort: float, repeats: int, out: Path, report: Callable[[str], object]
) -> dict[str, str]:
    """Measures the parts ``names``, one after the other, ``repeats`` times over. Earlier files of theirs go first.

    Returns part -> why it failed. Such a part is reported, keeps what it had measured before, and stops no other.
    """
    out.mkdir(parents=True, exist_ok=True)
    chosen = sorted(dict.fromkeys(names), key=list(PARTS).index)
    for path in [path for name in chosen for path in out.glob(f"{name}-*.json")]:
        path.unlink()
    failures: dict[str, str] = {}
    for run in range(1, repeats + 1):
        for name in [name for name in chosen if name not in failures]:
            path, start = out / f"{name}-{run}.json", time.perf_counter()
            try:
                (_measure_latencies if name in (LOCAL, RANKS) else _measure)(name, effort, path)
            except Exception as error:
                failures[name] = traceback.format_exc()
                report(f"{name}: FAILED: {error}")
                continue
            times = f"run {run} of {repeats}, " if repeats > 1 else ""
            report(f"{name}: {times}{len(read_benchmarks(path))} cases in {time.perf_counter() - start:.1f} s")
    return failures


def read_runs(out: Path) -> dict[int, dict[str, list[Benchmark]]]:
    """Run -> part -> cases, of the files in ``out``. Raises ValueError: one is not ours."""
    runs: dict[int, dict[str, list[Benchmark]]] = {}
    for name in PARTS:
        for path in sorted(out.glob(f"{name}-*.json")):
            runs.setdefault(int(path.stem.rpartition("-")[2]), {})[name] = read_benchmarks(path)
    return dict(sorted(runs.items()))


def _measure(name: str, effort: float, path: Path) -> None:
    write_benchmarks(path, name, importlib.import_module(f"intentpm.bench.scenarios.{name}").measure(effort))


def _measure_latencies(name: str, effort: float, path: Path) -> None:
    """Raises RuntimeError: not all cases passed; what was said is in a file beside ``path``."""
    from intentpm.bench import latency

    tests = sorted(Path(str(latency.__file__)).parent.glob("test_*.py"))
    chosen = [str(test) for test in tests if (test.stem == "test_local") == (name == LOCAL)]
    argv = [
        *([] if name == LOCAL else _two_ranks()), sys.executable, "-m", "pytest", *chosen,
        "-p", "no:cacheprovider", "--color=no", "--import-mode=importlib",
        f"--benchmark-json={path}", f"--benchmark-max-time={CASE_S * effort:g}",
        *(["--all-tables"] if effort >= QUICK_EFFORT else []),
    ]  # fmt: skip
    log = path.with_suffix(".log")
    with open(log, "w") as said, subprocess.Popen(argv, stdout=said, stderr=said, stdin=subprocess.DEVNULL) as run:
        try:
            code = run.wait(PYTEST_S)
        finally:
            _end(run)
    if code:
        raise RuntimeError(f"pytest ended with {code}: see {log}")


def _two_ranks() -> list[str]:
    """mpirun of this environment, else of the system, so that MPI can be a baseline; without it, ``intentpm run``."""
    mpirun = which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if mpirun is None or find_spec("mpi4py") is None:
        return [sys.executable, "-m", "intentpm", "run", "-n", "2", "--no-prefix"]
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [mpirun, *as_root, "--oversubscribe", "--bind-to", "none", "-n", "2"]


def _end(run: subprocess.Popen[bytes]) -> None:
    """By SIGTERM, upon which launchers end their ranks; SIGKILL would leave them behind."""
    if run.poll() is None:
        run.terminate()
        try:
            run.wait(END_S)
        except subprocess.TimeoutExpired:
            run.kill()
