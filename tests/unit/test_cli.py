"""The command line without any rank: what loads when, and what is said when something is not installed."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from intentpm.foundation.errors import ConfigError
from intentpm.launch.commands import LazyGroup, command_for, intentpm

pytestmark = pytest.mark.timeout(60)


def test_help_lists_all_commands_and_imports_none_of_the_lazy_ones() -> None:
    code = (
        "import sys\nfrom intentpm.launch.cli import main\nsys.argv = ['intentpm', '--help']\n"
        "try: main()\nfinally: print('loaded:', *[n for n in sys.modules if n.startswith(('intentpm.bench', 'rich'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.splitlines()[-1] == "loaded:"
    for command in ("run", "doctor", "train", "bench", "plot"):
        assert f"\n  {command} " in done.stdout


def test_version() -> None:
    from importlib.metadata import version

    assert version("intentpm") in CliRunner().invoke(intentpm, ["--version"]).output


def test_missing_click_is_explained() -> None:
    code = "import sys; sys.modules['click'] = None; from intentpm.launch.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "pip install 'intentpm[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_package_of_a_lazy_command_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_much.py").write_text("import surely_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    group = LazyGroup(lazy={"plot": ("needs_much", "plot", "Draw.")})
    done = CliRunner().invoke(group, ["plot"])
    assert done.exit_code == 1
    assert "`intentpm plot` needs the package surely_not_installed: pip install 'intentpm[cli]'" in done.output


def test_our_errors_are_messages() -> None:
    @click.command()
    def fail() -> None:
        raise ConfigError("peer_timeout=-1")

    group = LazyGroup(lazy={})
    group.add_command(fail)
    done = CliRunner().invoke(group, ["fail"])
    assert done.exit_code == 1
    assert done.output == "Error: ConfigError: peer_timeout=-1\n"


@pytest.mark.parametrize("arguments", [[], ["-n", "0", "x.py"], ["-n", "2"], ["x.py"]])
def test_wrong_usage_of_run(arguments: list[str]) -> None:
    assert CliRunner().invoke(intentpm, ["run", *arguments]).exit_code == 2


def test_what_counts_as_a_script(tmp_path: Path) -> None:
    script, program = tmp_path / "train.py", tmp_path / "train"
    for file in (script, program):
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
    assert command_for(str(script)) == [sys.executable, str(script)]
    assert command_for(str(program)) == [str(program)]
    assert command_for(str(tmp_path)) == [sys.executable, str(tmp_path)]  # a folder with __main__.py
    program.chmod(0o644)
    assert command_for(str(program)) == [sys.executable, str(program)]
    assert command_for("python3") == ["python3"]
