"""Collective calls that a rank gives up, by a deadline or an interrupt: the same call again goes on, another says what
to do,
and one that was undone fails on every rank. On simulated ranks."""

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.budgets import budget_of, need_of
from support.simulation import Simulation, simulate

import intentpm
from intentpm.runtime.manager import ParameterManager

SHORT_S = 0.0005
LATE_US = 5_000.0
RETRIES = 200


class Interrupt(BaseException):
    """Stands for KeyboardInterrupt, which a simulated task cannot be sent."""


def persist(call: Callable[[], Any]) -> tuple[Any, list[intentpm.WaitTimeoutError]]:
    """Makes a call again until it is done: what it returned, and the deadlines that passed on the way."""
    errors: list[intentpm.WaitTimeoutError] = []
    while True:
        try:
            return call(), errors
        except intentpm.WaitTimeoutError as error:
            errors.append(error)
            if len(errors) > RETRIES:
                raise


def late(job: Simulation, rank: int, pm: ParameterManager) -> None:
    if pm.rank == rank:
        job.network.pause(LATE_US)


CALLS: dict[str, Callable[[ParameterManager, float], Any]] = {
    "barrier": lambda pm, timeout: pm.barrier(timeout),
    "allgather": lambda pm, timeout: pm.allgather(b"%d" % pm.rank, timeout),
    "create_table": lambda pm, timeout: pm.create_table("made", 20, 2, init=3.0, timeout=timeout).name,
}


@pytest.mark.parametrize("straggler", [0, 1])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_whose_deadline_passed_is_made_again(name: str, size: int, straggler: int) -> None:
    with simulate(size, 11) as job:

        def target(pm: ParameterManager) -> Any:
            late(job, straggler, pm)
            return persist(lambda: CALLS[name](pm, SHORT_S))

        outcomes = job.on_every_rank(target)
        values = [value for value, _ in outcomes]
        expected = [b"%d" % rank for rank in range(size)] if name == "allgather" else values[0]
        assert values == [expected] * size
        for rank, (_, errors) in enumerate(outcomes):
            assert bool(errors) == (rank != straggler)
            for error in errors:
                assert f"ranks [{straggler}] have not come" in str(error)
        job.on_every_rank(lambda pm: pm.barrier())


def test_a_table_whose_creation_took_several_attempts_is_made_once() -> None:
    made: list[int] = []

    def init(keys: np.ndarray) -> np.ndarray:
        made.extend(keys.tolist())
        return keys.astype(np.float32)

    with simulate(2, 4) as job:

        def target(pm: ParameterManager) -> Any:
            late(job, 0, pm)
            table, _ = persist(lambda: pm.create_table("t", 20, init=init, timeout=SHORT_S))
            return pm.worker().pull(table, np.arange(20)).tolist()

        assert job.on_every_rank(target) == [list(range(20))] * 2
        assert sorted(made) == list(range(20))


@pytest.mark.parametrize("other", ["barrier", "create_table", "other payload"])
def test_another_call_says_which_comes_first(other: str) -> None:
    with simulate(3, 5) as job:

        def target(pm: ParameterManager) -> Any:
            late(job, 0, pm)
            if pm.rank != 1:
                return pm.allgather(b"x")
            with pytest.raises(intentpm.WaitTimeoutError):
                pm.allgather(b"x", timeout=SHORT_S)
            with pytest.raises(
                intentpm.CollectiveMismatchError, match=r"given up allgather\(\).*call that again first"
            ):
                other_call(pm, other)
            return pm.allgather(b"x")

        assert job.on_every_rank(target) == [[b"x"] * 3] * 3
        job.create_table("t", 4)


def other_call(pm: ParameterManager, other: str) -> None:
    if other == "barrier":
        pm.barrier()
    elif other == "create_table":
        pm.create_table("t", 4)
    else:
        pm.allgather(b"y")


