"""Matrix factorisation: SGD with L2 regularisation on (user, item, rating), data-parallel over ranks.

Each rank trains the ratings of its share of the users, in an order drawn for each epoch (``partition.py``). Per batch
it pulls the rows of the batch's users and items, runs SGD on these copies rating by rating (``_mf.pyx``) and pushes
what changed. User rows are therefore used by one rank, item rows by one after the other.

Ratings are centred and scaled to a standard deviation of 1 before training, so that one set of defaults fits any rating
scale; errors are reported in the units of the ratings.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks._mf import squared_error, train_batch
from intentpm.bench.tasks.checkpoints import CheckpointOptions, Progress
from intentpm.bench.tasks.diverged import DivergedError
from intentpm.bench.tasks.epochs import EpochMeter, EpochRow, check_finite, mean
from intentpm.bench.tasks.initial_rows import NormalRows
from intentpm.bench.tasks.look_ahead import look_ahead
from intentpm.bench.tasks.partition import ItemBlocks, rank_of_users
from intentpm.bench.tasks.ratings import TEST, TRAIN, VALID, Ratings

TABLES = ("users", "items")
SUMS = ("train", "train_count", "valid", "valid_count", "test", "test_count")
"""Squared errors in scaled units, and of how many ratings."""
ORDERS = ("blocked", "random")
INITIAL_LENGTH = 0.1
"""Expected length of a row's initial factors: short, so that keys without ratings predict the mean."""
EVALUATION_BATCH = 8_192


