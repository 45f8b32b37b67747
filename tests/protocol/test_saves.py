"""Checkpoints made while random programs run: exactly what was written before each rank's cut; ``support/saves.py``."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.programs import MODES
from support.saves import SAVE_DEFECTS, run_saving_seed

from intentpm.runtime._native.mutations import plant

pytestmark = pytest.mark.usefixtures("one_core")

SEEDS_PER_MODE = 40
SEEDS_TO_FIND = 200


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory: what is on disk is another test's business."""
    made = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize("management", MODES)
def test_a_checkpoint_has_what_was_written_before_the_cut(folder: Path, management: str) -> None:
    for seed in range(SEEDS_PER_MODE):
        run_saving_seed(seed, folder, management)


@pytest.mark.parametrize("defect", SAVE_DEFECTS)
def test_planted_defects_are_found(folder: Path, defect: str) -> None:
    with plant(defect):
        for seed in range(SEEDS_TO_FIND):
            try:
                run_saving_seed(seed, folder, "adaptive")
            except Exception:
                return
    pytest.fail(f"{defect!r} went unnoticed in {SEEDS_TO_FIND} programs")
