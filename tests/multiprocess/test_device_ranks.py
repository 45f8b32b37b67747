"""Jobs of two processes whose tables lie on emulated devices: they learn as well as with rows on the host."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, pytest.mark.timeout(240)]

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial" / "distributed.py"
SPEC = "users=800,items=300,ratings=20000,rank=4"
OPTIONS = ["--dim", "8", "--lr", "0.04", "--reg", "0.01", "--epochs", "20", "--batch", "200", "--seed", "1"]
"""So that two runs of two ranks, which are never in step alike, end within 2 % of each other."""
ON_DEVICE = {"INTENTPM_DEVICE": "emulated:5"}
STORAGES = {
    "host": {},
    "gpu": ON_DEVICE | {"INTENTPM_STORAGE": "gpu"},
    "tiered": ON_DEVICE
    | {"INTENTPM_STORAGE": "tiered", "INTENTPM_DEVICE_MEMORY": "8KiB"},  # 200 rows and so of each table
}


def output_of(folder: Path, storage: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "intentpm", *arguments]
    environment = os.environ | {"NO_COLOR": "1"} | STORAGES[storage]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=folder, env=environment)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    return run.stdout


def test_matrix_factorisation(tmp_path: Path) -> None:
    errors = {
        storage: json.loads(
            output_of(tmp_path, storage, "train", "mf", "-n", "2", "--json", "--generate", SPEC, *OPTIONS)
        )["rows"][-1]["test_rmse"]
        for storage in STORAGES
    }
    assert errors["gpu"] < 1.05 * errors["host"]
    assert errors["tiered"] < 1.05 * errors["host"]


def test_the_torch_tutorial(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    errors = {
        storage: float(
            re.findall(r"test RMSE ([\d.]+)", output_of(tmp_path, storage, "run", "-n", "2", str(TUTORIAL), "", "2"))[
                -1
            ]
        )
        for storage in STORAGES
    }
    assert abs(errors["gpu"] - errors["host"]) < 0.02
    assert abs(errors["tiered"] - errors["host"]) < 0.02


ANNOUNCING = """
import time

import numpy as np

import intentpm

with intentpm.init() as pm:
    table = pm.create_table("t", 1000, 8, init=1.0)
    worker, until = pm.worker(), time.monotonic() + 60
    told = {"hits": 0}
    while told["hits"] < 500 or not told["gave_way"] or not told["bytes_to_host"]:
        assert time.monotonic() < until, f"rows do not come and go within 60 s: {told}"
        keys = np.random.default_rng(worker.clock).integers(0, 1000, 50)
        worker.intent(table, keys, worker.clock, worker.clock + 3)
        worker.wait_sync()
        worker.push(table, keys, np.zeros((50, 8), np.float32))
        assert (worker.pull(table, keys) == 1).all()
        worker.advance_clock()
        told = pm.stats()["tables"]["t"]
    print("seats", told["seats"])
"""


def test_windows_bring_rows_over(tmp_path: Path) -> None:
    """As it is with the progress threads of real ranks: rows come, give way to others, and are written back."""
    script = tmp_path / "announcing.py"
    script.write_text(ANNOUNCING)
    assert output_of(tmp_path, "tiered", "run", "-n", "2", str(script)).count("seats 227") == 2
