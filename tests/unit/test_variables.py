"""Variables that are set and mean nothing are pointed out."""

import subprocess
import sys
from pathlib import Path

import pytest

from intentpm.foundation.errors import ConfigError
from intentpm.launch.local import LocalWorld
from intentpm.launch.variables import KNOWN, describe_unknown_variables
from intentpm.launch.world import find_world
from intentpm.runtime.config import Config


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("INTENTPM_MANAGMENT", "INTENTPM_MANAGEMENT"),
        ("INTENTPM_PEERTIMEOUT", "INTENTPM_PEER_TIMEOUT"),
        ("INTENTPM_START_TIME_OUT", "INTENTPM_START_TIMEOUT"),
        ("INTENTPM_LAUNCHERS", "INTENTPM_LAUNCHER"),
        ("INTENTPM_UCX_LIB", "INTENTPM_UCX_LIBRARY"),
        ("intentpm_transport", "INTENTPM_TRANSPORT"),
        ("INTENTPM_SPIN_US ", "INTENTPM_SPIN_US"),
    ],
)
def test_unknown_variable_comes_with_the_nearest_name(name: str, meant: str) -> None:
    (line,) = describe_unknown_variables({name: "1", "OTHER": "1"})
    assert line == f"the variable {name} is none of intentpm's and changes nothing; did you mean {meant}?"


def test_unknown_variable_near_nothing() -> None:
    (line,) = describe_unknown_variables({"INTENTPM_QQQQQQ": "1"})
    assert line.endswith("changes nothing")


def test_known_variables_are_no_mystery() -> None:
    assert describe_unknown_variables(dict.fromkeys(KNOWN, "1")) == []
    assert {"INTENTPM_MANAGEMENT", "INTENTPM_SECRET", "INTENTPM_JOB", "INTENTPM_UCX_LIBRARY"} <= set(KNOWN)


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_one_rank_says_it_once(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(
        "import intentpm\nfor _ in range(2):\n    intentpm.init(transport='tcp').close()\n"
    )
    command = [sys.executable, "-m", "intentpm", "run", "-n", "2", str(tmp_path / "twice.py")]
    env = {"PATH": "/usr/bin:/bin", "INTENTPM_MANAGMENT": "static"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, env=env)
    assert done.returncode == 0, done.stderr
    line = (
        "the variable INTENTPM_MANAGMENT is none of intentpm's and changes nothing; did you mean INTENTPM_MANAGEMENT?"
    )
    assert done.stderr == f"[0] intentpm: {line}\n"


@pytest.mark.parametrize("launcher", ["alone", "torchrun", "slurm", "mpi"])
def test_short_secret_is_refused_under_every_launcher(monkeypatch: pytest.MonkeyPatch, launcher: str) -> None:
    monkeypatch.setenv("INTENTPM_LAUNCHER", launcher)
    monkeypatch.delenv("INTENTPM_RANK_PROCESS", raising=False)
    with pytest.raises(ConfigError, match="INTENTPM_SECRET has 5 bytes: needs at least 16"):
        find_world(Config(secret="short"))


@pytest.mark.parametrize("value", ["0", "-1", "3", "two"])
def test_ranks_of_this_host_are_some_of_the_job(value: str) -> None:
    variables = {"INTENTPM_RANK": "0", "INTENTPM_SIZE": "2", "INTENTPM_RENDEZVOUS": "127.0.0.1:5"}
    with pytest.raises(ConfigError, match=f"INTENTPM_LOCAL_RANKS='?{value}"):
        LocalWorld(Config(secret="s" * 16), variables | {"INTENTPM_LOCAL_RANKS": value})
