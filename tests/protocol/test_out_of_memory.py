"""Memory for messages runs out at one rank: every rank ends with an error that says so. None hangs or crashes.

The transport of one rank refuses its n-th allocation, that one alone or all from there on. No rank may need
``peer_timeout`` to notice: a run has less virtual time than that.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.programs import MODES, Plan, Program, draw_step
from support.simulation import Simulation

from intentpm.foundation.errors import MemoryBudgetError, PeerLostError
from intentpm.runtime._native import mutations
from intentpm.runtime.config import Config
from intentpm.runtime.manager import ParameterManager
from intentpm.transports.sim_model import NetworkModel

pytestmark = pytest.mark.usefixtures("one_core")

SEEDS_PER_MODE = 80
MOST_ALLOCATIONS = 600  # about what a rank makes in a program
NEVER_CHECKED = 10**9  # the invariants do not hold at the end of a job that failed
VIRTUAL_S = 9.0
PEER_TIMEOUT_S = 20.0

Outcomes = list[Exception | None]


def run_to_the_end(job: Simulation, lives: list[Callable[[ParameterManager], Any]]) -> Outcomes:
    """One task per rank; what each raised. All message memory must have come back afterwards."""
    outcomes: Outcomes = [None] * job.size

    def live(rank: int) -> None:
        try:
            lives[rank](job.ranks[rank])
            job.ranks[rank].close()
        except (PeerLostError, MemoryBudgetError) as error:
            outcomes[rank] = error
            if isinstance(error, MemoryBudgetError):
                job.ranks[rank].abort(f"failed with {error!r}")  # as the end of its with block does

    for rank in range(job.size):
        job.spawn(rank, lambda rank=rank: live(rank))
    try:
        job.run()
    except BaseException as failure:
        failure.add_note(f"the last events:\n{job.history()[-3000:]}")
        raise
    finally:
        job.abort()
    assert job.network.allocated_bytes == 0
    return outcomes


def check(outcomes: Outcomes, suspects: set[int]) -> None:
    """Ranks that fail do so for want of memory, and these are among the suspects, or because they lost such a rank."""
    culprits = {rank for rank, error in enumerate(outcomes) if isinstance(error, MemoryBudgetError)}
    assert culprits <= suspects
    assert {error.rank for error in outcomes if isinstance(error, PeerLostError)} <= culprits


def run_program(seed: int, management: str, prepare: Callable[[Simulation], None]) -> Outcomes:
    """A random program, after ``prepare``."""
    plan = replace(Plan.draw(seed, management), workers_per_rank=1)
    config = replace(plan.config, peer_timeout=PEER_TIMEOUT_S)
    job = Simulation(plan.size, seed, config, plan.model, max_virtual_s=VIRTUAL_S)
    program = Program(job, plan, NEVER_CHECKED)
    prepare(job)

    def live(manager: ParameterManager) -> None:
        worker = program.workers[manager.rank]
        draw = random.Random(f"steps {seed} {manager.rank}")
        for _ in range(plan.steps):
            worker.do(draw_step(draw, worker))
            job.network.pause(draw.choice((0.0, 1.0, 20.0, 500.0)))
        worker.finish()
        manager.barrier()

    return run_to_the_end(job, [live] * plan.size)


@pytest.mark.parametrize("count", [1, None], ids=["once", "for good"])
@pytest.mark.parametrize("management", MODES)
def test_every_rank_of_a_random_program_ends(management: str, count: int | None) -> None:
    failed = 0
    for seed in range(SEEDS_PER_MODE):
        draw = random.Random(f"memory {seed}")
        culprit, nth = draw.randrange(2), int(MOST_ALLOCATIONS ** draw.random()) - 1

        def refuse(job: Simulation, culprit: int = culprit, nth: int = nth) -> None:
            job.network.fail_allocations(culprit, nth, count)

        outcomes = run_program(seed, management, refuse)
        check(outcomes, {culprit})
        failed += any(outcomes)
    assert failed > SEEDS_PER_MODE // 2, "most programs ended before memory ran out"


def test_every_rank_ends_when_nothing_can_wait_for_a_key() -> None:
    """What waits for a key on its way is not in the transport's memory."""
    failed = 0
    with mutations.plant("parking refused"):
        for seed in range(SEEDS_PER_MODE):
            outcomes = run_program(seed, "relocate", lambda job: None)
            check(outcomes, set(range(len(outcomes))))
            failed += any(outcomes)

    assert failed > SEEDS_PER_MODE // 8, "hardly any program had something to wait"


@pytest.mark.parametrize("count", [1, None], ids=["once", "for good"])
@pytest.mark.parametrize("culprit", [0, 2])
def test_every_rank_in_a_collective_call_ends(culprit: int, count: int | None) -> None:
    def live(manager: ParameterManager) -> None:
        manager.create_table("t", 100, 4)
        manager.barrier()

    for nth in range(20):
        job = Simulation(3, nth, Config(peer_timeout=PEER_TIMEOUT_S), NetworkModel(), max_virtual_s=VIRTUAL_S)
        job.network.fail_allocations(culprit, nth, count)
        outcomes = run_to_the_end(job, [live] * 3)
        check(outcomes, {culprit})
        if nth < 4:  # table and barrier
            assert all(outcomes)


@pytest.mark.parametrize("culprit", [0, 1])
def test_who_explains_a_key_and_who_asks_both_end(culprit: int) -> None:
    for nth in range(4):
        job = Simulation(2, nth, Config(peer_timeout=PEER_TIMEOUT_S), NetworkModel(), max_virtual_s=VIRTUAL_S)
        tables = job.create_table("t", 100)
        key = int(np.setdiff1d(np.arange(100), tables[0].owned_keys())[0])
        job.network.fail_allocations(culprit, nth, 1)

        def ask(manager: ParameterManager, table: Any = tables[0], key: int = key) -> None:
            manager.explain(table, key, ask_owner=True)

        outcomes = run_to_the_end(job, [ask, lambda manager: None])
        check(outcomes, {culprit})
        assert all(outcomes) or nth > 0
