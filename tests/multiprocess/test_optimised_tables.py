"""Tables with an optimizer on several ranks: the bits of one, exact sums while keys move, and agreement."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import intentpm
from intentpm import optim
from intentpm.testing import run_ranks

KEYS, ITEMS, STEPS = 40, 9, 30
OPTIMIZERS = [
    optim.SGD(lr=0.1, weight_decay=0.01, weight_decay_mode="l2"),
    optim.Adagrad(lr=0.1, initial_accumulator=0.5),
    optim.RowwiseAdagrad(lr=0.1),
    optim.Adam(lr=0.1, weight_decay=0.01, weight_decay_mode="decoupled"),
    optim.PartialRowwiseAdam(lr=0.1, max_norm=2.0),
]


def train(optimizer: Any, dtype: str, stepped_by: Callable[[Any, int], Any]) -> Callable[[Any], Any]:
    """Every key is stepped by one rank in a step, and all ranks wait for each other after it."""

    def run(pm: Any) -> Any:
        first = np.random.default_rng(0).normal(size=(KEYS, ITEMS)).astype(dtype)
        table = pm.create_table("t", KEYS, ITEMS, dtype, init=first, optimizer=optimizer)
        worker = pm.worker()
        for step in range(STEPS):
            draw = np.random.default_rng(step)
            gradients = draw.normal(size=(KEYS, ITEMS)).astype(dtype)
            mine = np.flatnonzero(stepped_by(pm, step))
            worker.intent(table, np.flatnonzero(stepped_by(pm, step + 2)), worker.clock + 2, worker.clock + 4)
            if step % 2:
                worker.push_grad(table, mine, gradients[mine], lr=0.1 / (1 + step))
            else:
                worker.push_grad_async(table, mine, gradients[mine]).wait()
            worker.advance_clock()
            worker.wait_sync()
            pm.barrier()
        state = worker.pull_state(table, range(KEYS))
        return [worker.pull(table, range(KEYS)).tobytes(), *(value.tobytes() for value in state.values())], pm.stats()

    return run


def drawn_rank(pm: Any, step: int) -> Any:
    return np.random.default_rng(1000 + step).integers(0, pm.size, KEYS) == pm.rank


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
@pytest.mark.parametrize(("dtype", "transport"), [("float32", "sim"), ("float64", "tcp"), ("float16", "loopback")])
def test_several_ranks_compute_the_bits_of_one(optimizer: Any, dtype: str, transport: Any) -> None:
    run = train(optimizer, dtype, drawn_rank)
    [(alone, _)] = run_ranks(1, run)
    together = run_ranks(3, run, transport)
    assert all(result == alone for result, _ in together)
    assert sum(stats["relocations_in"] for _, stats in together) > 0
    assert sum(stats["tables"]["t"]["remote"] for _, stats in together) > 0
    assert sum(stats["tables"]["t"]["replica"] for _, stats in together) > 0


@pytest.mark.parametrize("management", ["adaptive", "relocate", "static", "replicate", "full_replication"])
@pytest.mark.parametrize("transport", ["loopback", "tcp"])
def test_sums_are_exact_while_keys_move_under_threads(management: Any, transport: Any) -> None:
    """No step is lost or taken twice: SGD at lr 1 counts them, Adagrad's accumulator counts their squares."""
    ranks, threads, rounds = 3, 2, 60

    def run(pm: Any) -> Any:
        steps = pm.create_table("steps", 50, 40, "float64", optimizer=optim.SGD(lr=1.0))
        squares = pm.create_table("squares", 50, 40, "float64", optimizer=optim.Adagrad())
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                draw = np.random.default_rng((pm.rank, number))
                worker = pm.worker()
                for _ in range(rounds):
                    keys = np.minimum(draw.geometric(0.08, 20), 50) - 1
                    for table in (steps, squares):
                        worker.intent(table, keys, worker.clock + 1, worker.clock + 3)
                        worker.push_grad_async(table, keys, np.full((20, 40), -3.0), duplicates="each")
                    worker.advance_clock()
                worker.wait_sync()
                worker.close()
            except BaseException as problem:
                failures.append(problem)

        work_threads = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for thread in work_threads:
            thread.start()
        for thread in work_threads:
            thread.join()
        if failures:
            raise failures[0]
        pm.barrier()
        reader = pm.worker()
        rows, sums = reader.pull(steps, range(50)), reader.pull_state(squares, range(50))["sum"]
        pm.barrier()
        assert (rows == rows[:, :1]).all()
        assert (sums == sums[:, :1]).all()
        return rows[:, 0].sum(), sums[:, 0].sum(), pm.stats()

    results = run_ranks(ranks, run, transport, management=management)
    pushed = ranks * threads * rounds * 20
    assert [result[:2] for result in results] == [(3.0 * pushed, 9.0 * pushed)] * ranks
    moves = sum(result[2]["relocations_in"] for result in results)
    replicas = sum(result[2]["replicas_set_up"] for result in results)
    assert (moves > 0) == (management in ("adaptive", "relocate"))
    assert (replicas > 0) == (management not in ("relocate", "static"))


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (optim.Adagrad(lr=0.1), None),
        (optim.Adagrad(lr=0.1), optim.Adagrad(lr=0.2)),
        (optim.Adagrad(lr=0.1), optim.RowwiseAdagrad(lr=0.1)),
    ],
)
def test_ranks_must_agree_on_the_optimizer(here: Any, there: Any) -> None:
    def run(pm: Any) -> None:
        with pytest.raises(intentpm.CollectiveMismatchError, match="optimizer is"):
            pm.create_table("t", 3, 2, optimizer=there if pm.rank else here)
        pm.create_table("t", 3, 2, optimizer=here)

    run_ranks(2, run)


def test_steps_of_remote_rows_in_several_messages() -> None:
    """More rows than one message takes, and longer than a cache line; the lr of each call arrives with each of them."""

    def run(pm: Any) -> Any:
        table, worker = pm.create_table("t", 3000, 200, optimizer=optim.Adagrad(lr=9.0)), pm.worker()
        pm.barrier()
        if pm.rank == 0:
            keys = np.arange(3000)
            worker.push_grad_async(table, keys, np.ones((3000, 200), np.float32), lr=0.5)
            worker.push_grad(table, keys, np.ones((3000, 200), np.float32), lr=np.sqrt(2))
        pm.barrier()
        return worker.pull(table, range(3000)), worker.pull_state(table, range(3000))["sum"]

    for rows, sums in run_ranks(2, run, "tcp"):
        np.testing.assert_allclose(rows, -1.5, rtol=1e-6)
        assert (sums == 2.0).all()
