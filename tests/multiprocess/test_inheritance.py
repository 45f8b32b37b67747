"""Children that inherit a rank's variables: each is told at once, and shown how to be a job of its own."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.slurm import running_slurm, why_no_slurm

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(120)]

HELPER = """
import os, sys, intentpm
def say(line):
    os.write(1, (line + chr(10)).encode())  # one write, so that the lines of two ranks do not mix
def helper():
    try:
        with intentpm.init(start_timeout=20) as pm:
            table = pm.create_table("t", 10, init=3.0)
            say(f"helper: rank {pm.rank} of {pm.size}, row {pm.worker().pull(table, [1])[0]:g}")
    except intentpm.ConfigError as error:
        say(f"helper: {error}")
class Rows:
    def __len__(self):
        return 1
    def __getitem__(self, index):
        helper()
if __name__ == "__main__":
    helper()
"""

RANK = """
import multiprocessing, os, subprocess, sys, threading
import intentpm
sys.path.insert(0, {folder!r})
from helper import Rows, helper
python, path = sys.executable, {folder!r} + "/helper.py"
def run(argv, **options):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, **options)
    os.write(1, (done.stdout + done.stderr).encode())
def in_child(method):
    child = multiprocessing.get_context(method).Process(target=helper)
    child.start()
    child.join(60)
def alone():
    os.environ["INTENTPM_LAUNCHER"] = "alone"
    helper()
if __name__ == "__main__":
    {before}
    with intentpm.init(start_timeout=30) as pm:
        if pm.rank == 0:
            {child}
        pm.barrier()
    {after}
