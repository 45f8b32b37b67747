"""What mypy --strict makes of a user's script, by the types that the installed package brings along."""

import os
import re
import runpy
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).parent / "scripts"
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/meson.build") if path.parent.name != "build")
STUBS = sorted(stub.relative_to(ROOT) for folder in FOLDERS for stub in (ROOT / folder).rglob("*.pyi"))
DEADLINE_S = 100.0


class Finding(NamedTuple):
    script: str
    line: int
    kind: str
    """"error" or "note"."""
    text: str
    code: str


def read_findings(output: str) -> list[Finding]:
    found = re.findall(r"^(\w+)\.py:(\d+): (error|note): (.*?)(?:  \[([\w-]+)\])?$", output, re.MULTILINE)
    return [Finding(script, int(line), kind, text, code) for script, line, kind, text, code in found]


def places_of_types(folder: Path) -> dict[str, str]:
    """For mypy, variables that lead to the package. None where it is installed; mypy cannot see an editable one."""
    installed = files("intentpm")
    if isinstance(installed, Path):
        return {}
    subprocess.run([sys.executable, ROOT / "tools" / "stage_package.py", ROOT, folder / "stage"], check=True)
    return {"MYPYPATH": str(folder / "stage")}


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> list[Finding]:
    pytest.importorskip("mypy", reason="mypy is not installed")
    cache = pytestconfig.cache.mkdir("mypy")  # numpy's types take mypy some 10 s, once
    scripts = sorted(SCRIPTS.glob("*.py"))
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", cache, *scripts],
        cwd=SCRIPTS,
        env={**os.environ, **places_of_types(tmp_path_factory.mktemp("types"))},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert checked.stderr == ""
    return read_findings(checked.stdout)


def test_the_package_brings_its_types_along() -> None:
    installed_as = runpy.run_path(str(ROOT / "tools" / "stage_package.py"))["INSTALLED_AS"]
    stubs = [Path(installed_as.get(stub.parts[0], stub.parts[0]), *stub.parts[1:]) for stub in STUBS]
    wanted = ["py.typed", *map(str, stubs)]
    assert len(wanted) > 10
    assert [path for path in wanted if not files("intentpm").joinpath(path).is_file()] == []


def test_a_script_without_mistakes_has_none(findings: list[Finding]) -> None:
    assert [finding for finding in findings if finding.script == "typed" and finding.kind == "error"] == []


def test_what_a_script_gets_has_the_type_it_has(findings: list[Finding]) -> None:
    revealed = [finding.text for finding in findings if finding.text.startswith("Revealed type is")]
    rows = r'Revealed type is "numpy\.ndarray\[.*, numpy\.dtype\[Any\]\]"'
    for wanted, text in zip(
        (rows, rows, r'Revealed type is "(builtins\.)?list\[(builtins\.)?float\]"'), revealed, strict=True
    ):
        assert re.fullmatch(wanted, text)


def test_each_mistake_is_found_and_nothing_else(findings: list[Finding]) -> None:
    expected = {
        number: line.rpartition("  # ")[2]
        for number, line in enumerate((SCRIPTS / "mistyped.py").read_text().splitlines(), 1)
        if "  # " in line
    }
    assert len(expected) > 20
    found = {
        finding.line: finding.code for finding in findings if finding.script == "mistyped" and finding.kind == "error"
    }
    assert found == expected


def test_the_script_does_what_its_types_say(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(SCRIPTS / "typed.py"), run_name="__main__")
    assert capsys.readouterr().err.splitlines() == [
        "Runtime type is 'ndarray'",
        "Runtime type is 'ndarray'",
        *["Runtime type is 'ndarray'"] * 4,
        "Runtime type is 'list'",
    ]
