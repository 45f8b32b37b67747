"""Every part of the suite runs and measures what it says, at the smallest effort; the command puts it all together."""

import json
import math

import matplotlib as mpl
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from intentpm.bench import plots
from intentpm.bench.cli import bench, plot
from intentpm.bench.kernels.keys import draw_keys
from intentpm.bench.results import Row
from intentpm.bench.suite import report, run
from intentpm.bench.suite.cases import case_key
from intentpm.bench.suite.parts import PARTS, SUBJECT, Part, load
from intentpm.bench.suite.run import run_suite
from intentpm.bench.suite.targets import TARGETS, judge

EFFORT = 0.02
HERE = [
    "local",
    "threads",
    pytest.param("memory", marks=pytest.mark.multiprocess),
    pytest.param("intents_cost", marks=pytest.mark.multiprocess),
    pytest.param("idle_cost", marks=pytest.mark.multiprocess),
]


@pytest.mark.parametrize("name", HERE)
def test_part(name, tmp_path):
    lines = []
    done = run_suite([name], EFFORT, 1, tmp_path, lines.append)
    assert not done.failures, done.failures
    rows = done.rows[name]
    assert all(row["samples"] and all(map(math.isfinite, row["samples"])) for row in rows)
    assert len({case_key(row) for row in rows}) == len(rows)
    for target in TARGETS:
        if target.own.part == name:
            assert judge(target, done.rows).reached is not None, target.what
    assert json.loads((tmp_path / f"{name}.json").read_text())["rows"] == json.loads(json.dumps(rows))
    with mpl.rc_context():
        run.draw_part(load(name), rows, figure := Figure())
    assert figure.axes


def fake_part(name="local", fails_in_run=None):
    calls = []

    def measure(effort):
        calls.append(effort)
        if fails_in_run is not None and len(calls) > fails_in_run:
            raise RuntimeError("the network is down")
        facts = {"by": SUBJECT, "distribution": "uniform", "situation": "same keys"}
        return [Row("pull", [1e-7] * 5, sizes={"keys": 1, "dim": 64, "num_keys": 100}, facts=facts)]

    def draw(rows, figure):
        figure.subplots().plot([len(row["samples"]) for row in rows])

    return Part(name, measure, draw)


@pytest.fixture
def fake(monkeypatch):
    known = {}
    for module in (run, report, plots):
        monkeypatch.setattr(module, "load", known.__getitem__)
    return known


def test_command_writes_everything_and_prints_the_table(tmp_path, fake):
    fake["local"] = fake_part()
    command = ["suite", "--part", "local", "--repeats", "3", "--effort", "0.5", "--out", str(tmp_path)]
    result = CliRunner().invoke(bench, command)
    assert result.exit_code == 0, result.output
    assert "local: run 3 of 3, 1 cases in" in result.output
    assert "part remote was not run: 8 targets" in result.output
    assert "part busy_server was not run: remote pull, server runs pure Python, 1 key, ucx-shm, p99" in result.output
    assert f"1 of 1 measured targets reached, {len(TARGETS) - 1} not measured" in result.output
    document = json.loads((tmp_path / "local.json").read_text())
    assert [row["facts"]["run"] for row in document["rows"]] == [0, 1, 2]
    assert document["config"]["part"] == "local"
    assert "| local pull, 1 key |" in (tmp_path / "targets.md").read_text()
    assert "| 15 |" in (tmp_path / "local.md").read_text()
    assert (tmp_path / "local.png").read_bytes()[:4] == b"\x89PNG"
    result = CliRunner().invoke(plot, [str(tmp_path / "local.json"), "--out", str(tmp_path / "again.png")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "again.png").exists()


def test_command_judges_earlier_results(tmp_path, fake):
    fake["local"] = part = fake_part()
    run_suite(["local"], 1.0, 2, tmp_path, list)
    judged = CliRunner().invoke(bench, ["suite", "--no-run", "--out", str(tmp_path)])
    assert judged.exit_code == 0, judged.output
    assert "1 of 1 measured targets reached" in judged.output
    assert "Runs: 2; effort 1.0" in (tmp_path / "targets.md").read_text()
    (tmp_path / "threads.json").write_text('{"bench": "other"}')
    refused = CliRunner().invoke(bench, ["suite", "--no-run", "--out", str(tmp_path)])
    assert refused.exit_code == 1
    assert "threads.json: is not a results file of part threads" in refused.output
    empty = CliRunner().invoke(bench, ["suite", "--no-run", "--out", str(tmp_path / "none")])
    assert empty.exit_code == 1
    assert part.name in empty.output


def test_a_part_that_fails_stops_no_other(tmp_path, fake):
    fake["local"], fake["threads"] = fake_part(), fake_part("threads", fails_in_run=1)
    command = ["suite", "--part", "threads", "--part", "local", "--repeats", "3", "--out", str(tmp_path)]
    result = CliRunner().invoke(bench, command)
    assert result.exit_code == 1
    assert "threads: FAILED: the network is down" in result.output
    assert "RuntimeError: the network is down" in result.output
    assert len(json.loads((tmp_path / "threads.json").read_text())["rows"]) == 1
    assert len(json.loads((tmp_path / "local.json").read_text())["rows"]) == 3


def test_command_refuses_unknown_parts():
    result = CliRunner().invoke(bench, ["suite", "--part", "everything"])
    assert result.exit_code == 2
    assert all(name in result.output for name in ("local", "remote"))


def test_parts_are_found_by_name():
    with pytest.raises(KeyError):
        load("everything")
    for name in PARTS:
        assert load(name).name == name


def test_keys_are_in_range_and_zipf_has_hot_ones():
    random = np.random.default_rng(0)
    for num_keys in (1, 7, 100_000):
        for distribution in ("uniform", "zipf"):
            keys = draw_keys(random, distribution, num_keys, 5_000)
            assert (keys.dtype, keys.shape) == (np.int64, (5_000,))
            assert keys.min() >= 0
            assert keys.max() < num_keys
    hottest = {name: np.bincount(draw_keys(random, name, 100_000, 5_000)).max() for name in ("uniform", "zipf")}
    assert hottest["zipf"] > 10 * hottest["uniform"]
