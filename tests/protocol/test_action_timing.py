"""The action timer at work: what it learns from rounds of a known length, on a network without jitter."""

from typing import Any

import numpy as np
import pytest
from support.simulation import simulate

from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

NUM_KEYS, BATCH, STEPS = 4_000, 20, 400
GATHERING_US = 400.0  # LOOK_GAP_NS in turns.pyx


@pytest.mark.parametrize("clock_us", [20.0, 1000.0])
@pytest.mark.parametrize("look_ahead", [1, 8, 64])
@pytest.mark.parametrize("latency_us", [20.0, 200.0])
def test_the_estimate_follows_the_length_of_a_round(latency_us: float, look_ahead: int, clock_us: float) -> None:
    """An intent waits at most for the gap between two looks and for the round before its own; it takes two messages.

    A round that takes a part of a clock counts as that part.
    """
    with simulate(2, seed=1, config=Config(seed=1), model=NetworkModel(latency_us=latency_us)) as job:
        tables = job.create_table("rows", NUM_KEYS, 2)
        workers: list[Any] = []

        def train(manager) -> None:
            worker, table = manager.worker(), tables[manager.rank]
            workers.append(worker)  # whose estimate is looked at below
            random = np.random.default_rng(manager.rank)
            for clock in range(STEPS):
                worker.intent(table, random.integers(0, NUM_KEYS, BATCH), clock + look_ahead)
                job.network.pause(clock_us)
                worker.advance_clock()

        job.on_every_rank(train)
        longest_us = GATHERING_US + 2 * (2 * latency_us)
        for manager in job.ranks:
            (seen,) = manager.stats()["workers"]
            assert min(0.5, latency_us / clock_us) <= seen["clocks_per_round"] <= max(0.6, 1.1 * longest_us / clock_us)


@pytest.mark.parametrize("compute_us", [1_000.0, 16_000.0])
def test_waits_for_keys_count_as_time_of_clocks(compute_us: float) -> None:
    """The rows of a clock take 60 ms on the link, so copies are soon taken few clocks ahead, though clocks whose rows
    have come pass in the time that computing takes.
    """
    ranks, rows, dim, steps = 4, 1_500, 256, 24
    model = NetworkModel(latency_us=100.0, bandwidth_gbytes_per_s=0.025)
    with simulate(ranks, seed=1, config=Config(seed=1), model=model) as job:
        tables = job.create_table("rows", NUM_KEYS, dim)
        horizons: list[list[int]] = [[] for _ in range(ranks)]

        def train(manager) -> None:
            worker, table = manager.worker(), tables[manager.rank]
            random = np.random.default_rng(manager.rank)
            batches = [np.unique(random.integers(0, NUM_KEYS, rows)) for _ in range(steps)]
            for clock in range(steps):
                worker.intent(table, batches[clock], clock)
            for keys in batches:
                horizons[manager.rank].append(manager.stats()["workers"][0]["horizon_clocks"])
                worker.push(table, keys, worker.pull(table, keys))
                job.network.pause(compute_us)
                worker.advance_clock()

        job.on_every_rank(train)
        for seen in horizons:
            assert seen[0] <= 6
            assert np.median(seen[steps // 2 :]) <= 6, seen
        assert np.median([seen[steps // 2 :] for seen in horizons]) <= 4, horizons
