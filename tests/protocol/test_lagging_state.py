"""What goes between ranks of a row with an optimizer's state: one kept step as its gradient, news as weights alone."""

from typing import Any

import numpy as np
import pytest
from support.simulation import Simulation, simulate

from intentpm import optim
from intentpm.runtime._native import mutations
from intentpm.runtime.config import Config

ITEMS = 64
ROW_BYTES = 4 * ITEMS
STEPS_FROM_A_ROW = (
    optim.Adam(lr=0.1), optim.PartialRowwiseAdam(lr=0.1), optim.Adagrad(lr=0.1),
    optim.RowwiseAdagrad(lr=0.1, weight_decay=0.5, weight_decay_mode="l2"),
)  # fmt: skip


class Pair:
    """Two ranks that intend key 0: one owns it, the other holds a replica. What is written is sent at once."""

    def __init__(
        self, job: Simulation, optimizer: Any, owner_intends_clocks: int = 10**6, holder_intends_clocks: int = 10**6
    ) -> None:
        self.job = job
        self.sent_before = 0
        self.tables = job.create_table("t", 1, ITEMS, dtype="float32", init=0.5, optimizer=optimizer)
        self.workers = job.on_every_rank(lambda pm: pm.worker())
        self.owner = int(self.tables[0].owners()[0])
        self.holder = 1 - self.owner
        for rank, end in ((self.owner, owner_intends_clocks), (self.holder, holder_intends_clocks)):
            keys = [0] if end else []
            self.at(
                rank,
                lambda worker, table, end=end, keys=keys: (
                    worker.intent(table, keys, 0, max(end, 1)),
                    worker.wait_sync(),
                ),
            )
        assert self.tables[self.holder].replica_keys().tolist() == [0] * (holder_intends_clocks > 0)

    def at(self, rank: int, call: Any) -> Any:
        task = self.job.spawn(rank, lambda: call(self.workers[rank], self.tables[rank]))
        self.job.run()
        return task.value

    def step(self, rank: int, gradient: float, lr: float | None = None) -> None:
        row = np.full((1, ITEMS), gradient, np.float32)
        self.at(rank, lambda worker, table: worker.push_grad(table, [0], row, lr=lr))

    def pause(self, duration_us: float = 100_000.0) -> None:
        """Long enough for all that was written to be sent, answered and spread."""
        self.at(0, lambda worker, table: self.job.network.pause(duration_us))

    def weights(self, rank: int) -> float:
        return float(self.at(rank, lambda worker, table: worker.pull(table, [0])[0, 0]))

    def row(self, rank: int) -> Any:
        return self.at(rank, lambda worker, table: worker.pull(table, [0])[0])

    def state(self, rank: int, name: str) -> float:
        return float(self.at(rank, lambda worker, table: np.ravel(worker.pull_state(table, [0])[name])[0]))

    def sent(self, rank: int, kind: str) -> int:
        return int(self.job.ranks[rank].stats()["bytes_by_kind"][kind]["sent"])


def test_one_step_is_sent_as_its_gradient_and_a_block_whole() -> None:
    with simulate(2, 3, Config(management="replicate", seed=0)) as job:
        pair = Pair(job, optim.Adagrad(lr=0.1))
        before = pair.sent(pair.holder, "rounds")
        pair.step(pair.holder, 2.0)
        pair.pause()
        one = pair.sent(pair.holder, "rounds") - before
        assert ROW_BYTES < one < 1.5 * ROW_BYTES
    with simulate(2, 3, Config(management="replicate", seed=0, sync_interval=3600.0)) as job:
        pair = Pair(job, optim.Adagrad(lr=0.1))
        before = pair.sent(pair.holder, "rounds")
        pair.step(pair.holder, 2.0)
        pair.step(pair.holder, 3.0)
        pair.at(pair.holder, lambda worker, table: worker.wait_sync())
        assert 2 * ROW_BYTES < pair.sent(pair.holder, "rounds") - before < 2.5 * ROW_BYTES
        assert pair.state(pair.owner, "sum") == 13


