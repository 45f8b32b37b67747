"""``intentpm train`` where the results cannot be written: found before the training, or kept elsewhere after it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.multiprocess

TIMEOUT_S = 100
TRAIN = [sys.executable, "-m", "intentpm", "train", "mf", "--generate", "users=2000,items=500,ratings=20000"]
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
LAUNCHERS = {
    "alone": [],
    "intentpm": [sys.executable, "-m", "intentpm", "run", "-n", "2", "--"],
    "mpirun": [MPIRUN, "--allow-run-as-root", "--oversubscribe", "-n", "2"],
}


def run(command, cwd):
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=cwd, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_no_rank_trains_and_one_says_why(tmp_path, launcher):
    if launcher == "mpirun" and MPIRUN is None:
        pytest.skip("no mpirun")
    (tmp_path / "taken").touch()
    ended = run([*LAUNCHERS[launcher], *TRAIN, "--out", "taken/out"], tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.count("taken/out: no results can be written there") == 1
    assert "Traceback" not in ended.stderr
    assert "PeerLost" not in ended.stderr
    assert "epoch" not in ended.stdout, "found before the training"


def test_ranks_started_here_hear_of_it_too(tmp_path):
    (tmp_path / "out" / "train-mf-n2.json").mkdir(parents=True)  # only the ranks know this name
    ended = run([*TRAIN, "--out", "out", "-n", "2"], tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.count("train-mf-n2.json: cannot be written (there is a folder of this name)") == 1
    assert "Traceback" not in ended.stderr
    assert "epoch" not in ended.stdout


def test_a_folder_lost_during_the_training_loses_no_results(tmp_path):
    command = [*TRAIN, "--epochs", "600", "--out", "out", "-n", "2", "--transport", "tcp"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"NO_COLOR": "1", "TMPDIR": str(tmp_path)},
    ) as job:  # fmt: skip
        for line in job.stdout:
            if line.split()[:1] == ["1"]:
                break
        (tmp_path / "out").rename(tmp_path / "gone")
        (tmp_path / "out").touch()
        shown, errors = job.communicate(timeout=TIMEOUT_S)
    assert job.returncode == 1
    assert "Traceback" not in errors
    problem = re.search(r"out/train-mf-n2.json could not be written \(.*\); its contents were kept as (.*)", errors)
    kept = Path(problem[1])
    assert kept.is_relative_to(tmp_path)
    assert len(json.loads(kept.read_text())["rows"]) == 601
    assert "test RMSE" in shown
    assert re.sub(r"[\s│]", "", str(kept)) in re.sub(r"[\s│]", "", shown), "the summary says where the results are"


def test_a_plot_that_fails_does_not_fail_the_run(tmp_path):
    (tmp_path / "out" / "train-mf-n1.png").mkdir(parents=True)
    ended = run([*TRAIN, "--epochs", "1", "--out", "out"], tmp_path)
    assert ended.returncode == 0
    assert ended.stderr.count("warning: no plot (") == 1
    assert json.loads((tmp_path / "out" / "train-mf-n1.json").read_text())["rows"]


def test_what_is_odd_in_the_data_is_said_once(tmp_path):
    folder = tmp_path / "graph"
    folder.mkdir()
    rows = [f"e{step}\tr{step % 3}\te{step * 7 % 50}\n" for step in range(50)]
    (folder / "train.tsv").write_text("\ufeff" + "\n".join(rows) + "e1\u00a0\tr1 \te2\n", encoding="utf-16")
    for split in ("valid", "test"):
        (folder / f"{split}.tsv").write_bytes(b"e1\tr1\te7\r\ne3\tr2\te4")
    command = [*TRAIN[:4], "kge", "--data", "graph", "--epochs", "1", "--dim", "4", "-n", "2", "--transport", "tcp"]
    ended = run([*command, "--json"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    config = json.loads(ended.stdout)["config"]
    assert (config["entities"], config["relations"], config["triples"]) == (50, 3, 51)
    note = "note: train.tsv: blank lines left out: 49; lines with white space around a name, which is left out: 2"
    assert ended.stderr.count(note) == 1
