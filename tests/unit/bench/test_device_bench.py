"""``intentpm bench device`` on an emulated device, and the page that it writes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from intentpm.bench.scenarios.device_cli import device
from intentpm.bench.scenarios.device_page import document, page
from intentpm.bench.scenarios.device_rows import Measured


def test_a_rehearsal(tmp_path: Path) -> None:
    done = CliRunner().invoke(device, ["--device", "emulated", "--out", str(tmp_path / "d"), "--fact", "tests=7 tests"])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "d.json").read_text())
    names = {row["name"] for row in result["measured"] if row["by"] == "intentpm"}
    steps = {"step, SGD", "step, RowwiseAdagrad", "step, Adagrad", "step, Adam"}
    calls = {"pull, a worker's", "push_grad, Adam, a worker's"}
    assert names == {"gather", "add", *calls, *(f"{name} among several" for name in calls), *steps}
    assert result["facts"]["tests"] == "7 tests"
    assert all(row["median_ms"] > 0 and len(row["ms"]) in (1, 3) for row in result["measured"])
    assert not any("goal_ms" in row for row in result["measured"]), "the goals are an H100's"
    assert (tmp_path / "d.md").read_text().startswith("# Rows in device memory: emulated")


def test_goals_of_an_h100() -> None:
    measured = [
        Measured("copy, device to device", "the driver", [1.0], 3_000_000_000),
        Measured("gather", "intentpm", [0.4, 0.3, 0.35], 840_000_000),
        Measured("step, Adam", "intentpm", [2.0], 10**9),
        Measured("step, Adam", "torch EmbeddingBag + SparseAdam", [9.0], 10**9),
    ]
    result = document("NVIDIA H100 80GB HBM3", measured, {"driver": "580"})
    reached = {row["name"]: row.get("reached") for row in result["measured"] if row["by"] == "intentpm"}
    assert reached == {"gather": True, "step, Adam": False}
    assert result["gather_of_copy"] == pytest.approx(0.8)
    text = page(result)
    assert "| gather | intentpm | 0.350 | 2400 | 0.80 | 0.38 ms: reached |" in text
    assert "1.5 ms: missed" in text
    assert text.count("missed") == 1, "what others take has no goal"


def test_an_unknown_device_is_refused() -> None:
    assert CliRunner().invoke(device, ["--device", "tpu"]).exit_code != 0
