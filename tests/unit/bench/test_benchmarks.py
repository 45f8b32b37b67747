"""Cases that the suite measures are files of pytest-benchmark's: its own command reads them, and so do the plots."""

import json
import math
import subprocess
import sys

import pytest
from click.testing import CliRunner

from intentpm.bench.benchmarks import Case, describe_case, read_benchmarks, write_benchmarks
from intentpm.bench.cli import plot

INFO = {"situation": "same keys", "keys": 10_000, "threads": 2, "transport": "none"}
CASES = [
    Case("pull", [3e-9, 1e-9, 2e-9], unit="s/row", info={**INFO, "notes": {"runs": 3}}),
    Case("pull", [4e-9], "np.take", "s/row", INFO),
    Case("pull", [5e-9], "np.take", "s/row", {**INFO, "threads": 4}),
    Case("staleness", [math.nan, 7.0], info={"transport": "tcp"}),
    Case("nothing", [math.nan], info={}),
]


@pytest.fixture
def path(tmp_path):
    write_benchmarks(tmp_path / "deep" / "threads-1.json", "threads", CASES)
    return tmp_path / "deep" / "threads-1.json"


def test_what_is_written_can_be_read(path):
    pull, take, _, staleness = read_benchmarks(path)
    assert pull["group"] == take["group"] == "pull, same keys, keys 10,000, threads 2 [s/row]"
    assert (pull["name"], take["name"]) == ("intentpm", "np.take")
    assert pull["stats"]["median"] == 2e-9
    assert pull["stats"]["data"] == [3e-9, 1e-9, 2e-9]
    assert pull["extra_info"]["notes"] == {"runs": 3}
    assert {"operation": "pull", "by": "intentpm", "unit": "s/row", **INFO}.items() <= pull["extra_info"].items()
    assert staleness["stats"]["data"] == [7.0]
    document = json.loads(path.read_text())
    assert set(document) == {"machine_info", "commit_info", "benchmarks", "datetime", "version"}
    assert "commit" in pull["extra_info"]


def test_the_group_tells_cases_apart_but_for_who_did_it():
    info = {"operation": "pull", "unit": "s", "by": "x", "keys": 1, "transport": "tcp", "commit": "abc", "notes": {}}
    assert describe_case(info) == "pull, keys 1, tcp"
    assert describe_case(info | {"by": "y", "commit": "def", "notes": {"a": 1}}) == describe_case(info)
    assert describe_case(info | {"keys": 2}) != describe_case(info)


def test_pytest_benchmark_compares_two_runs(path):
    later = path.with_name("threads-2.json")
    write_benchmarks(later, "threads", [Case("pull", [1e-9], unit="s/row", info=INFO)])
    command = [sys.executable, "-m", "pytest_benchmark", "compare", str(path), str(later), "--columns=median"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (group,) = [
        part for part in done.stdout.split("benchmark '") if part.startswith("pull, same keys, keys 10,000, threads 2")
    ]
    assert "3 tests" in group
    assert [line.split()[0] for line in group.splitlines() if "threads-" in line] == ["intentpm", "intentpm", "np.take"]


def test_a_plot_of_them(path):
    picture = path.with_suffix(".png")
    result = CliRunner().invoke(plot, [str(path)])
    assert result.exit_code == 0, result.output
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("content", ["{}", "[]", '{"benchmarks": [{"extra_info": {}}]}', "no JSON"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x\.json|Expecting value"):
        read_benchmarks(tmp_path / "x.json")
