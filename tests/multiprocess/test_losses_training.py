"""A model that is trained on after a rank was killed becomes as good as one of a job in which none was."""

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intentpm
from intentpm.bench.tasks._mf import squared_error, train_batch
from intentpm.bench.tasks.initial_rows import NormalRows
from intentpm.bench.tasks.ratings import TEST, TRAIN, GeneratorSpec, Ratings, generate_ratings, load_ratings

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

MOVIELENS = Path("../shared/data/movielens_small/ratings.npz")
VICTIM = 1
DIM, REGULARISATION, RATE, EPOCHS, BATCH, AHEAD = 16, 0.05, 0.04, 12, 500, 3


class Training:
    """Matrix factorisation by one rank: its share of the users, epoch by epoch, whoever is left."""

    def __init__(self, pm: Any, ratings: Ratings, folder: str) -> None:
        self.pm, self.worker = pm, pm.worker()
        self.losses: list[intentpm.RankLost] = []
        train = ratings.rating[ratings.split == TRAIN]
        self.mean, self.scale = float(train.mean()), float(train.std())
        self.train, self.test = (ratings.take(np.flatnonzero(ratings.split == part)) for part in (TRAIN, TEST))
        self.tables = [
            pm.create_table(name, keys, DIM + 1, init=NormalRows(DIM + 1, DIM, 0.1 / math.sqrt(DIM), seed))
            for seed, (name, keys) in enumerate((("users", ratings.users), ("items", ratings.items)))
        ]
        self.saves = pm.periodic_saves(folder, every=0.05)

    def run(self, dies_in_epoch: int | None) -> float:
        """Returns the test error."""
        epoch = 0
        while epoch < EPOCHS:
            try:
                for number, batch in enumerate(self._batches(epoch)):
                    if epoch == dies_in_epoch and number == 5:
                        os.kill(os.getpid(), signal.SIGKILL)
                    self._train(*batch, RATE * (1 - 0.9 * epoch / EPOCHS))
                    self.saves.step(lambda: None)
                epoch += 1
            except intentpm.RankLost as loss:
                self.losses.append(loss)  # the epoch begins again, with a larger share
        self._together(self.worker.wait_sync)
        self._together(lambda: self.saves.finish(lambda: None))
        self._together(self.pm.barrier)
        error = self._test_error()
        self._together(self.pm.barrier)
        return error

    def _batches(self, epoch: int) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Positions of ratings, and the keys of users and items; signalled before they are used."""
        place = self.pm.living.index(self.pm.rank)
        mine = np.flatnonzero(self.train.user % len(self.pm.living) == place)
        order = np.random.default_rng([epoch, place]).permutation(mine)
        cuts = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
        keys = [
            [np.unique(self.train.user[cut]).astype(np.int64), np.unique(self.train.item[cut]).astype(np.int64)]
            for cut in cuts
        ]
        for number, cut in enumerate(cuts):
            ahead = range(number, min(number + AHEAD, len(cuts))) if number == 0 else [number + AHEAD - 1]
            for coming in (coming for coming in ahead if coming < len(cuts)):
                for table, wanted in zip(self.tables, keys[coming], strict=True):
                    start = self.worker.clock + coming - number
                    self.worker.intent(table, wanted, start, start + 1)
            yield cut, keys[number]
            self.worker.advance_clock()

    def _train(self, cut: np.ndarray, keys: list[np.ndarray], rate: float) -> None:
        users, items = (self.worker.pull(table, wanted) for table, wanted in zip(self.tables, keys, strict=True))
        deltas = np.empty_like(users), np.empty_like(items)
        places = self._places(self.train, cut, keys)
        train_batch(users, items, *places, self._scaled(self.train, cut), *deltas, rate, REGULARISATION)
        for table, wanted, delta in zip(self.tables, keys, deltas, strict=True):
            self.worker.push(table, wanted, delta)

    def _test_error(self) -> float:
        rows = [self.worker.pull(table, np.arange(table.num_keys)) for table in self.tables]
        everything = np.arange(len(self.test.rating))
        keys = [np.arange(table.num_keys) for table in self.tables]
        places = self._places(self.test, everything, keys)
        total = squared_error(*rows, *places, self._scaled(self.test, everything))
        return self.scale * math.sqrt(total / len(everything))

    def _places(self, part: Ratings, cut: np.ndarray, keys: list[np.ndarray]) -> list[np.ndarray]:
        columns = part.user[cut], part.item[cut]
        return [np.searchsorted(wanted, column).astype(np.int32) for wanted, column in zip(keys, columns, strict=True)]

    def _scaled(self, part: Ratings, cut: np.ndarray) -> np.ndarray:
        return ((part.rating[cut] - self.mean) / self.scale).astype(np.float32)

    def _together(self, call: Any) -> None:
        while True:
            try:
                return call()
            except intentpm.RankLost as loss:
                self.losses.append(loss)


def train(data: str | None, folder: str, with_loss: bool) -> dict[str, Any]:
    spec = GeneratorSpec(users=1500, items=500, ratings=50_000, rank=4)
    ratings = generate_ratings(spec) if data is None else load_ratings(Path(data))
    with intentpm.init(on_loss="continue") as pm:
        training = Training(pm, ratings, folder)
        error = training.run(3 if with_loss and pm.rank == VICTIM else None)
        return {
            "error": error,
            "living": pm.living,
            "lost": [rank for loss in training.losses for rank in loss.ranks],
            "sources": {entry.source for loss in training.losses for entry in loss.rolled_back},
        }


@pytest.mark.parametrize("data", ["generated", "movielens"])
def test_training_on_after_a_kill_is_as_good(spawn_world, tmp_path: Path, data: str) -> None:  # type: ignore[no-untyped-def]
    if data == "movielens" and not MOVIELENS.exists():
        pytest.skip("needs ../shared/data/movielens_small")
    path = str(MOVIELENS.absolute()) if data == "movielens" else None
    whole = spawn_world(3, train, path, str(tmp_path / "whole"), False, timeout_s=120.0)
    options = {"env": {"INTENTPM_ON_LOSS": "continue"}, "on_loss": "continue", "timeout_s": 120.0}
    outcomes = spawn_world.outcomes(3, train, path, str(tmp_path / "with loss"), True, **options)
    assert outcomes[VICTIM].exit_code == -signal.SIGKILL
    for rank in (0, 2):
        assert not outcomes[rank].failed, outcomes[rank].traceback
        said = outcomes[rank].value
        assert (said["living"], said["lost"]) == ([0, 2], [VICTIM])
        assert said["sources"], "rank 1 owned the rows of its users"
        assert said["error"] <= whole[rank]["error"] * 1.05
    print(
        f"{data}: test error {whole[0]['error']:.4f}, with a loss {outcomes[0].value['error']:.4f}", outcomes[0].value
    )