@dataclass(frozen=True, slots=True)
class MfOptions:
    """Hyper-parameters. The defaults were chosen on the validation ratings of MovieLens and hold on generated data."""

    dim: int = 32
    """Factors per user and item; each row has one more column, the bias."""
    lr: float = 0.03
    """Learning rate of the first epoch; falls linearly over the epochs to ``final_lr_share`` of it."""
    final_lr_share: float = 0.1
    reg: float = 0.06
    """L2 regularisation per rating."""
    epochs: int = 30
    batch: int = 1_000
    """Ratings per pull and push."""
    look_ahead: int | str = "auto"
    """Batches prepared, and signalled to the PM, before use; 0: signal nothing."""
    order: str = "blocked"
    """Of a rank's ratings in an epoch: "blocked" keeps ranks from training one item at the same time, "random" not."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MfRow(EpochRow):
    """Root mean squared errors, in the units of the ratings; ``loss`` is a mean squared error. nan of nothing."""

    valid_rmse: float
    test_rmse: float


@dataclass(frozen=True, slots=True)
class RatingBatch:
    """Ratings used together, with the keys they need: unique keys, and for each rating its index among them."""

    tables: tuple[Any, Any]
    user_keys: NDArray[np.int64]
    item_keys: NDArray[np.int64]
    user_index: NDArray[np.int32]
    item_index: NDArray[np.int32]
    rating: NDArray[np.float32]

    def accesses(self) -> tuple[tuple[Any, NDArray[np.int64]], ...]:
        """Pairs of (table, keys)."""
        return ((self.tables[0], self.user_keys), (self.tables[1], self.item_keys))


class MatrixFactorisation:
    """One rank's part of the training. Construct and use it on every rank alike; one thread.

    Parameters:
        pm: the parameter manager.
        ratings: all ratings (every rank has them all and picks its own part).
        options: hyper-parameters, the same on every rank.
        checkpoints: when and where they are made, and whether to go on from one.
    """

    def __init__(
        self, pm: Any, ratings: Ratings, options: MfOptions, checkpoints: CheckpointOptions | None = None
    ) -> None:
        self.pm, self.options = pm, options
        self.worker = pm.worker()
        self.tables = (self._create_table(0, ratings.users), self._create_table(1, ratings.items))
        self.progress = Progress(pm, self.tables, checkpoints)
        self.meter = EpochMeter(pm, self.worker, TABLES, SUMS)
        train = ratings.rating[ratings.split == TRAIN]
        self.mean = float(train.mean(dtype=np.float64))
        # Of equal ratings the deviation may come out as a rounding error, which would blow up the rest of them.
        self.scale = float(train.std(dtype=np.float64)) if train.min() < train.max() else 1.0
        self.blocks = ItemBlocks(ratings, pm.size if options.order == "blocked" else 1)
        mine = ratings.take(rank_of_users(ratings, pm.size)[ratings.user] == pm.rank)
        self.parts = {part: self._scaled(mine.take(mine.split == part)) for part in (TRAIN, VALID, TEST)}

    def run(self) -> Iterator[MfRow]:
        """Trains; yields one row per epoch, the same on every rank, beginning with the untrained model.

        Raises DivergedError when the errors are no longer finite, and whatever the PM raises.
        """
        return self.progress.run(MfRow, self.options.epochs, self._epoch)

    def _epoch(self, epoch: int) -> MfRow:
        return self._measured(epoch, *(self._train(epoch) if epoch else (0.0, 0)))

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of ``epoch`` (from 1)."""
        progress = (epoch - 1) / max(1, self.options.epochs - 1)
        return self.options.lr * (1 - (1 - self.options.final_lr_share) * progress)

    def _create_table(self, position: int, keys: int) -> Any:
        dim, seed = self.options.dim, 2 * self.options.seed + position
        rows = NormalRows(dim + 1, dim, INITIAL_LENGTH / math.sqrt(max(dim, 1)), seed)
        return self.pm.create_table(TABLES[position], num_keys=keys, row_shape=(dim + 1,), dtype="float32", init=rows)

    def _scaled(self, part: Ratings) -> Ratings:
        return replace(part, rating=((part.rating - self.mean) / self.scale).astype(np.float32))

    def _train(self, epoch: int) -> tuple[float, int]:
        """One pass over this rank's training ratings; returns the sum of their squared errors, and how many."""
        part, rate, error = self.parts[TRAIN], self.learning_rate(epoch), 0.0
        random = np.random.default_rng([self.options.seed, epoch, self.pm.rank])
        order = self._blocked(part, random.permutation(len(part)))
        order = self.progress.rest_of(order, self.options.batch)
        with self.meter.training_pass():
            for batch in self.progress.follow(self._batches(part, order, self.options.batch)):
                error += self._train_batch(batch, rate)
        return error, len(order)

    def _train_batch(self, batch: RatingBatch, rate: float) -> float:
        users, items = self._pull(batch)
        user_deltas, item_deltas = np.empty_like(users), np.empty_like(items)
        error = train_batch(
            users,
            items,
            batch.user_index,
            batch.item_index,
            batch.rating,
            user_deltas,
            item_deltas,
            rate,
            self.options.reg,
        )
        pushes = [
            self.worker.push_async(table, keys, deltas)
            for (table, keys), deltas in zip(batch.accesses(), (user_deltas, item_deltas), strict=True)
        ]
        for push in pushes:
            push.wait()
        return float(error)

    def _pull(self, batch: RatingBatch) -> list[NDArray[np.float32]]:
        pulls = [self.worker.pull_async(table, keys) for table, keys in batch.accesses()]
        return [pull.result() for pull in pulls]

    def _evaluate(self, part: Ratings) -> float:
        """The sum of squared errors of this rank's share of a split, in scaled units."""
        total = 0.0
        for batch in self._batches(part, self._blocked(part, np.arange(len(part))), EVALUATION_BATCH):
            user_rows, item_rows = self._pull(batch)
            total += squared_error(user_rows, item_rows, batch.user_index, batch.item_index, batch.rating)
        return total

    def _blocked(self, part: Ratings, order: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.blocks.order(part.item, self.pm.rank, order)

    def _batches(self, part: Ratings, order: NDArray[np.int64], size: int) -> Iterator[RatingBatch]:
        cuts = (order[first : first + size] for first in range(0, len(order), size))
        return look_ahead(self.worker, (self._batch(part, cut) for cut in cuts), self.options.look_ahead)

    def _batch(self, part: Ratings, positions: NDArray[np.int64]) -> RatingBatch:
        user_keys, user_index = np.unique(part.user[positions], return_inverse=True)
        item_keys, item_index = np.unique(part.item[positions], return_inverse=True)
        return RatingBatch(
            self.tables, user_keys.astype(np.int64), item_keys.astype(np.int64),
            user_index.astype(np.int32), item_index.astype(np.int32), part.rating[positions],
        )  # fmt: skip

    def _measured(self, epoch: int, error: float, count: int) -> MfRow:
        """Evaluates, adds up over the ranks, and checks that training is still sane."""
        valid, test = self.parts[VALID], self.parts[TEST]
        sums, took = self.meter.measured(
            train=error, train_count=count, valid=self._evaluate(valid), valid_count=len(valid),
            test=self._evaluate(test), test_count=len(test),
        )  # fmt: skip
        squared = {part: self.scale**2 * mean(sums[part], sums[f"{part}_count"]) for part in ("train", "valid", "test")}
        row = MfRow(
            epoch=epoch, loss=squared["train"], **took,
            valid_rmse=math.sqrt(squared["valid"]), test_rmse=math.sqrt(squared["test"]),
        )  # fmt: skip
        advice = f"Lower --lr ({self.options.lr}) or raise --reg ({self.options.reg})."
        check_finite(row, sums["train_count"], advice)
        if not math.isfinite(row.test_rmse):
            raise DivergedError(f"training diverged in epoch {epoch}: the test error is no longer finite. {advice}")
        return row
