"""The end of a worker: its intents and memory go, its counts stay, and what is called afterwards is refused."""

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.simulation import simulate

import intentpm
from intentpm.runtime.manager import ParameterManager

KEYS = np.arange(40)


ENDS: dict[str, Callable[[list[Any]], None]] = {
    "close": lambda workers: workers[0].close(),
    "with block": lambda workers: workers[0].__exit__(None, None, None),
    "last reference": lambda workers: workers.clear(),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_a_worker_ends_its_intents_and_keeps_its_counts(end: str) -> None:
    with simulate(2, 4, intentpm.runtime.config.Config(management="replicate")) as job:
        tables = job.create_table("t", 40)

        def target(pm: ParameterManager) -> None:
            table = tables[pm.rank]
            workers = [pm.worker()]
            workers[0].intent(table, KEYS, 0, 1000)
            workers[0].intent(table, KEYS, 10**6, 10**6 + 1)
            workers[0].wait_sync()
            workers[0].pull(table, KEYS)
            assert pm.stats()["replicas_held"] > 0
            before = pm.stats()
            ENDS[end](workers)
            after = pm.stats()
            assert after["tables"] == before["tables"]
            assert after["intents"]["signalled"] == before["intents"]["signalled"] == 80
            assert len(after["workers"]) == 0

        job.on_every_rank(target)
        job.settle()
        assert [pm.stats()["replicas_held"] for pm in job.ranks] == [0, 0]
        assert not any(pm.explain(tables[pm.rank], 3).intents for pm in job.ranks)
        job.checker.check_quiet(intended={"t": [np.array([], np.int64)] * 2})


def test_an_intent_of_another_worker_outlasts_it() -> None:
    with simulate(2, 5, intentpm.runtime.config.Config(management="replicate")) as job:
        tables = job.create_table("t", 40)
        kept: list[Any] = []

        def target(pm: ParameterManager) -> None:
            first, second = pm.worker(), pm.worker()
            for worker in (first, second):
                worker.intent(tables[pm.rank], KEYS, 0, 1000)
                worker.wait_sync()
            first.close()
            kept.append(second)

        job.on_every_rank(target)
        job.settle()
        assert all(pm.stats()["replicas_held"] > 0 for pm in job.ranks)
        assert {intent.worker for intent in job.ranks[0].explain(tables[0], 3).intents} == {1}


@pytest.mark.parametrize("seed", range(10))
def test_workers_that_come_and_go_lose_no_write(seed: int) -> None:
    with simulate(3, seed) as job:
        tables = job.create_table("t", 40, dtype="float64")

        def target(pm: ParameterManager) -> None:
            table = tables[pm.rank]
            for number in range(12):
                draw = np.random.default_rng([seed, pm.rank, number])
                worker = pm.worker()
                worker.intent(table, draw.integers(0, 40, 10), number % 3, 50)
                for _ in range(3):
                    worker.push_async(table, KEYS, np.ones(40))
                    worker.advance_clock()
                if number % 2:
                    worker.close()
            pm.worker().wait_sync()
            pm.barrier()

        job.on_every_rank(target)
        job.settle()
        job.checker.check_quiet({"t": np.full(40, 3.0 * 12 * 3)}, {"t": [np.array([], np.int64)] * 3})


def test_a_closed_worker_refuses_every_call() -> None:
    with intentpm.init() as pm:
        table = pm.create_table("t", 10)
        with pm.worker() as worker:
            sample = worker.prepare_sample(table, 2, 0)
            future = worker.pull_async(table, [1])
        worker.close()
        for call in (
            lambda: worker.pull(table, [1]),
            lambda: worker.push(table, [1], [1.0]),
            lambda: worker.set_async(table, [1], [1.0]),
            lambda: worker.intent(table, [1], 0),
            worker.advance_clock,
            worker.wait_sync,
            lambda: worker.prepare_sample(table, 2, 0),
            lambda: worker.pull_sample(sample),
        ):
            with pytest.raises(intentpm.ClosedError, match=r"Worker 0 of rank 0, clock 0> is closed.*pm\.worker"):
                call()
        assert worker.clock == 0
        assert future.result().tolist() == [0.0]
        pm.worker().pull(table, [1])


def test_another_thread_closes_a_worker() -> None:
    with intentpm.init() as pm:
        worker = pm.worker()
        thread = threading.Thread(target=worker.close)
        thread.start()
        thread.join()
        with pytest.raises(intentpm.ClosedError):
            worker.wait_sync()


def test_futures_outlive_their_worker() -> None:
    with simulate(2, 6) as job:
        tables = job.create_table("t", 40)

        def target(pm: ParameterManager) -> list[float]:
            table = tables[pm.rank]
            futures = []
            for _ in range(20):
                worker = pm.worker()
                futures.append(worker.push_async(table, KEYS, np.ones(40, np.float32)))
                del worker
            gc.collect()
            for future in futures:
                future.wait()
            pm.barrier()
            return pm.worker().pull(table, KEYS).tolist()

        assert job.on_every_rank(target) == [[40.0] * 40] * 2


def test_many_short_workers_take_no_memory() -> None:
    with intentpm.init() as pm:
        table = pm.create_table("t", 40)
        sampling = pm.create_sampling(table)
        before = None
        for number in range(3000):
            worker = pm.worker()
            worker.intent(table, KEYS, 0, 10)
            worker.pull_sample(worker.prepare_sample(sampling, 2, 0))
            if number % 2:
                worker.close()
            if number == 500:
                before = resident_kib()
        assert resident_kib() - (before or 0) < 20_000
        assert sampling.stats()["drawn"] == 6000
        assert pm.stats()["tables"]["t"]["local"] == 6000


def resident_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
