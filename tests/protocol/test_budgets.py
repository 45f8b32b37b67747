"""Random programs under a memory budget, and defects planted in how it is kept."""

import pytest
from support.budgeted import run_budget_seed

from intentpm.runtime._native import mutations
from intentpm.transports.sim import SimulationError

SEEDS = 80


@pytest.mark.parametrize("part", range(4))
def test_programs_are_exact_and_within_their_budget(part: int) -> None:
    for seed in range(part * SEEDS // 4, (part + 1) * SEEDS // 4):
        run_budget_seed(seed)


def test_same_seed_same_trace() -> None:
    assert run_budget_seed(3) == run_budget_seed(3)


@pytest.mark.parametrize("name", sorted(mutations.OF_BUDGETS))
def test_defect_is_found(name: str) -> None:
    with mutations.plant(name):
        for seed in range(100):
            try:
                run_budget_seed(seed)
            except (AssertionError, SimulationError):
                return
    pytest.fail(f"100 programs did not notice the planted defect {name!r}")