def test_who_gave_up_need_not_be_waited_for() -> None:
    """The other ranks go on; the one that gave up finds the answer when it comes back."""
    with simulate(2, 6) as job:
        passed: list[int] = []

        def target(pm: ParameterManager) -> None:
            if pm.rank == 0:
                job.network.pause(LATE_US)
                pm.barrier()
                passed.append(0)
                return
            with pytest.raises(intentpm.WaitTimeoutError):
                pm.barrier(SHORT_S)
            job.network.pause(3 * LATE_US)
            assert passed == [0]
            pm.barrier(SHORT_S)

        job.on_every_rank(target)
        job.on_every_rank(lambda pm: pm.barrier())


def test_a_barrier_given_up_leaves_no_stale_replica() -> None:
    """Rank 1 gets its replica after it has said that it has none; what rank 0 wrote before its barrier is in it
    afterwards."""
    with simulate(3, 7, intentpm.runtime.config.Config(management="replicate", sync_interval=10.0)) as job:
        tables = job.create_table("t", 30)

        def target(pm: ParameterManager) -> None:
            table, worker = tables[pm.rank], pm.worker()
            keys = tables[0].home_keys()
            if pm.rank == 1:
                with pytest.raises(intentpm.WaitTimeoutError):
                    pm.barrier(SHORT_S)
                worker.intent(table, keys, 0, 10)
                worker.wait_sync()
                assert table.replica_keys().tolist() == keys.tolist()
                job.network.pause(3 * LATE_US)
            elif pm.rank == 0:
                job.network.pause(LATE_US)
                worker.push(table, keys, np.ones(len(keys), np.float32))
                worker.wait_sync()
            pm.barrier()
            if pm.rank == 1:
                assert (table.rows_here(keys) == 1.0).all()

        job.on_every_rank(target)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("seed", range(12))
def test_any_sequence_of_calls_with_short_deadlines_ends_as_without(size: int, seed: int) -> None:
    """Calls of one to three exchanges, each rank with its own deadlines and pauses."""
    with simulate(size, seed) as job:
        plan = [random.Random(seed).choice(("barrier", "allgather", "table", "steps")) for _ in range(8)]

        def target(pm: ParameterManager) -> list[Any]:
            draw = random.Random(f"{seed} {pm.rank}")
            return [
                persist(lambda step=step, kind=kind: one(pm, draw, step, kind))[0] for step, kind in enumerate(plan)
            ]

        def one(pm: ParameterManager, draw: random.Random, step: int, kind: str) -> Any:
            job.network.pause(draw.choice((0.0, 50.0, 2000.0)))
            timeout = draw.choice((0.0, 1e-5, 1e-4, 1e-3))
            if kind == "barrier":
                return pm.barrier(timeout)
            if kind == "allgather":
                return pm.allgather(b"%d of %d" % (step, pm.rank), timeout)
            if kind == "table":
                return pm.create_table(f"table {step}", 10, timeout=timeout).table_id
            return steps(pm, step, timeout)

        results = job.on_every_rank(target)
        assert all(result == results[0] for result in results)
        for step, kind in enumerate(plan):
            if kind == "allgather":
                assert results[0][step] == [b"%d of %d" % (step, rank) for rank in range(size)]


def steps(pm: ParameterManager, step: int, timeout: float) -> list[int]:
    """A call as saving is: several exchanges, with work of the rank between them that is done once."""
    worked: list[int] = []
    with pm._collectives.call("steps", "steps()", b"%d" % step, timeout) as call:
        sums = []
        for part in range(3):
            mine = call.once(lambda part=part: worked.append(part) or 10 * part + pm.rank)
            sums.append(sum(int(said) for said in call.gather(json.dumps(mine).encode())))
    assert len(set(worked)) == len(worked)
    return sums


# -- undone ------------------------------------------------------------------------------------------------------------


def interrupted(pm: ParameterManager, job: Simulation, name: str = "big") -> None:
    """create_table that is interrupted while it waits."""
    wait, engine = pm._collectives, pm._engine

    class Interrupting:
        """The engine, whose wait for the other ranks ends as by a signal."""

        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

        def exchange(self, payload: bytes, what: str, timeout_s: float | None, formed: int) -> list[bytes]:
            try:
                return engine.exchange(payload, what, SHORT_S, formed)
            except intentpm.WaitTimeoutError:
                raise Interrupt from None

    wait.engine = Interrupting()
    try:
        with pytest.raises(Interrupt):
            pm.create_table(name, 100, 8, init=1.0)
    finally:
        wait.engine = engine


