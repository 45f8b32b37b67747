"""Pulls of keys that are on their way here, on a network without jitter."""

from typing import Any

import numpy as np
from support.simulation import Simulation, simulate

from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

LATENCY_US = 1000.0
NUM_KEYS = 40
LOOK_US = 20.0


def _job() -> Any:
    return simulate(2, seed=1, config=Config(seed=1), model=NetworkModel(latency_us=LATENCY_US))


def _table(job: Simulation) -> tuple[list[Any], np.ndarray]:
    """The table, whose rows hold their keys, and the keys that rank 1 owns."""
    tables = job.create_table("rows", NUM_KEYS, 2, init=lambda keys: np.repeat(keys[:, None], 2, axis=1))
    return tables, tables[1].owned_keys()


def _ask_for(job: Simulation, table: Any, keys: np.ndarray) -> Any:
    """A worker of rank 0 that intends ``keys``, which are on their way now."""
    worker = job.ranks[0].worker()
    worker.intent(table, keys, 0)
    job.network.pause(LOOK_US)
    return worker


def test_a_pull_waits_for_keys_on_their_way_and_asks_for_the_rest() -> None:
    with _job() as job:
        tables, away = _table(job)

        def pull() -> None:
            worker = _ask_for(job, tables[0], away[:5])
            keys = np.concatenate([away[4:9], away[:6], away[:1]])
            assert (worker.pull(tables[0], keys) == keys[:, None]).all()

        job.spawn(0, pull)
        job.run()
        stats = job.ranks[0].stats()
        assert (stats["parked"], stats["parked_now"], stats["relocations_in"]) == (7, 0, 5)


def test_a_pull_asks_the_owner_when_the_intent_is_over_before_its_keys_were_asked_for() -> None:
    with _job() as job:
        tables, away = _table(job)

        def pull() -> None:
            worker = job.ranks[0].worker()
            worker.push_async(tables[0], away[-1:], np.ones((1, 2), np.float32))
            # Until that is acknowledged nothing is asked for.
            worker.intent(tables[0], away[:5], 0)
            job.network.pause(LOOK_US)
            pulled = worker.pull_async(tables[0], away[:6])
            worker.advance_clock()
            assert (pulled.result() == away[:6, None]).all()

        job.spawn(0, pull)
        job.run()
        stats = job.ranks[0].stats()
        assert (stats["intents"]["withdrawn"], stats["relocations_in"]) == (5, 0)
        assert (stats["parked"], stats["parked_now"]) == (5, 0)


def test_an_abandoned_pull_waits_no_longer() -> None:
    with _job() as job:
        tables, away = _table(job)

        def pull() -> None:
            worker = _ask_for(job, tables[0], away[:5])
            worker.pull_async(tables[0], away[:5])  # whose future nobody keeps

        job.spawn(0, pull)
        job.settle()
        assert job.ranks[0].stats()["parked_now"] == 0