def test_a_single_gradient_is_a_step_of_the_owner_with_its_own_rate() -> None:
    """Adam's moments are then those of steps one by one, whoever made them."""
    with simulate(2, 4, Config(management="replicate", seed=0)) as job:
        pair = Pair(job, optim.Adam(lr=0.1))
        alone = job.create_table("alone", 1, ITEMS, dtype="float32", init=0.5, optimizer=optim.Adam(lr=0.1))[pair.owner]
        for rank, gradient, lr in ((pair.owner, 1.0, None), (pair.holder, -3.0, 0.7), (pair.owner, 2.0, 0.3)):
            pair.step(rank, gradient, lr)
            pair.pause()
            row = np.full((1, ITEMS), gradient, np.float32)
            pair.at(pair.owner, lambda worker, table, row=row, lr=lr: worker.push_grad(alone, [0], row, lr=lr))
        assert pair.weights(pair.owner) == pair.at(pair.owner, lambda worker, table: worker.pull(alone, [0])[0, 0])
        for name in ("exp_avg", "exp_avg_sq", "step"):
            expected = pair.at(pair.owner, lambda worker, table, name=name: worker.pull_state(alone, [0])[name])
            assert pair.state(pair.owner, name) == np.ravel(expected)[0], name


@pytest.mark.parametrize("by", ["refresh", "answer"])
def test_news_of_adagrad_are_weights_and_a_sync_brings_the_state(by: str) -> None:
    with simulate(2, 5, Config(management="replicate", seed=0)) as job:
        pair = Pair(job, optim.Adagrad(lr=0.1))
        before = pair.sent(pair.owner, "refreshes") + pair.sent(pair.owner, "answers")
        pair.step(pair.owner, 3.0)
        if by == "answer":
            pair.step(pair.holder, 4.0)
        pair.pause()
        sent = pair.sent(pair.owner, "refreshes") + pair.sent(pair.owner, "answers") - before
        assert ROW_BYTES < sent < (1.5 if by == "refresh" else 3) * ROW_BYTES
        assert pair.weights(pair.holder) == pair.weights(pair.owner)
        own = 16 if by == "answer" else 0
        assert (pair.state(pair.owner, "sum"), pair.state(pair.holder, "sum")) == (9 + own, own)
        pair.at(pair.holder, lambda worker, table: worker.wait_sync())
        assert pair.state(pair.holder, "sum") == 9 + own


def test_a_replica_that_lags_is_told_what_its_own_step_made() -> None:
    """It took it with an accumulator that is too small, so it is sent the weights, though nobody else has written."""
    with simulate(2, 6, Config(management="replicate", seed=0)) as job:
        pair = Pair(job, optim.Adagrad(lr=0.1))
        pair.step(pair.owner, 3.0)
        pair.pause()
        for _ in range(3):
            pair.step(pair.holder, 1.0)
            pair.pause()
            assert pair.weights(pair.holder) == pair.weights(pair.owner)
        assert (pair.state(pair.owner, "sum"), pair.state(pair.holder, "sum")) == (12, 3)


def test_a_replica_that_lags_becomes_the_owner_with_the_owners_state() -> None:
    with simulate(2, 7, Config(management="adaptive", seed=0)) as job:
        pair = Pair(job, optim.Adagrad(lr=0.1), owner_intends_clocks=2)
        pair.step(pair.owner, 3.0)
        pair.pause()
        pair.step(pair.holder, 4.0)
        pair.pause()
        weights = pair.weights(pair.owner)
        pair.at(pair.owner, lambda worker, table: (worker.advance_clock(), worker.advance_clock()))
        pair.pause()
        assert pair.tables[pair.holder].owners().tolist() == [pair.holder]
        assert (pair.weights(pair.holder), pair.state(pair.holder, "sum")) == (weights, 25)


@pytest.mark.parametrize(
    "test",
    [
        test_a_replica_that_lags_is_told_what_its_own_step_made,
        test_a_replica_that_lags_becomes_the_owner_with_the_owners_state,
    ],
)
def test_one_that_does_not_say_that_it_lags_is_found(test: Any) -> None:
    with mutations.plant("lag untold"), pytest.raises(AssertionError):
        test()


@pytest.mark.parametrize("optimizer", STEPS_FROM_A_ROW, ids=repr)
@pytest.mark.parametrize("gap_us", [10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0])
def test_a_step_from_a_row_that_was_replaced_meanwhile_ends_as_the_owner_made_it(optimizer: Any, gap_us: float) -> None:
    """The second gradient is kept when the answer to the first brings a row that the owner has stepped: at the owner it
    is a step from that row."""
    with simulate(2, 4, Config(management="replicate", seed=0)) as job:
        pair = Pair(job, optimizer)
        for _ in range(3):
            pair.step(pair.owner, 3.0)
            pair.pause()

        def step_twice() -> None:
            for gradient, then_us in ((-1.0, gap_us), (-5.0, 0.0)):
                row = np.full((1, ITEMS), gradient, np.float32)
                pair.workers[pair.holder].push_grad(pair.tables[pair.holder], [0], row)
                job.network.pause(then_us)

        job.spawn(pair.holder, step_twice)
        pair.step(pair.owner, 7.0)
        pair.pause()
        assert pair.weights(pair.holder) == pytest.approx(pair.weights(pair.owner), abs=1e-5)


