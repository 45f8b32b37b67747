"""Keys that their owner has used: lent for one clock to a rank that asks long before its use, not relocated."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.simulation import Simulation, simulate

from intentpm.optim import Adagrad
from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

CLOCK_US = 5_000.0
FAR, NEAR = 40, 2  # clocks ahead: 200 and 10 ms


class Ranks:
    """Clocks of rank 1 are known to take 5 ms. Intents are acted on when they are signalled."""

    def __init__(self, job: Simulation) -> None:
        self.job = job
        self.tables = job.create_table("t", 16, 64, optimizer=Adagrad(lr=0.1))
        self.workers = job.on_every_rank(lambda pm: pm.worker())
        local = [job.ranks[0].count_local(self.tables[0], [key]) for key in range(16)]
        self.keys, others = np.flatnonzero(local), np.flatnonzero(np.equal(local, 0))  # at home on ranks 0 and 1
        for _ in range(40):
            self.use(1, others)

    def do(self, rank: int, call: Any) -> Any:
        task = self.job.spawn(rank, lambda: call(self.workers[rank], self.tables[rank]))
        self.job.run()
        return task.value

    def use(self, rank: int, keys: Any) -> None:
        """In the clock of now, which ends."""

        def one_clock(worker: Any, table: Any) -> None:
            worker.intent(table, keys, worker.clock, worker.clock + 1)
            self.job.network.pause(CLOCK_US)
            worker.advance_clock()

        self.do(rank, one_clock)

    def ask(self, ahead: int) -> None:
        """Rank 1, for one clock."""
        begin = self.workers[1].clock + ahead
        self.do(1, lambda worker, table: worker.intent(table, self.keys, begin, begin + 1))
        self.do(1, lambda worker, table: worker.wait_intents())

    def pass_by(self, ahead: int) -> None:
        """Rank 1 uses what it asked for, and gives it back."""
        self.do(1, lambda worker, table: [worker.advance_clock() for _ in range(ahead)])
        ones = np.ones((len(self.keys), 64), np.float32)
        self.do(1, lambda worker, table: worker.push_grad(table, self.keys, ones))
        self.do(1, lambda worker, table: worker.advance_clock())
        self.do(1, lambda worker, table: worker.wait_sync())

    def moved(self) -> int:
        return self.job.ranks[1].stats()["relocations_in"]


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    with simulate(2, 1, Config(management="adaptive", timing="immediate", seed=1), NetworkModel()) as job:
        yield Ranks(job)


def test_a_key_that_its_owner_has_not_used_moves(ranks: Ranks) -> None:
    ranks.ask(FAR)
    assert ranks.moved() == len(ranks.keys)


def test_one_that_it_has_used_is_lent_once_and_moves_then(ranks: Ranks) -> None:
    ranks.use(0, ranks.keys)
    ranks.ask(FAR)
    assert ranks.moved() == 0
    text = str(ranks.job.ranks[0].explain(ranks.tables[0], int(ranks.keys[0])))
    assert "replica granted to rank 1: no other rank intends it, but relocating it would cost more" in text
    ranks.pass_by(FAR)
    assert ranks.job.ranks[1].stats()["replicas_held"] == 0
    assert (ranks.do(0, lambda worker, table: worker.pull(table, ranks.keys)) < 0).all()  # one step
    ranks.ask(FAR)
    assert ranks.moved() == len(ranks.keys)


def test_one_that_it_uses_in_between_is_lent_again(ranks: Ranks) -> None:
    for _ in range(3):
        ranks.use(0, ranks.keys)
        ranks.ask(FAR)
        ranks.pass_by(FAR)
    assert ranks.moved() == 0


def test_a_rank_to_which_it_has_moved_lends_it_too(ranks: Ranks) -> None:
    ranks.ask(FAR)
    ranks.pass_by(FAR)
    ranks.do(0, lambda worker, table: worker.intent(table, ranks.keys, worker.clock + FAR, worker.clock + FAR + 1))
    ranks.do(0, lambda worker, table: worker.wait_intents())
    # Nobody knows how long rank 0's clocks take: it asks as for a use at once.
    assert ranks.job.ranks[0].stats()["relocations_in"] == len(ranks.keys)


def test_who_needs_it_soon_is_given_it(ranks: Ranks) -> None:
    ranks.use(0, ranks.keys)
    ranks.ask(NEAR)
    assert ranks.moved() == len(ranks.keys)


def test_who_waits_for_intents_has_the_keys_and_is_sent_nothing_else(ranks: Ranks) -> None:
    ranks.do(0, lambda worker, table: worker.intent(table, ranks.keys, worker.clock, worker.clock + 1000))

    def ask(worker: Any, table: Any) -> tuple[int, int]:
        worker.intent(table, ranks.keys, worker.clock, worker.clock + 1)
        before = ranks.job.ranks[1].count_local(table, ranks.keys)
        worker.wait_intents()
        return before, ranks.job.ranks[1].count_local(table, ranks.keys)

    assert ranks.do(1, ask) == (0, len(ranks.keys))
    assert ranks.job.ranks[0].stats()["refreshed_rows"] == 0
    ranks.do(1, lambda worker, table: worker.wait_sync())
    assert ranks.job.ranks[0].stats()["refreshed_rows"] == len(ranks.keys)  # of which it had a part


def test_a_pause_between_two_epochs_is_no_long_clock(ranks: Ranks) -> None:
    ranks.use(0, ranks.keys)
    ranks.do(1, lambda worker, table: ranks.job.network.pause(2_000_000))
    ranks.do(1, lambda worker, table: worker.advance_clock())
    ranks.ask(NEAR)
    assert ranks.moved() == len(ranks.keys)
