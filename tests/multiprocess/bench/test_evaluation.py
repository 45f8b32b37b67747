"""``intentpm bench tasks``: its page, and that it goes on where it was interrupted."""

import json

import pytest
from support.train_command import intentpm

from intentpm.bench.scenarios.networks import Network

pytestmark = pytest.mark.multiprocess


def test_a_page_about_runs_that_are_kept(tmp_path):
    options = [
        "bench",
        "tasks",
        "--size",
        "small",
        "--task",
        "mf",
        "--network",
        "1xshm",
        "--network",
        "2xshm",
        "--mode",
        "static",
        "--out",
        "out",
    ]
    first = intentpm(*options, cwd=tmp_path)
    kept = tmp_path / "out/evaluation/mf-2xshm-static.json"
    document = json.loads(kept.read_bytes())
    assert document["config"]["ranks"] == 2
    assert 0.3 < document["rows"][-1]["local_share"] < 0.9, "half of the rows of a table that nothing moves"
    page = (tmp_path / "out/evaluation.md").read_text()
    assert "| 1xshm | - |" in page
    assert "| 2xshm | static |" in page
    assert (tmp_path / "out/evaluation.png").stat().st_size > 1_000
    document["rows"][-1]["test_rmse"] = 123.0
    kept.write_text(json.dumps(document))
    again = intentpm(*options, cwd=tmp_path)
    assert "123.0000" in again.stdout, "a run that is kept is not made again"
    assert "123.0000" not in first.stdout


def test_a_run_that_fails_is_a_line_of_the_page(tmp_path):
    options = [
        "bench",
        "tasks",
        "--size",
        "small",
        "--task",
        "mf",
        "--network",
        "2xshm",
        "--transport",
        "none",
        "--out",
        "out",
    ]
    run = intentpm(*options, "--mode", "adaptive", cwd=tmp_path)
    assert "Error" in run.stdout
    assert "none" in run.stdout
    assert "| 2xshm | adaptive | - |" in (tmp_path / "out/evaluation.md").read_text()
    assert not list(tmp_path.glob("out/evaluation/*")), "it may work the next time"


def test_missing_data_is_said(tmp_path):
    run = intentpm("bench", "tasks", "--data", "nowhere", cwd=tmp_path, succeeds=False)
    assert "nowhere: there is no such folder" in run.stderr


def test_hosts_behind_slow_links(tmp_path):
    if reason := Network.parse("2x500mbit").why_unavailable():
        pytest.skip(reason)
    options = ["--size", "small", "--task", "mf", "--network", "2x500mbit", "--mode", "adaptive", "--out", "out"]
    intentpm("bench", "tasks", *options, cwd=tmp_path)
    document = json.loads((tmp_path / "out/evaluation/mf-2x500mbit-adaptive.json").read_bytes())
    assert document["config"]["ranks"] == 2
    assert document["config"]["transport"] == "tcp"
    assert document["rows"][-1]["bytes_sent"] > 0


def test_a_network_that_is_none_is_said(tmp_path):
    run = intentpm("bench", "tasks", "--size", "small", "--network", "two", cwd=tmp_path, succeeds=False)
    assert "'two': needs RANKSxRATE" in run.stderr
