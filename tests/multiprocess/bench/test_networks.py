"""The modes of management compared on shaped links and on simulated ranks, as a user runs it."""

import json

import pytest
from click.testing import CliRunner

from intentpm.bench.cli import bench
from intentpm.bench.scenarios import simulated_job
from intentpm.bench.scenarios.networks import Network
from intentpm.bench.scenarios.regret import MODES

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(600)]  # ranks on hosts import torch

NETWORK = "2x500mbit"
ONE_ROUND = ["management", "--network", NETWORK, "--size", "small", "--workload", "zipf", "--repeats", "1"]


def run(*arguments):
    result = CliRunner().invoke(bench, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.netns
def test_modes_on_shaped_links(tmp_path):
    if reason := Network.parse(NETWORK).why_unavailable():
        pytest.skip(reason)
    lines = run(*ONE_ROUND, "--out", tmp_path).splitlines()
    assert [line.split()[2] for line in lines[:-1]] == list(MODES)
    rows = json.loads((tmp_path / "regret.json").read_bytes())["rows"]
    assert [row["network"] for row in rows] == ["one rank"] + [NETWORK] * len(MODES)
    assert rows[0]["megabytes"] == 0
    assert all(row["megabytes"] > 0 and 0 < row["quality"] < 0.5 for row in rows[1:])
    assert any(row["seconds"] for row in rows[1:]), "no mode has reached the quality of one rank"
    assert (tmp_path / "regret.md").read_text().splitlines()[-1].startswith(f"| zipf | {NETWORK} |")
    assert (tmp_path / "regret.png").stat().st_size > 1_000
    assert len(run(*ONE_ROUND, "--resume", "--out", tmp_path).splitlines()) == 1, "nothing is measured twice"
    other = CliRunner().invoke(bench, [*ONE_ROUND, "--resume", "--transport", "ucx", "--out", str(tmp_path)])
    assert "--resume" in other.output
    assert other.exit_code == 2


def test_a_network_that_cannot_be_had_is_left_out_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(Network, "why_unavailable", lambda network: "network namespaces need root")
    assert "zipf 2x500mbit: left out: network namespaces need root" in run(*ONE_ROUND, "--out", tmp_path)


def test_modes_on_simulated_ranks(tmp_path):
    out = run("simulate", "--ranks", "2,5", "--latency", "0.1ms", "--bandwidth", "200mbit", "--steps", 5, "--keys", 300,
              "--out", tmp_path)  # fmt: skip
    assert out.count("us/step") == 2 * len(MODES)
    document = json.loads((tmp_path / "simulate.json").read_bytes())
    assert (document["config"]["latency_us"], document["config"]["gbytes_per_s"]) == (100.0, 0.025)
    assert "| zipf | 5 ranks |" in (tmp_path / "simulate.md").read_text()
    assert (tmp_path / "simulate.png").stat().st_size > 1_000


def test_a_mode_whose_simulation_goes_on_too_long_is_left_out_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(simulated_job, "MAX_EVENTS", 1_000)
    out = run("simulate", "--ranks", "5", "--steps", 5, "--keys", 300, "--out", tmp_path)
    left_out = out.count("left out: simulation seed 0: the run is over its budget of events")
    assert left_out >= 1
    assert len(json.loads((tmp_path / "simulate.json").read_bytes())["rows"]) == len(MODES) - left_out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "--ranks", "4,0"], "needs numbers from 1"),
        (["simulate", "--latency", "2"], "needs a number above 0 and one of ns, us, ms"),
        (["simulate", "--bandwidth", "10furlongs"], "one of MB, GB, mbit, gbit"),
        (["management", "--network", "many"], "needs RANKSxRATE"),
        (["management", "--workload", "kge-local"], "only with --network"),
        (["management", "--workload", "kge", "--network", "2xshm"], "only without --network"),
    ],
)
def test_errors_are_messages(tmp_path, arguments, message):
    result = CliRunner().invoke(bench, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
