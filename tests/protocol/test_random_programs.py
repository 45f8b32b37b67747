"""Random programs in every mode: no read, and no final value, that the semantics of DESIGN section 3 exclude.

``support/programs.py`` says what is checked. Many more seeds: ``python -m tests.protocol.fuzz --seeds 10000``.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import MODES, run_seed

TESTS = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("one_core")

SEEDS_PER_MODE = 60
WIDE_SEEDS = 6


@pytest.mark.parametrize("management", MODES)
def test_no_program_breaks_the_semantics(management: str) -> None:
    for seed in range(SEEDS_PER_MODE):
        run_seed(seed, management)


def test_no_program_of_many_ranks_breaks_the_semantics() -> None:
    for seed in range(WIDE_SEEDS):
        run_seed(seed, ranks=64)


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
