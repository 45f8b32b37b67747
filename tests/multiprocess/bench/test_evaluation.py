"""``intentpm bench tasks``: its page, and that it goes on where it was interrupted."""

import json

import pytest
from click.testing import CliRunner

from intentpm.bench.cli import bench
from intentpm.bench.scenarios.networks import Network

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(600)]  # ranks on hosts import torch

MF = ["tasks", "--size", "small", "--task", "mf"]


def run(folder, *arguments, exit_code=0):
    """What ``intentpm bench`` prints; its page is in ``folder``."""
    result = CliRunner().invoke(bench, [*arguments, "--out", str(folder)], catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return result.output


def test_a_page_about_runs_that_are_kept(tmp_path):
    options = [*MF, "--network", "1xshm", "--network", "2xshm", "--mode", "static"]
    first = run(tmp_path, *options)
    kept = tmp_path / "evaluation/mf-2xshm-static.json"
    document = json.loads(kept.read_bytes())
    assert document["config"]["ranks"] == 2
    assert 0.3 < document["rows"][-1]["local_share"] < 0.9, "half of the rows of a table that nothing moves"
    page = (tmp_path / "evaluation.md").read_text()
    assert "| 1xshm | - |" in page
    assert "| 2xshm | static |" in page
    assert (tmp_path / "evaluation.png").stat().st_size > 1_000
    document["rows"][-1]["test_rmse"] = 123.0
    kept.write_text(json.dumps(document))
    again = run(tmp_path, *options)
    assert "123.0000" in again, "a run that is kept is not made again"
    assert "123.0000" not in first


def test_a_run_that_fails_is_a_line_of_the_page(tmp_path):
    said = run(tmp_path, *MF, "--network", "2xshm", "--transport", "none", "--mode", "adaptive")
    assert "Error" in said
    assert "none" in said
    assert "| 2xshm | adaptive | - |" in (tmp_path / "evaluation.md").read_text()
    assert not list(tmp_path.glob("evaluation/*")), "it may work the next time"


@pytest.mark.netns
def test_hosts_behind_slow_links(tmp_path):
    if reason := Network.parse("2x500mbit").why_unavailable():
        pytest.skip(reason)
    said = run(tmp_path, *MF, "--network", "2x500mbit", "--mode", "adaptive")
    kept = tmp_path / "evaluation/mf-2x500mbit-adaptive.json"
    assert kept.is_file(), said
    document = json.loads(kept.read_bytes())
    assert document["config"]["ranks"] == 2
    assert document["config"]["transport"] == "tcp"
    assert document["rows"][-1]["bytes_sent"] > 0


def test_what_cannot_be_is_said(tmp_path):
    assert "nowhere: there is no such folder" in run(tmp_path, "tasks", "--data", "nowhere", exit_code=2)
    assert "'two': needs RANKSxRATE" in run(tmp_path, *MF, "--network", "two", exit_code=2)
