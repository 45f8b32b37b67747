"""Steps that a replica keeps for its owner: what the owner makes of them, and what the replica shows meanwhile."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.simulation import Simulation, simulate

from intentpm import optim
from intentpm.runtime.config import Config

ITEMS, STEPS = 5, 6
OPTIMIZERS = [
    optim.SGD(lr=0.1),
    optim.SGD(lr=0.1, weight_decay=0.2, weight_decay_mode="decoupled"),
    optim.SGD(lr=0.1, weight_decay=0.2, weight_decay_mode="l2", clip_norm=0.5),
    optim.Adagrad(lr=0.1, initial_accumulator=0.3),
    optim.Adagrad(lr=0.1, weight_decay=0.2, weight_decay_mode="decoupled", max_norm=1.0),
    optim.RowwiseAdagrad(lr=0.1),
    optim.RowwiseAdagrad(lr=0.1, clip_value=0.4),
    optim.Adam(lr=0.1),
    optim.Adam(lr=0.1, weight_decay=0.2, weight_decay_mode="decoupled", max_norm=2.0),
    optim.PartialRowwiseAdam(lr=0.1),
]
AT_RANDOM = [optim.SGD(lr=0.1, rounding="stochastic", rounding_seed=3), optim.Adam(lr=0.1, rounding="stochastic")]
IDS = [f"{i}-{type(optimizer).__name__}" for i, optimizer in enumerate(OPTIMIZERS)]
Rows = dict[str, np.ndarray]


class Pair:
    """Two ranks: one owns key 0 and intends it, the other holds a replica. Each has a table to itself besides."""

    def __init__(self, job: Simulation, optimizer: Any, dtype: str) -> None:
        self.job = job
        first = np.linspace(-1, 1, ITEMS).astype(dtype)
        self.tables = job.create_table("t", 1, ITEMS, dtype=dtype, init=first[None], optimizer=optimizer)
        self.alone = job.create_table("alone", 1, ITEMS, dtype=dtype, init=first[None], optimizer=optimizer)
        self.workers = job.on_every_rank(lambda pm: pm.worker())
        self.owner = int(self.tables[0].owners()[0])
        self.holder = 1 - self.owner
        for rank in (self.owner, self.holder):
            self.at(rank, lambda worker, table: (worker.intent(table, [0], 0, 10**6), worker.wait_sync()))
        assert self.tables[self.holder].replica_keys().tolist() == [0]

    def at(self, rank: int, call: Callable[[Any, Any], Any], tables: Any = None) -> Any:
        table = (tables or self.tables)[rank]
        task = self.job.spawn(rank, lambda: call(self.workers[rank], table))
        self.job.run()
        return task.value

    def rows(self, rank: int, tables: Any = None) -> Rows:
        read = lambda worker, table: {"weights": worker.pull(table, [0]), **worker.pull_state(table, [0])}  # noqa: E731
        return {name: value[0] for name, value in self.at(rank, read, tables).items()}

    def synchronise(self) -> None:
        for rank in (self.holder, self.owner):
            self.at(rank, lambda worker, table: worker.wait_sync())
        self.job.on_every_rank(lambda pm: pm.barrier())


def quiet() -> Config:
    """Nothing is sent but by a wait_sync: writes gather for a virtual hour."""
    return Config(management="replicate", sync_interval=3600.0, seed=0)


def gradients(dtype: str) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(STEPS, ITEMS)).astype(dtype)


def assert_same_bits(here: Rows, there: Rows) -> None:
    for name, value in here.items():
        assert value.tobytes() == there[name].tobytes(), f"{name}: {value} and {there[name]}"


def block_of(optimizer: Any, before: Rows, shown: Rows, taken: np.ndarray, rates: list[float]) -> Rows:
    """The owner's row after a block of these gradients, in float64. shown: what the replica made of them."""
    after = {name: np.array(value, np.float64) for name, value in before.items()}
    decay = optimizer.weight_decay if optimizer.weight_decay_mode == "decoupled" else 0.0
    off, keep = np.zeros(ITEMS), 1.0
    for gradient, rate in zip(taken, rates, strict=True):
        off, keep = off * (1 - rate * decay) + rate * gradient, keep * (1 - rate * decay)
    if isinstance(optimizer, optim.Adagrad):
        after["sum"] += (taken**2).sum(axis=0)
        off = off / (np.sqrt(after["sum"]) + optimizer.eps)
    elif isinstance(optimizer, optim.RowwiseAdagrad):
        after["sum"] += (taken**2).mean(axis=1).sum()
        off = off / (np.sqrt(after["sum"]) + optimizer.eps)
    elif not isinstance(optimizer, optim.SGD):
        return {name: np.array(value, np.float64) for name, value in shown.items()}  # the replica's own steps
    after["weights"] = after["weights"] * keep - off
    return after


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=IDS)
def test_one_kept_step_is_that_step_to_the_bit(optimizer: Any, dtype: str) -> None:
    with simulate(2, 3, quiet()) as job:
        pair = Pair(job, optimizer, dtype)
        for number, gradient in enumerate(gradients(dtype)):
            step = lambda worker, table, g=gradient, rate=0.1 / (number + 1): worker.push_grad(  # noqa: E731
                table, [0], g[None], lr=rate
            )
            pair.at(pair.holder, step)
            pair.at(pair.holder, step, pair.alone)
            pair.synchronise()
            expected = pair.rows(pair.holder, pair.alone)
            assert_same_bits(pair.rows(pair.holder), expected)
            assert_same_bits(pair.rows(pair.owner), expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=IDS)