"""

COPY = "copied = dict(os.environ)"
# What a rank does: before init, with its manager open, and after it was closed.
CHILDREN = {
    "subprocess": ("", "run([python, path])", ""),
    "grandchild": ("", "run(['sh', '-c', 'sh -c \"$0 $1; true\"; true', python, path])", ""),
    "environment copied before": (COPY, "run([python, path], env=copied)", ""),
    "grandchild with a copied environment": (COPY, "run(['sh', '-c', '$0 $1; true', python, path], env=copied)", ""),
    "after close": ("", "pass", "if pm.rank == 0: run([python, path])"),
    "spawn": ("", "in_child('spawn')", ""),
    "fork": ("", "in_child('fork')", ""),
    "forkserver": ("", "in_child('forkserver')", ""),
    "older forkserver": (
        "ctx = multiprocessing.get_context('forkserver'); p = ctx.Process(target=int); p.start(); p.join()",
        "in_child('forkserver')",
        "",
    ),
    "daemon": ("", "run([python, path], start_new_session=True)", ""),
}


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    def write(child: str, before: str = "", after: str = "") -> str:
        (tmp_path / "helper.py").write_text(HELPER)
        text = RANK.format(folder=str(tmp_path), child=child, before=before or "pass", after=after or "pass")
        (tmp_path / "rank.py").write_text(text)
        return str(tmp_path / "rank.py")

    return write


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    if why_no_slurm():
        pytest.skip(why_no_slurm())
    with running_slurm() as environment:
        yield environment


def launcher_command(launcher: str) -> list[str]:
    if launcher == "torchrun":
        if importlib.util.find_spec("torch") is None:
            pytest.skip("torch is not installed: pip install 'intentpm[torch]'")
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    if launcher == "mpirun":
        pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'intentpm[mpi]'")
        options = ["--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]
        return ["mpirun", *options, "-n", "2", sys.executable]
    if launcher == "srun":
        return ["srun", "-n", "2", sys.executable]
    return [sys.executable, "-m", "intentpm", "run", "--no-prefix", "-n", "2"]


@pytest.fixture
def helper_says(request: pytest.FixtureRequest) -> Callable[..., str]:
    """What the helper of rank 0 printed, under a launcher; the ranks themselves must end well."""

    def run(launcher: str, path: str, **variables: str) -> str:
        slurm = request.getfixturevalue("slurm") if launcher == "srun" else {}
        search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            [*launcher_command(launcher), path],
            env={**os.environ, **slurm, "PATH": search, "INTENTPM_TRANSPORT": "tcp", **variables},
            stdout=-1, stderr=-1, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=90)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        assert process.returncode == 0, out + err
        return out

    return run


def check_told(said: str, launcher: str) -> None:
    assert f"has inherited the variables of a rank that {launcher} started (" in said, said
    assert "INTENTPM_LAUNCHER=alone" in said
    assert "intentpm.clean_environment()" in said


@pytest.mark.parametrize("child", CHILDREN)
def test_child_of_a_rank_is_told_at_once(script, helper_says, child: str) -> None:
    before, call, after = CHILDREN[child]
    check_told(helper_says("intentpm run", script(call, before, after)), "`intentpm run`")


@pytest.mark.parametrize("child", ["subprocess", "environment copied before"])
@pytest.mark.parametrize("launcher", ["mpirun", "torchrun", "srun"])
def test_child_of_a_rank_is_told_under_every_launcher(script, helper_says, launcher: str, child: str) -> None:
    before, call, after = CHILDREN[child]
    check_told(helper_says(launcher, script(call, before, after)), launcher)


def test_child_under_a_launcher_that_was_named(script, helper_says) -> None:
    said = helper_says("srun", script("run([python, path])"), INTENTPM_LAUNCHER="slurm")
    check_told(said, "srun")


def test_worker_of_a_data_loader_is_told(script, helper_says) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: pip install 'intentpm[torch]'")
    child = "list(data.DataLoader(Rows(), num_workers=1, collate_fn=list, multiprocessing_context='spawn'))"
    check_told(helper_says("intentpm run", script(child, "import torch.utils.data as data")), "`intentpm run`")


OWN_JOBS = {
    "clean": "run([python, path], env=intentpm.clean_environment())",
    "alone": "run([python, path], env={**os.environ, 'INTENTPM_LAUNCHER': 'alone'})",
    "alone in a child": "c = multiprocessing.get_context('spawn').Process(target=alone); c.start(); c.join(60)",
    "alone in a forked child": "c = multiprocessing.get_context('fork').Process(target=alone); c.start(); c.join(60)",
}


@pytest.mark.parametrize("how", OWN_JOBS)
@pytest.mark.parametrize("launcher", ["intentpm run", "mpirun"])
def test_job_of_one_rank_started_by_a_rank(script, helper_says, launcher: str, how: str) -> None:
    assert helper_says(launcher, script(OWN_JOBS[how])).strip() == "helper: rank 0 of 1, row 3"


NESTED = {
    "intentpm run": "[python, '-m', 'intentpm', 'run', '--no-prefix', '-n', '2', path]",
    "mpirun": "['mpirun', '--oversubscribe', '--allow-run-as-root', '-n', '2', python, path]",
    "torchrun": "[python, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', path]",
}


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ("intentpm run", "intentpm run"),
        ("mpirun", "mpirun"),
        ("torchrun", "torchrun"),
        ("mpirun", "intentpm run"),
        ("srun", "intentpm run"),
        ("srun", "mpirun"),
    ],
)
def test_job_of_several_ranks_started_by_a_rank(script, helper_says, outer: str, inner: str) -> None:
    launcher_command(inner)  # skips what is not installed
    said = helper_says(outer, script(f"run({NESTED[inner]}, env=intentpm.clean_environment())"))
    lines = sorted(line for line in said.splitlines() if line.startswith("helper"))
    assert lines == ["helper: rank 0 of 2, row 3", "helper: rank 1 of 2, row 3"], said


def test_inner_launcher_is_found_among_inherited_variables(script, helper_says) -> None:
    """Without a clean environment too: the outer rank is another process's, the inner one is not."""
    launcher_command("torchrun")
    said = helper_says("intentpm run", script(f"run({NESTED['torchrun']})"))
    lines = sorted(line for line in said.splitlines() if line.startswith("helper"))
    assert lines == ["helper: rank 0 of 2, row 3", "helper: rank 1 of 2, row 3"], said


def test_rank_that_becomes_another_program_is_still_the_rank(script, helper_says, tmp_path: Path) -> None:
    path = script("pass", after="os.execv(python, [python, path])")
    said = helper_says("intentpm run", path)
    assert sorted(said.split("\n")) == ["", "helper: rank 0 of 2, row 3", "helper: rank 1 of 2, row 3"]
