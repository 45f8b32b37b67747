"""The benches run and measure what they say; the exactness bench finds planted errors."""

import subprocess
import sys

import numpy as np
import pytest

import intentpm
from intentpm.bench.runner import run_scenario
from intentpm.bench.scenarios import exactness

pytestmark = pytest.mark.multiprocess

TIMEOUT_S = 100
ARGUMENTS = {
    "seed": 1,
    "num_keys": 200,
    "dim": 2,
    "dtype": "float32",
    "owned_keys": 20,
    "workers": 2,
    "seconds": 0.3,
    "intents": True,
}


def bench(cwd, *arguments):
    command = [sys.executable, "-m", "intentpm", "bench", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=cwd)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    return run.stdout


def test_exactness(tmp_path):
    out = bench(tmp_path, "exactness", "-n", 2, "--seconds", 1, "--transport", "tcp", "--num-keys", 500)
    assert "0 wrong, 0 reads missed an own write" in out


def test_exactness_finds_a_lost_push(tmp_path, monkeypatch):
    def lose_one(self):
        self.pushed[7, 1] += 1  # as if this worker's push had not arrived

    monkeypatch.setattr(exactness.PushWorker, "_overwrite", lambda self: None)
    run = exactness.PushWorker.run

    def run_and_lose(self, stop_at):
        run(self, stop_at)
        lose_one(self)

    monkeypatch.setattr(exactness.PushWorker, "run", run_and_lose)
    with intentpm.init() as pm:
        result = exactness.run_rank(pm, ARGUMENTS | {"workers": 1}, tmp_path)
    assert result["wrong_sums"]["values"] == 1
    assert (result["wrong_sums"]["first"][0]["key"], result["wrong_sums"]["first"][0]["column"]) == (7, 1)
    assert result["keys"] > 0


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
def test_exactness_on_one_rank(tmp_path, dtype):
    with intentpm.init() as pm:
        result = exactness.run_rank(pm, ARGUMENTS | {"dtype": dtype}, tmp_path)
    assert result["wrong_sums"]["values"] == result["wrong_owned"]["values"] == result["stale_reads"] == 0
    assert result["compared"] == 2 * (200 + 2 * 20)


def test_runner_reports_a_failing_scenario():
    import click

    with pytest.raises(click.ClickException, match=r"ended with exit code 1"):
        run_scenario("intentpm.bench.results", 2, {}, transport="tcp", timeout_s=60)


def test_rank_table(tmp_path):
    from intentpm.bench.tasks.rank_table import RankTable

    with intentpm.init() as pm:
        table = RankTable(pm, pm.worker(), length=3)
        for value in range(5):
            assert np.array_equal(table.gather([value, 2.0**52, -1]), [[value, 2.0**52, -1]])
