"""docs/tutorial: the diff turns the plain script into the distributed one, which every launcher runs."""

import importlib.util
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial"
MOVIELENS = ROOT.parent / "shared" / "data" / "movielens_small" / "ratings.npz"
RUN_S = 100

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow,
    pytest.mark.timeout(2 * RUN_S + 20),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed"),
]


def execute(argv, folder: Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=RUN_S, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The plain script with the diff applied."""
    (tmp_path / "plain.py").write_text((TUTORIAL / "plain.py").read_text())
    execute(["git", "apply", "-p0", "--unsafe-paths", str(TUTORIAL / "distributed.diff")], tmp_path)
    return tmp_path / "plain.py"


def test_the_diff_makes_the_distributed_script_in_fewer_than_15_lines(script: Path) -> None:
    assert script.read_text() == (TUTORIAL / "distributed.py").read_text()
    lines = (TUTORIAL / "distributed.diff").read_text().splitlines()[2:]
    assert 0 < sum(line[0] in "+-" for line in lines) < 15


def argv_of(launcher: str, n: int) -> list[str]:
    if launcher == "intentpm":
        return [sys.executable, "-m", "intentpm", "run", "-n", str(n)]
    if launcher == "mpirun":
        mpirun = Path(sys.executable).with_name("mpirun")
        if not mpirun.exists() or importlib.util.find_spec("mpi4py") is None:
            pytest.skip("the extra mpi is not installed")
        options = ["--oversubscribe", "--bind-to", "none", "--allow-run-as-root"]
        return [str(mpirun), *options, "-n", str(n), sys.executable]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), "--master-port", str(port)]


def errors_in(output: str) -> list[float]:
    return [float(found) for found in re.findall(r"test RMSE ([\d.]+)", output)]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("launcher", ["intentpm", "mpirun", "torchrun"])
def test_every_launcher_runs_it(script: Path, launcher: str, n: int) -> None:
    first, last = errors_in(execute([*argv_of(launcher, n), str(script), "", "2"], script.parent))
    assert last < first < 1.0, "rank 0 alone prints, once an epoch, and it learns"


def test_it_learns_as_well_as_the_plain_script(script: Path) -> None:
    data = str(MOVIELENS) if MOVIELENS.exists() else ""
    (plain,) = errors_in(execute([sys.executable, str(TUTORIAL / "plain.py"), data, "1"], script.parent))
    (ours,) = errors_in(execute([*argv_of("intentpm", 2), str(script), data, "1"], script.parent))
    assert abs(ours - plain) < 0.02