@pytest.mark.parametrize("hasty", [0, 1, 3])
def test_an_interrupted_creation_fails_on_every_rank_and_leaves_nothing(hasty: int) -> None:
    with simulate(4, 8) as job:
        first = job.create_table("t", 10)

        def target(pm: ParameterManager) -> None:
            if pm.rank == hasty:
                interrupted(pm, job)
                worker = pm.worker()
                for _ in range(20):
                    worker.push(first[pm.rank], np.arange(10), np.ones(10, np.float32))
            else:
                job.network.pause(LATE_US)
                with pytest.raises(
                    intentpm.Error, match=f"'big' was not made: rank {hasty} gave up, because of Interrupt"
                ):
                    pm.create_table("big", 100, 8, init=1.0)
            pm.barrier()
            again = pm.create_table("big", 50, init=2.0)
            assert again.table_id == 1
            assert (pm.worker().pull(again, np.arange(50)) == 2.0).all()

        job.on_every_rank(target)


def test_an_interrupt_that_comes_too_late_leaves_the_table_to_be_had() -> None:
    """All ranks had come when one was interrupted: the others have the table, and it gets it by the same call."""
    with simulate(2, 9) as job:

        def target(pm: ParameterManager) -> Any:
            if pm.rank == 1:
                settle = pm._settle_table
                pm._settle_table = stop  # type: ignore[method-assign]
                with pytest.raises(Interrupt):
                    pm.create_table("t", 10, init=5.0)
                pm._settle_table = settle  # type: ignore[method-assign]
            table = pm.create_table("t", 10, init=5.0)
            pm.barrier()
            return pm.worker().pull(table, np.arange(10)).tolist()

        assert job.on_every_rank(target) == [[5.0] * 10] * 2


def stop(*_: Any) -> None:
    raise Interrupt


def test_an_interrupt_in_an_init_is_heard_by_the_others() -> None:
    with simulate(3, 10) as job:

        def target(pm: ParameterManager) -> None:
            if pm.rank == 2:
                with pytest.raises(Interrupt):
                    pm.create_table("t", 10, init=stop)
            else:
                with pytest.raises(intentpm.Error, match=r"rank 2 gave up, because of Interrupt\(\)"):
                    pm.create_table("t", 10, init=lambda keys: np.zeros(len(keys)))
            pm.barrier()
            assert pm.create_table("t", 10).table_id == 0

        job.on_every_rank(target)


def test_a_rank_that_gave_up_and_closes_is_named() -> None:
    with simulate(3, 12) as job:

        def target(pm: ParameterManager) -> None:
            if pm.rank == 1:
                with pytest.raises(intentpm.WaitTimeoutError):
                    pm.barrier(SHORT_S)
                pm.close()
                return
            job.network.pause(LATE_US)
            with pytest.raises(intentpm.CollectiveMismatchError, match="rank 1 has closed"):
                pm.barrier()
            pm.close()

        job.on_every_rank(target)


def test_a_table_that_was_not_made_does_not_count_towards_the_budget() -> None:
    budget = max(budget_of([need_of(100, 16, rank, 2, copies=120)]) for rank in range(2))
    with simulate(2, 13, intentpm.runtime.config.Config(memory_budget=budget)) as job:
        for _ in range(5):
            for outcome in job.on_every_rank(lambda pm: refused(pm, pm.rank)):
                assert isinstance(outcome, intentpm.CollectiveMismatchError)
        tables = job.create_table("t", 100, 16)

        def intend(pm: ParameterManager) -> int:
            worker = pm.worker()
            worker.intent(tables[pm.rank], np.arange(100), 0)
            worker.wait_sync()
            return int(pm.stats()["intents"]["refused"])

        assert job.on_every_rank(intend) == [0, 0]


def refused(pm: ParameterManager, init: float) -> BaseException | None:
    try:
        pm.create_table("t", 100, 16, init=init)
    except intentpm.Error as error:
        return error
    return None
