"""``pytest bench/latency``: rank 0 measures and reports, whatever launched the ranks; the others serve, and end."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.slurm import running_slurm, why_no_slurm

from intentpm.bench.latency.job import create_table, join

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(150)]

FOLDER = Path(__file__).parents[3] / "bench" / "latency"
TIMEOUT_S = 120
QUICK = ["-p", "no:cacheprovider", "--color=no", "--benchmark-max-time=0.001"]
ACCESS = "pull-1 and not pull-10"
SOME = [
    "-k", f"test_access and pull-1-uniform or test_intentpm and (tcp-back or none-back) and {ACCESS} or advance_clock",
]  # fmt: skip
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def launch(launcher, *arguments, env=None, timeout_s=TIMEOUT_S):
    """Exit code, output and errors of pytest under ``launcher``, with the arguments that follow."""
    command = [*launcher, "-m", "pytest", *QUICK, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, env={**os.environ, **AS_ROOT, **(env or {})},
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


ALONE = [sys.executable]
LOCAL = [sys.executable, "-m", "intentpm", "run", "-n", "2", "--timeout", str(TIMEOUT_S - 10)]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def check_report(out, path, ranks):
    """One report, one file; the cases of rank 0 are in both."""
    assert out.count("test session starts") == 1
    assert out.count(" passed") == 1
    cases = json.loads(path.read_text())["benchmarks"]
    by = {case["extra_info"]["by"] for case in cases}
    assert {"intentpm", "np.take", "memcpy", "dict.clear"} <= by
    assert all(case["extra_info"].get("ranks", ranks) == ranks for case in cases)
    remote = [case for case in cases if "test_remote" in case["fullname"]]
    assert bool(remote) == (ranks > 1)
    assert all(case["stats"]["median"] > 0 and "commit" in case["extra_info"] for case in cases)


def test_alone(tmp_path):
    code, out, errors = launch(ALONE, FOLDER, *SOME, f"--benchmark-json={tmp_path / 'x.json'}")
    assert code == 0, out + errors
    assert "needs a second rank: mpirun -n 2" in out
    check_report(out, tmp_path / "x.json", 1)


def test_intentpm_run(tmp_path):
    code, out, errors = launch(LOCAL, FOLDER, *SOME, f"--benchmark-json={tmp_path / 'x.json'}")
    assert code == 0, out + errors
    assert "[1]" not in out + errors
    check_report(out, tmp_path / "x.json", 2)


def test_mpirun(tmp_path):
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if mpirun is None:
        pytest.skip("mpirun is not installed")
    pytest.importorskip("mpi4py")
    launcher = [mpirun, "--oversubscribe", "-n", "2", sys.executable]
    some = [SOME[0], f"{SOME[1]} or test_mpi and {ACCESS}"]
    code, out, errors = launch(launcher, FOLDER, *some, f"--benchmark-json={tmp_path / 'x.json'}")
    assert code == 0, out + errors
    check_report(out, tmp_path / "x.json", 2)
    assert "mpi4py Win.Get" in out


def test_torchrun(tmp_path):
    pytest.importorskip("torch")
    code, out, errors = launch(TORCHRUN, FOLDER, *SOME, f"--benchmark-json={tmp_path / 'x.json'}")
    assert code == 0, out + errors
    check_report(out, tmp_path / "x.json", 2)


@pytest.mark.skipif(bool(why_no_slurm()), reason=why_no_slurm())
def test_srun(tmp_path):
    with running_slurm() as env:
        launcher = ["srun", "-n", "2", "--overcommit", sys.executable]
        code, out, errors = launch(launcher, FOLDER, *SOME, f"--benchmark-json={tmp_path / 'x.json'}", env=env)
    assert code == 0, out + errors
    check_report(out, tmp_path / "x.json", 2)


def exit_codes(tmp_path, *arguments):
    """Of every rank, as the rank itself ended; and the job's."""
    (tmp_path / "say.py").write_text(
        "import os, subprocess, sys\n"
        "code = subprocess.call([sys.executable, '-m', 'pytest', *sys.argv[1:]])\n"
        "print(f'rank', os.environ['INTENTPM_RANK'], 'ended with', code, flush=True)\n"
        "sys.exit(code)\n"
    )
    command = [*LOCAL, "--grace", "20", str(tmp_path / "say.py"), *QUICK, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    ended = [line.partition("rank ")[2].split() for line in done.stdout.splitlines() if " ended with " in line]
    return {int(rank): int(code) for rank, _, _, code in ended}, done.returncode, done.stdout


def test_nothing_selected(tmp_path):
    path = tmp_path / "x.json"
    assert exit_codes(tmp_path, FOLDER, "-k", "nosuchcase", f"--benchmark-json={path}")[:2] == ({0: 5, 1: 0}, 5)


def test_a_usage_error(tmp_path):
    codes, code, out = exit_codes(tmp_path, FOLDER, "--no-such-option")
    assert (set(codes.values()), code) == ({4}, 4), out


def test_collect_only(tmp_path):
    codes, code, out = exit_codes(tmp_path, FOLDER, "--collect-only", "-q")
    assert (codes, code) == ({0: 0, 1: 0}, 0), out


def test_a_case_that_fails(tmp_path):
    (tmp_path / "test_bad.py").write_text("def test_bad():\n    assert False\n")
    codes, code, out = exit_codes(tmp_path, FOLDER, tmp_path / "test_bad.py", "-k", "test_bad or advance_clock")
    assert (codes, code) == ({0: 1, 1: 0}, 1), out
    assert out.count("1 failed") == 1


def test_an_interrupted_job_ends(tmp_path):
    """As by Ctrl-C in a terminal: every rank gets the signal."""
    (tmp_path / "test_wait.py").write_text(
        "import time\ndef test_wait():\n    print('waiting', flush=True)\n    time.sleep(100)\n"
    )
    command = [*LOCAL, "--grace", "20", "-m", "pytest", *QUICK, "-s", str(FOLDER), str(tmp_path), "-k", "test_wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        said = ""
        for line in job.stdout:
            said += line
            if "waiting" in line:
                job.send_signal(signal.SIGINT)
        assert job.wait(TIMEOUT_S) == 2, said
    assert "KeyboardInterrupt" in said
    assert "[1]" not in said, said


def give_tasks():
    """Of rank 0: what it makes of a task that fails, and of a block that does; any other serves."""
    here = join()
    if here.rank:
        return here.serve()
    said = []
    for block_fails in (False, True):
        try:
            with here.others(create_table, "rows", 1, 1):  # though no link is open
                if block_fails:
                    raise ArithmeticError("rank 0 failed as well")
        except RuntimeError as error:
            said.append((str(error), type(error.__context__).__name__))
    here.end()
    return said


def give_a_task_and_die():
    here = join()
    if here.rank:
        sys.exit(here.serve())
    os._exit(9)


def test_rank_0_learns_of_a_task_that_fails_and_goes_on(spawn_world):
    (first, second), served = spawn_world(2, give_tasks)
    assert "rank 1 failed" in first[0]
    assert "has no attribute 'create_table'" in first[0]
    assert (first[1], second[1]) == ("NoneType", "ArithmeticError")
    assert served == 0


def test_a_rank_that_serves_does_not_outlive_rank_0(spawn_world):
    outcomes = spawn_world.outcomes(2, give_a_task_and_die, check_leaks=False)
    assert [outcome.exit_code for outcome in outcomes] == [9, 1]
