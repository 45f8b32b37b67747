"""Which UCX library is loaded: in fresh processes, because a process has one for good."""

import os
import pathlib
import subprocess
import sys

import pytest

from intentpm.transports import ucx_library

LOAD = "from intentpm.transports import ucx_library as u; print(u.load_library()._name); print(u.loaded_library()); "
LOAD += "u.load_library()"
HIDE_WHEEL = "import sys; sys.modules['libucx'] = None; import importlib.util as i; find = i.find_spec; "
HIDE_WHEEL += "i.find_spec = lambda name, *rest: None if name == 'libucx' else find(name, *rest); "


def run(code: str, choice: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != ucx_library.SWITCH}
    if choice is not None:
        environment[ucx_library.SWITCH] = choice
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=False
    )


@pytest.fixture
def wheel() -> pathlib.Path:
    found = ucx_library.wheel_folder()
    if found is None:
        pytest.skip("the libucx wheel is not installed")
    return found


@pytest.mark.parametrize("choice", [None, "auto", "wheel"])
def test_the_wheel_comes_first(wheel: pathlib.Path, choice: str | None) -> None:
    done = run(LOAD, choice)
    assert done.returncode == 0, done.stderr
    assert {pathlib.Path(line).resolve().parent for line in done.stdout.splitlines()} == {wheel}


def test_a_path_is_loaded(wheel: pathlib.Path) -> None:
    path = wheel / "libucp.so.0"
    done = run(LOAD, str(path))
    assert done.returncode == 0, done.stderr
    assert pathlib.Path(done.stdout.splitlines()[1]).resolve() == path.resolve()


def test_a_path_that_does_not_exist_is_an_error() -> None:
    done = run(LOAD, "/nowhere/libucp.so.0")
    assert "ConfigError" in done.stderr
    assert "/nowhere/libucp.so.0" in done.stderr


def test_a_second_library_is_refused(wheel: pathlib.Path) -> None:
    first = "import ctypes; ctypes.CDLL('libucp.so.0'); "
    if run(first, None).returncode != 0:
        pytest.skip("no system UCX to conflict with")
    done = run(first + LOAD, "wheel")
    assert "two UCX libraries in one process" in done.stderr
    done = run(first + LOAD, "auto")
    assert done.returncode == 0, done.stderr
    assert pathlib.Path(done.stdout.splitlines()[1]).resolve().parent != wheel


def test_without_any_ucx_the_transport_says_what_to_install() -> None:
    hide_system = "u.ctypes.CDLL = refuse; "
    code = (
        HIDE_WHEEL + "from intentpm.transports import ucx_library as u, registry\n"
        "def refuse(*a, **k): raise OSError('libucp.so.0: cannot open shared object file')\n"
        + hide_system
        + "status = registry.available()['ucx']; print(status.usable, status.reason); print(registry.choose('auto'))"
    )
    done = run(code, None)
    assert done.returncode == 0, done.stderr
    status, chosen = done.stdout.splitlines()
    assert status.startswith("False")
    assert "pip install" in status
    assert chosen == "tcp"
