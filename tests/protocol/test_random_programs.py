"""Random programs in every mode: no read, and no final value, that the semantics of DESIGN section 3 exclude.

``support/programs.py`` says what is checked. Many more seeds: ``python -m tests.protocol.fuzz --seeds 10000``.
"""

import ast
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.programs import MODES, run_seed

TESTS = Path(__file__).resolve().parents[1]
SEEDS_PER_MODE = 60


@pytest.fixture(autouse=True, scope="module")
def _one_core() -> Iterator[None]:
    """One thread of a simulation runs at any time; on one core handing over is three times as fast."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)
    gc.collect()


@pytest.mark.parametrize("management", MODES)
def test_no_program_breaks_the_semantics(management: str) -> None:
    for seed in range(SEEDS_PER_MODE):
        run_seed(seed, management)


def test_same_seed_gives_same_trace_in_any_process() -> None:
    code = "from support.programs import run_seed; print([run_seed(seed) for seed in range(100, 180)])"
    traces = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=TESTS,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert traces[0] == traces[1] == f"{[run_seed(seed) for seed in range(100, 180)]}\n"
    assert len(set(ast.literal_eval(traces[0]))) == 80
