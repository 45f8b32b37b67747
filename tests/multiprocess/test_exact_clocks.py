"""``sync="exact"``: any number of ranks computes the bits of one that has all their batches, whatever moves."""

from typing import Any

import numpy as np
import pytest

import intentpm
from intentpm import optim
from intentpm.testing import run_ranks

KEYS, ITEMS, CLOCKS, BATCH = 30, 9, 8, 12
OPTIMIZERS = [
    optim.SGD(lr=0.1, weight_decay=0.01, weight_decay_mode="l2", clip_norm=2.0),
    optim.Adagrad(lr=0.1),
    optim.RowwiseAdagrad(lr=0.1, max_norm=2.0),
    optim.Adam(lr=0.1, weight_decay=0.01, weight_decay_mode="decoupled"),
    optim.PartialRowwiseAdam(lr=0.1),
    optim.Adam(lr=0.1, bias_correction="global"),
]
NAMES = ["SGD", "Adagrad", "RowwiseAdagrad", "Adam", "PartialRowwiseAdam", "Adam by calls"]


def batches(seed: int, clock: int, dtype: str) -> Any:
    """The global batch of a clock: keys that come often, in no order, and their gradients."""
    draw = np.random.default_rng([seed, clock])
    return draw.integers(0, KEYS, BATCH), draw.normal(size=(BATCH, ITEMS)).astype(dtype)


def train(optimizer: Any, dtype: str, seed: int) -> Any:
    """Each rank has its share of every batch, in two calls, and intends what it will have."""

    def run(pm: Any) -> Any:
        first = np.random.default_rng(seed).normal(size=(KEYS, ITEMS)).astype(dtype)
        table = pm.create_table("t", KEYS, ITEMS, dtype, init=first, optimizer=optimizer)
        worker, seen = pm.worker(), []
        share = lambda rows: np.array_split(rows, pm.size)[pm.rank]  # noqa: E731
        for clock in range(CLOCKS):
            keys, gradients = (share(part) for part in batches(seed, clock, dtype))
            ahead, _ = batches(seed, clock + 2, dtype)
            worker.intent(table, share(ahead), worker.clock + 2, worker.clock + 4)
            seen.append(worker.pull(table, range(KEYS)).tobytes())
            half = len(keys) // 2
            worker.push_grad(table, keys[:half], gradients[:half], lr=0.1 / (1 + clock))
            worker.push_grad_async(table, keys[half:], gradients[half:], lr=0.1 / (1 + clock)).wait()
            assert worker.advance_clock() == clock + 1
        state = worker.pull_state(table, range(KEYS))
        seen += [worker.pull(table, range(KEYS)).tobytes(), *(value.tobytes() for value in state.values())]
        return seen, pm.stats()

    return run


def train_plainly(optimizer: Any, dtype: str, seed: int) -> Any:
    """The same on one rank that knows of no clocks: its whole batch is one push_grad."""

    def run(pm: Any) -> Any:
        first = np.random.default_rng(seed).normal(size=(KEYS, ITEMS)).astype(dtype)
        table, worker = pm.create_table("t", KEYS, ITEMS, dtype, init=first, optimizer=optimizer), pm.worker()
        seen = []
        for clock in range(CLOCKS):
            seen.append(worker.pull(table, range(KEYS)).tobytes())
            worker.push_grad(table, *batches(seed, clock, dtype), lr=0.1 / (1 + clock))
        state = worker.pull_state(table, range(KEYS))
        return [*seen, worker.pull(table, range(KEYS)).tobytes(), *(value.tobytes() for value in state.values())]

    return run


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_any_number_of_ranks_computes_the_bits_of_one(optimizer: Any, dtype: str) -> None:
    relocated = replicated = 0
    for seed in range(3):
        [expected] = run_ranks(1, train_plainly(optimizer, dtype, seed))
        for size in (1, 2, 3, 4):
            for seen, stats in run_ranks(size, train(optimizer, dtype, seed), "sim", seed=seed, sync="exact"):
                assert seen == expected, f"seed {seed}, {size} ranks"
                relocated += stats["relocations_in"]
                replicated += stats["tables"]["t"]["replica"]
    assert relocated > 0
    assert replicated > 0