def fetching_pair(job: Simulation) -> Pair:
    """One owns key 0, whose sums are 1 in one half and 9 in the other; the other fetches it for the clock it is in."""
    pair = Pair(job, optim.Adagrad(lr=0.1), owner_intends_clocks=1, holder_intends_clocks=0)
    row = np.repeat(np.float32([1, 3]), ITEMS // 2).reshape(1, ITEMS)
    pair.at(pair.owner, lambda worker, table: worker.push_grad(table, [0], row))
    pair.sent_before = pair.sent(pair.owner, "answers")
    pair.at(pair.holder, lambda worker, table: worker.intent(table, [0], worker.clock, worker.clock + 1))
    pair.pause(1000)  # less than it may be here for one use
    assert job.ranks[pair.holder]._engine.rounds.holder.replicas_fetched == 1
    return pair


def test_a_row_fetched_for_one_clock_comes_with_the_mean_of_its_state() -> None:
    with simulate(2, 7, Config(management="adaptive", seed=0)) as job:
        pair = fetching_pair(job)
        assert ROW_BYTES < pair.sent(pair.owner, "answers") - pair.sent_before < 1.5 * ROW_BYTES
        assert pair.row(pair.holder).tolist() == pair.row(pair.owner).tolist()
        pair.step(pair.holder, 2.0)
        assert pair.row(pair.holder) == pytest.approx(pair.row(pair.owner) - 0.1 * 2 / 3)  # sqrt(5 + 4)
        pair.at(pair.holder, lambda worker, table: worker.advance_clock())
        pair.pause()
        sums = pair.at(pair.owner, lambda worker, table: worker.pull_state(table, [0])["sum"][0])
        assert sums.tolist() == [1 + 4] * (ITEMS // 2) + [9 + 4] * (ITEMS // 2)


def holders_sums(pair: Pair) -> list[float]:
    return list(pair.at(pair.holder, lambda worker, table: worker.pull_state(table, [0])["sum"][0]))


TRUE_SUMS = [1.0] * (ITEMS // 2) + [9.0] * (ITEMS // 2)


@pytest.mark.parametrize(
    ("by", "old"),
    [("sync", False), ("sync", True), ("longer intent", False), ("relocation", False), ("relocation", True)],
)
def test_a_row_fetched_for_one_clock_that_is_used_on_gets_its_state(by: str, old: bool) -> None:
    with simulate(2, 8, Config(management="adaptive", seed=0)) as job:
        pair = fetching_pair(job)
        assert holders_sums(pair) == [5.0] * ITEMS
        if old:  # it has become a replica as any, and was told that nobody has written: that says nothing of the state
            pair.pause()
            assert job.ranks[pair.owner]._engine.rounds.owner.rows_spared == 1
            assert holders_sums(pair) == [5.0] * ITEMS
        use_on(pair, by)
        assert holders_sums(pair) == TRUE_SUMS


def use_on(pair: Pair, by: str) -> None:
    if by == "sync":
        pair.at(pair.holder, lambda worker, table: worker.wait_sync())
        return
    if by == "relocation":
        pair.at(pair.owner, lambda worker, table: worker.advance_clock())
    else:
        pair.at(pair.holder, lambda worker, table: worker.intent(table, [0], worker.clock, worker.clock + 10**6))
    pair.pause(20_000)  # an offer waits for others
    assert pair.tables[pair.holder].owned_keys().tolist() == [0] * (by == "relocation")


@pytest.mark.parametrize("old", [False, True])
def test_that_a_mean_would_become_the_main_copy_s_state_is_found(old: bool) -> None:
    with simulate(2, 8, Config(management="adaptive", seed=0)) as job, mutations.plant("lag untold"):
        pair = fetching_pair(job)
        pair.pause(100_000 if old else 1000)
        use_on(pair, "relocation")
        assert holders_sums(pair) == [5.0] * ITEMS
