"""Matrix factorisation on simulated ranks with a slow network: as good as on one rank, however late copies are."""

import numpy as np
import pytest

from intentpm.bench.scenarios.simulated_job import simulated_job
from intentpm.bench.tasks.mf import MatrixFactorisation, MfOptions
from intentpm.bench.tasks.ratings import TEST, GeneratorSpec, generate_ratings
from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

SLOW = NetworkModel(latency_us=100.0, bandwidth_gbytes_per_s=0.025, message_us=10.0, step_delay_us=20.0)
"""200 Mbit/s."""
BATCH_US = 1_400.0


@pytest.fixture(scope="module")
def ratings():
    return generate_ratings(GeneratorSpec(users=4_000, items=1_000, ratings=200_000), seed=0)


def final_rmse(ratings, ranks, management="adaptive", look_ahead=4):
    options = MfOptions(lr=0.05, reg=0.01, epochs=6, look_ahead=look_ahead)
    with simulated_job(ranks, Config(management=management), SLOW) as job:

        def train(pm):
            task = MatrixFactorisation(pm, ratings, options)
            learn = task._train_batch

            def learn_slowly(*arguments):
                job.pause_us(BATCH_US)
                return learn(*arguments)

            task._train_batch = learn_slowly
            return [row.test_rmse for row in task.run()]

        return job.on_every_rank(train)[0][-1]


@pytest.fixture(scope="module")
def alone(ratings):
    return final_rmse(ratings, 1)


@pytest.mark.parametrize("management", ["adaptive", "replicate", "static"])
def test_four_ranks_are_as_good_as_one(ratings, alone, management):
    assert final_rmse(ratings, 4, management) <= 1.02 * alone


def test_how_far_they_look_ahead_is_found_by_itself(ratings, alone):
    assert final_rmse(ratings, 4, look_ahead="auto") <= 1.02 * alone


def test_test_ratings_are_read_block_by_block_too(ratings, monkeypatch):
    """Read at random, all items would go to the rank that is done first, which would send them to all others."""
    monkeypatch.setattr("intentpm.bench.tasks.mf.EVALUATION_BATCH", 64)
    with simulated_job(4, Config(), SLOW) as job:

        def evaluate(pm):
            task = MatrixFactorisation(pm, ratings, MfOptions())
            items = []
            pull = task._pull

            def noted_pull(batch):
                items.extend(batch.item_keys[batch.item_index])
                return pull(batch)

            task._pull = noted_pull
            task._evaluate(task.parts[TEST])
            blocks = (task.blocks.of_item[items] - task.blocks.per_rank * pm.rank) % (4 * task.blocks.per_rank)
            return len(items), bool((np.diff(blocks) >= 0).all())

        read = job.on_every_rank(evaluate)
    assert sum(count for count, _ in read) == (ratings.split == TEST).sum()
    assert all(in_turn for _, in_turn in read)