def test_rounding_at_random_is_the_same_on_any_number_of_ranks() -> None:
    optimizer = optim.Adagrad(lr=0.1, rounding="stochastic", rounding_seed=5)
    [expected] = run_ranks(1, train_plainly(optimizer, "float16", 1))
    for size in (1, 3):
        results = run_ranks(size, train(optimizer, "float16", 1), "sim", seed=size, sync="exact")
        assert [seen for seen, _ in results] == [expected] * size


@pytest.mark.parametrize("management", ["adaptive", "replicate", "static"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=NAMES)
def test_over_tcp(optimizer: Any, management: Any) -> None:
    [expected] = run_ranks(1, train_plainly(optimizer, "float32", 7))
    results = run_ranks(3, train(optimizer, "float32", 7), "tcp", sync="exact", management=management)
    assert [seen for seen, _ in results] == [expected] * 3


def test_nothing_shows_before_the_clock_advances_and_close_takes_the_rest() -> None:
    def run(pm: Any) -> Any:
        table, worker = pm.create_table("t", 4, 2, init=1.0, optimizer=optim.SGD(lr=1.0)), pm.worker()
        worker.push_grad(table, [1, 1], np.ones((2, 2), np.float32))
        before = worker.pull(table, [1])[0, 0]
        worker.advance_clock()
        after = worker.pull(table, [1])[0, 0]
        worker.push_grad(table, [2], np.ones((1, 2), np.float32))
        worker.close()
        return before, after

    assert run_ranks(2, run, sync="exact") == [(1.0, -3.0)] * 2


def test_ranks_must_agree_on_the_rate_of_a_clock() -> None:
    def run(pm: Any) -> None:
        table, worker = pm.create_table("t", 4, 2, optimizer=optim.SGD()), pm.worker()
        ones = np.ones((1, 2), np.float32)
        worker.push_grad(table, [0], ones, lr=0.5)
        with pytest.raises(intentpm.OptimizerError, match=r"lr=0\.25, but it was 0\.5"):
            worker.push_grad(table, [0], ones, lr=0.25)
        with pytest.raises(intentpm.OptimizerError, match="duplicates='each' has no meaning"):
            worker.push_grad(table, [0], ones, lr=0.5, duplicates="each")
        other = pm.worker()
        with pytest.raises(intentpm.Error, match="close that one first"):
            other.push_grad(table, [0], ones)
        worker.advance_clock()
        worker.push_grad(table, [0], ones, lr=0.5 + pm.rank)
        with pytest.raises(intentpm.OptimizerError, match=r"rank 1 has lr=1\.5, a rank before it 0\.5"):
            worker.advance_clock()
        worker.advance_clock()  # its gradients are forgotten
        worker.close()
        other.push_grad(table, [0], ones)

    run_ranks(2, run, sync="exact")


def test_a_rank_that_advances_less_often_is_named() -> None:
    def run(pm: Any) -> Any:
        worker = pm.worker()
        worker.advance_clock()
        if pm.rank == 0:
            with pytest.raises(intentpm.WaitTimeoutError, match=r"(?s)rank 1.*as often as"):
                worker.advance_clock()
        pm.allgather(b"") if pm.rank == 1 else worker.advance_clock()

    with pytest.raises(intentpm.CollectiveMismatchError, match="advance_clock"):
        run_ranks(2, run, "tcp", sync="exact", clock_timeout=1.0)


def test_a_rank_that_leaves_early_is_named() -> None:
    def run(pm: Any) -> None:
        worker = pm.worker()
        for _ in range(3 - pm.rank):
            worker.advance_clock()

    with pytest.raises(
        intentpm.CollectiveMismatchError, match=r"called advance_clock\(\) while rank 1 called close\(\)"
    ):
        run_ranks(2, run, sync="exact")
