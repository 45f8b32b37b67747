"""Ranks that die while the others go on (docs/membership.md): random programs, and defects that they must find."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.losses import run_loss_seed
from support.simulation import simulate

from intentpm.foundation.errors import Error, PeerLostError, RankLost
from intentpm.runtime._native import mutations
from intentpm.runtime.config import Config
from intentpm.transports.sim import SimulationError

SEEDS = range(40)
EPOCHS = ("old epoch heard", "old epoch kept")
"""Of which one is nothing without the other."""
SAVED = ("older checkpoint",)
"""Defects that programs without saves cannot find."""
CONTENDED = {"management": "adaptive", "hand_over": True, "keys": {"pushed": 1, "stepped": 2, "set": 1, "gathered": 2}}
"""Programs in which writes are often under way by way of a rank that had the key a moment ago."""
FOUND = (AssertionError, SimulationError, Error)


@pytest.mark.parametrize("deaths", [1, 2, 3])
def test_rows_are_as_rank_lost_says(deaths: int) -> None:
    told = sum(run_loss_seed(seed, deaths).told for seed in SEEDS)
    assert told > 0


def test_rows_that_move_all_the_time_are_as_rank_lost_says() -> None:
    for seed in SEEDS:
        run_loss_seed(seed, 2, **CONTENDED)


def test_a_key_that_was_asked_for_once_and_is_restored_here() -> None:
    """Then handed over, it stays as a replica, whose steps must reach the new owner; rank 1's did not."""
    run_loss_seed(1026, 1)


@pytest.mark.parametrize("deaths", [1, 2])
def test_rows_come_back_from_checkpoints(tmp_path: Path, deaths: int) -> None:
    """Saves that a death interrupts are void, what was made before is right, and lost rows are as in the last."""
    programs = [run_loss_seed(seed, deaths, folder=tmp_path) for seed in SEEDS]
    assert sum(program.saves.made for program in programs) > 0
    assert any(program.came_from_checkpoint for program in programs)


def test_the_same_seed_is_the_same_history() -> None:
    traces = {run_loss_seed(5, 2).job.network.trace_hash for _ in range(2)}
    assert len(traces) == 1


@pytest.mark.parametrize("defect", [name for name in mutations.OF_LOSSES if name not in EPOCHS])
def test_a_planted_defect_is_found(defect: str, tmp_path: Path) -> None:
    folder = tmp_path if defect in SAVED else None
    changes: dict[str, Any] = CONTENDED if defect == "unsure untold" else {}
    for seed in range(400):
        try:
            with mutations.plant(defect):
                run_loss_seed(seed, 1, steps=60, folder=folder, **changes)
        except FOUND:
            return
    pytest.fail(f"nobody noticed: {defect}")


def test_messages_of_an_earlier_membership_are_refused() -> None:
    """Programs have none, for ranks wait until none is under way. So ranks send some, and nobody answers them."""
    for seed in range(40):
        try:
            with mutations.plant("old epoch kept"):
                run_loss_seed(seed, 1, steps=60)
        except FOUND:
            break
    else:
        pytest.fail("nobody refused them")
    with mutations.plant("old epoch kept", "old epoch heard"):
        run_loss_seed(seed, 1, steps=60)


def test_a_rank_that_is_only_silent_is_out() -> None:
    """The others go on; it ends by itself, for it cannot know that they are gone."""
    with simulate(3, 1, Config(on_loss="continue", peer_timeout=1.0), max_virtual_s=60.0) as job:
        tables = job.create_table("t", 30, 2)
        ended: dict[int, BaseException] = {}

        def train(rank: int) -> None:
            worker = job.ranks[rank].worker()
            try:
                for _ in range(400):
                    worker.pull(tables[rank], range(30))
                    job.network.pause(10_000.0)
            except Error as error:
                ended[rank] = error

        def form(rank: int) -> None:
            manager = job.ranks[rank]
            while job.network.now < 30e9 and not manager._engine.has_failed() and len(manager.living) == 3:
                if manager.going_on.reformer.is_due():
                    with suppress(Error):  # of the silent one, which fails
                        manager.going_on.reformer.form()
                job.network.pause(1000.0)

        job.network.silence(2)
        for rank in range(3):
            job.spawn(rank, lambda rank=rank: train(rank))
            job.spawn(rank, lambda rank=rank: form(rank))
        job.run()
        assert isinstance(ended[0], RankLost)
        assert ended[0].ranks == [2]
        assert isinstance(ended[1], RankLost)
        assert isinstance(ended[2], PeerLostError)
        assert job.ranks[0].living == job.ranks[1].living == [0, 1]
        job.lose({2})