def test_a_block_of_steps(optimizer: Any) -> None:
    rates = [0.1, 0.2, 0.05, 0.1, 0.4, 0.0]
    with simulate(2, 4, quiet()) as job:
        pair = Pair(job, optimizer, "float64")
        taken = gradients("float64")
        before = pair.rows(pair.owner)
        for gradient, rate in zip(taken, rates, strict=True):
            for tables in (pair.tables, pair.alone):
                pair.at(
                    pair.holder,
                    lambda worker, table, g=gradient, r=rate: worker.push_grad(table, [0], g[None], lr=r),
                    tables,
                )
        shown = pair.rows(pair.holder)
        assert_same_bits(shown, pair.rows(pair.holder, pair.alone))  # its readers see its steps, taken one by one
        assert_same_bits(pair.rows(pair.owner), before)  # and nobody else does yet
        pair.synchronise()
        after = pair.rows(pair.owner)
        assert_same_bits(pair.rows(pair.holder), after)
        if optimizer.clip_norm is None and optimizer.clip_value is None and optimizer.max_norm is None:
            for name, value in block_of(optimizer, before, shown, taken, rates).items():
                np.testing.assert_allclose(after[name], value, rtol=1e-12, atol=1e-14, err_msg=name)
        if optimizer.max_norm is not None:
            assert np.linalg.norm(after["weights"]) <= optimizer.max_norm * (1 + 1e-12)
        for name in ("sum", "exp_avg", "exp_avg_sq", "step"):
            if name in after:
                np.testing.assert_allclose(after[name], shown[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=IDS)
def test_blocks_of_two_ranks_add_up(optimizer: Any) -> None:
    """The owner steps too: squares and counts are those of all steps, and no step is longer than alone."""
    with simulate(2, 5, quiet()) as job:
        pair = Pair(job, optimizer, "float64")
        begun = pair.rows(pair.owner)
        taken = np.array([[1.0, -2, 3, 0, 4], [2, 1, 0, -1, 3], [3, 0, -2, 2, 1]])
        for gradient in taken:
            for rank in (pair.owner, pair.holder, pair.holder):
                pair.at(rank, lambda worker, table, g=gradient: worker.push_grad(table, [0], g[None]))
        pair.synchronise()
        after = pair.rows(pair.owner)
        assert_same_bits(pair.rows(pair.holder), after)
        if isinstance(optimizer, optim.Adagrad):
            assert (after["sum"] == begun["sum"] + 3 * (taken**2).sum(axis=0)).all()
        if "step" in after:
            assert after["step"] == 9


def test_a_push_and_a_set_beside_kept_steps() -> None:
    """The owner adds what was pushed, then takes the steps; those before a set change the state alone."""
    with simulate(2, 6, quiet()) as job:
        pair = Pair(job, optim.Adagrad(lr=1.0, initial_accumulator=1.0), "float64")
        row = lambda *numbers: np.array([numbers * ITEMS]).reshape(1, ITEMS)  # noqa: E731
        before = pair.rows(pair.owner)["weights"]
        pair.at(pair.holder, lambda worker, table: worker.push_grad(table, [0], row(3.0)))
        pair.at(pair.holder, lambda worker, table: worker.push(table, [0], row(10.0)))
        pair.synchronise()
        after = pair.rows(pair.owner)
        np.testing.assert_allclose(after["weights"], before + 10 - 3 / np.sqrt(10), rtol=1e-9)
        assert_same_bits(pair.rows(pair.holder), after)
        pair.at(pair.holder, lambda worker, table: worker.push_grad(table, [0], row(4.0)))
        pair.at(pair.holder, lambda worker, table: worker.set(table, [0], row(7.0)))
        pair.at(pair.holder, lambda worker, table: worker.push(table, [0], row(1.0)))
        pair.at(pair.holder, lambda worker, table: worker.push_grad(table, [0], row(5.0)))
        shown = pair.rows(pair.holder)
        np.testing.assert_allclose(shown["weights"], 8 - 5 / np.sqrt(51), rtol=1e-9)
        pair.synchronise()
        after = pair.rows(pair.owner)
        assert (after["sum"] == 51).all()
        np.testing.assert_allclose(after["weights"], 8 - 5 / np.sqrt(51), rtol=1e-9)
        assert_same_bits(pair.rows(pair.holder), after)


@pytest.mark.parametrize(
    "optimizer",
    [optim.SGD(lr=0.1, max_norm=1.0), optim.Adagrad(lr=0.1, max_norm=1.0), optim.Adam(lr=0.1, max_norm=1.0)],
    ids=["SGD", "Adagrad", "Adam"],
)
def test_a_value_set_after_steps_is_not_limited(optimizer: Any) -> None:
    """``max_norm`` is of steps: at the owner the same calls leave the value as it is."""
    with simulate(2, 8, quiet()) as job:
        pair = Pair(job, optimizer, "float64")
        value = np.full((1, ITEMS), 7.0)
        pair.at(pair.holder, lambda worker, table: worker.push_grad(table, [0], np.ones((1, ITEMS))))
        pair.at(pair.holder, lambda worker, table: worker.set(table, [0], value))
        pair.synchronise()
        for rank in (pair.holder, pair.owner):
            assert (pair.rows(rank)["weights"] == 7).all()
        # The next step limits it again.
        pair.at(pair.holder, lambda worker, table: worker.push_grad(table, [0], np.ones((1, ITEMS))))
        pair.synchronise()
        assert np.linalg.norm(pair.rows(pair.owner)["weights"]) <= 1 + 1e-12


@pytest.mark.parametrize(
    "optimizer",
    [optim.SGD(lr=0.1, weight_decay=0.5, weight_decay_mode="decoupled"), optim.SGD(lr=0.1, max_norm=1.0)],
    ids=["decay", "max_norm"],
)
def test_a_replica_that_made_it_in_another_order_gets_the_owners_row(optimizer: Any) -> None:
    """By a round alone: what a flush sends would hide it."""
    with simulate(2, 9, Config(management="replicate", seed=0)) as job:
        pair = Pair(job, optimizer, "float64")
        pair.at(pair.holder, lambda worker, table: worker.push_grad(table, [0], np.ones((1, ITEMS))))
        pair.at(pair.holder, lambda worker, table: worker.push(table, [0], np.full((1, ITEMS), 10.0)))
        pair.at(pair.holder, lambda worker, table: job.network.pause(100_000.0))
        np.testing.assert_allclose(pair.rows(pair.holder)["weights"], pair.rows(pair.owner)["weights"], rtol=1e-12)


def test_rows_of_a_checkpoint_go_to_the_owner() -> None:
    """A replica could keep the weights, but not the state."""
    with simulate(2, 7, quiet()) as job:
        pair = Pair(job, optim.Adagrad(), "float64")
        rows = np.zeros(1, pair.tables[0].stored_dtype)
        rows["weights"], rows["sum"] = 3.0, 5.0
        pair.at(pair.holder, lambda worker, table: worker.set_stored(table, [0], rows))
        assert (pair.rows(pair.owner)["sum"] == 5).all()
        pair.synchronise()
        for rank in (pair.owner, pair.holder):
            assert (pair.rows(rank)["weights"] == 3).all()
            assert (pair.rows(rank)["sum"] == 5).all()


@pytest.mark.parametrize("optimizer", AT_RANDOM)
def test_one_kept_step_is_rounded_at_random_to_the_same_bit(optimizer: Any) -> None:
    test_one_kept_step_is_that_step_to_the_bit(optimizer, "float16")


@pytest.mark.parametrize("optimizer", AT_RANDOM)
def test_copies_rounded_at_random_agree_after_synchronisation(optimizer: Any) -> None:
    test_copies_agree_after_synchronisation(optimizer, "float16")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=IDS)
def test_copies_agree_after_synchronisation(optimizer: Any, dtype: str) -> None:
    """Whatever was stepped where, how often, and rounded how."""
    for seed in range(4):
        with simulate(3, seed, Config(management="replicate", seed=seed)) as job:
            tables = job.create_table("t", 8, ITEMS, dtype=dtype, init=1 / 3, optimizer=optimizer)

            def train(pm: Any, tables: Any = tables, seed: int = seed) -> Any:
                worker, table = pm.worker(), tables[pm.rank]
                random = np.random.default_rng([seed, pm.rank])
                worker.intent(table, range(8), 0, 1000)
                worker.wait_sync()
                for _ in range(10):
                    keys = random.choice(8, 4, replace=False)
                    worker.push_grad(table, keys, random.normal(size=(4, ITEMS)).astype(dtype), lr=random.random())
                    if random.random() < 0.3:
                        worker.wait_sync()
                    worker.advance_clock()
                worker.wait_sync()
                pm.barrier()
                pm.barrier()
                state = worker.pull_state(table, range(8))
                return [worker.pull(table, range(8)).tobytes(), *(value.tobytes() for value in state.values())]

            first, *others = job.on_every_rank(train)
            assert all(other == first for other in others), f"seed {seed}"
