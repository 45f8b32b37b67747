"""Random programs of ranks whose rows lie on emulated devices, in every mode; and defects that they must find.

Many more seeds: ``python -m tests.protocol.fuzz --seeds 10000 --devices``.
"""

from pathlib import Path

import pytest
from support.programs import DEVICES, MODES, ROW_ITEMS, Plan, run_seed
from support.saves import run_saving_seed

from intentpm.foundation.errors import Error
from intentpm.runtime._native import mutations
from intentpm.transports.sim import SimulationError

pytestmark = pytest.mark.usefixtures("one_core")

SEEDS_PER_MODE = 40
A_SAVE_BEGINS_WITH_A_ROUND = 250  # of another rank, whose rows move with their copies


@pytest.mark.parametrize("management", MODES)
def test_no_program_breaks_the_semantics(management: str) -> None:
    for seed in range(SEEDS_PER_MODE):
        run_seed(seed, management, devices=DEVICES)


def test_checkpoints_are_of_one_moment(tmp_path: Path) -> None:
    for seed in (*range(60), A_SAVE_BEGINS_WITH_A_ROUND):
        run_saving_seed(seed, tmp_path, devices=DEVICES)


def test_ranks_differ_in_where_rows_are() -> None:
    plans = [Plan.draw(seed).with_devices(seed) for seed in range(20)]
    shares = [len(plan.storages) / (len(ROW_ITEMS) * plan.size) for plan in plans]
    assert min(shares) < 0.5
    assert max(shares) == 1


def test_same_seed_gives_same_trace() -> None:
    traces = [[run_seed(seed, devices=DEVICES) for seed in range(20)] for _ in range(2)]
    assert traces[0] == traces[1]


@pytest.mark.parametrize("name", sorted(mutations.OF_DEVICES | mutations.OF_TIERS))
def test_planted_defect_is_found(name: str) -> None:
    kinds = ("tiered",) if name in mutations.OF_TIERS else ("gpu",)
    with mutations.plant(name):
        for seed in range(200):
            try:
                run_seed(seed, devices=kinds)
            except (AssertionError, SimulationError, Error):
                return
    pytest.fail(f"200 programs did not notice the planted defect {name!r}")
