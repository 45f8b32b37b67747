"""Click-through rates: Wide & Deep on numbers and categories, data-parallel over ranks, with ``intentpm.torch``.

Two tables have a row per category: a weight of the wide part, and an embedding of the deep part, a multi-layer
perceptron. Both are modules of the model and are trained by ``backward()``, where their rows are. The loader reads
ahead and announces the categories of the coming batches to the parameter manager.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

import intentpm.optim
import intentpm.torch
from intentpm.bench.tasks.checkpoints import CheckpointOptions, Progress
from intentpm.bench.tasks.clicks import ClickData, Clicks
from intentpm.bench.tasks.ctr_options import CtrOptions, CtrRow
from intentpm.bench.tasks.dense_layers import DenseLayers, l2
from intentpm.bench.tasks.epochs import EpochMeter, check_finite, mean
from intentpm.bench.tasks.even_batches import batches_per_epoch, even_batches
from intentpm.bench.tasks.initial_rows import NormalRows
from intentpm.bench.tasks.rank_table import RankTable
from intentpm.bench.tasks.roc import BINS, area_under_curve, score_histograms

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Labels [B], numbers [B, numbers], categories [B, fields]."""

EVALUATION_BATCH = 4_096
RARE = 40.0
"""A key seen much less often moves less than AdaGrad alone would move it: what it saw is mostly chance.

(The gradient of a key in a batch is of the order of 1 / batch.)
"""
SUMS = ("loss", "count", "valid_loss", "valid_count", "test_loss", "test_count")


class WideAndDeep(torch.nn.Module):
    """Logit = wide weights of the categories, summed, + perceptron(numbers, embeddings of the categories).

    Parameters:
        wide, deep: modules on the tables.
        inputs: numbers + fields * dim.
    """

    def __init__(self, wide: torch.nn.Module, deep: torch.nn.Module, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.wide, self.deep = wide, deep
        layers: list[torch.nn.Module] = []
        for width in (inputs, hidden):
            layers += [torch.nn.Linear(width, hidden), torch.nn.ReLU(), torch.nn.Dropout(dropout)]
        self.perceptron = torch.nn.Sequential(*layers, torch.nn.Linear(hidden, 1))

    def forward(self, numbers: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
        """Logits [B] of numbers [B, numbers] and categories [B, fields]."""
        deep = self.deep(categories).flatten(1)
        wide = self.wide(categories).sum(dim=(1, 2))
        return wide + self.perceptron(torch.cat([numbers, deep], 1)).squeeze(1)


class ClickBatches:
    """A rank's training examples, in an order shuffled for each epoch."""

    def __init__(self, examples: Clicks, batches: int, seed: tuple[int, ...]) -> None:
        self.examples, self.batches, self.seed = examples, batches, seed
        self.epoch, self.first = 0, 0

    def begin(self, epoch: int, first: int) -> None:
        """What is iterated over next: an epoch from its batch ``first`` on."""
        self.epoch, self.first = epoch, first

    def __iter__(self) -> Iterator[Batch]:
        order = even_batches(len(self.examples), self.batches, np.random.default_rng([*self.seed, self.epoch]))
        for places in islice(order, self.first, None):
            yield tensors(self.examples.take(places))


def tensors(examples: Clicks) -> Batch:
    """Labels, numbers and categories as the model takes them."""
    label, numbers, categories = map(torch.from_numpy, (examples.label, examples.numbers, examples.categories))
    return label, numbers, categories


class ClickThroughRate:
    """One rank's part of the training. Construct and use it on every rank alike; one thread.

    Parameters:
        pm: the parameter manager.
        data: where the examples come from.
        options: hyper-parameters, the same on every rank.
        checkpoints: when and where they are made, and whether to go on from one.
    """

    def __init__(
        self, pm: Any, data: ClickData, options: CtrOptions, checkpoints: CheckpointOptions | None = None
    ) -> None:
        self.pm, self.options = pm, options
        torch.manual_seed(options.seed)
        self.worker = pm.worker()
        self.examples = data.of_rank(pm.rank, pm.size)
        wide, deep = self._embedding("wide", data.keys, 1, 0.0), self._embedding("deep", data.keys, options.dim, 0.01)
        inputs = data.numbers + data.fields * options.dim
        self.model = WideAndDeep(wide, deep, inputs, options.hidden, options.dropout)
        is_saved = checkpoints is not None and checkpoints.are_used
        self.dense = DenseLayers(self.model, pm, self.worker, options.dense, options.lr, is_saved=is_saved)
        tables = [wide.table, deep.table, *self.dense.tables]
        self.progress = Progress(pm, tables, checkpoints, in_step=self.dense.is_in_step, before_save=self.dense.save)
        if self.progress.generation:
            self.dense.restore()
        # Each rank drops other values out, and does so anew after a restart.
        torch.manual_seed((options.seed + self.progress.generation) * pm.size + pm.rank)
        batches = batches_per_epoch(data.rows["train"], pm.size, options.batch)
        keys = {wide.table: lambda batch: batch[2], deep.table: lambda batch: batch[2]}
        self.batches = ClickBatches(self.examples["train"], batches, (options.seed, pm.rank))
        self.loader = intentpm.torch.IntentLoader(self.worker, self.batches, keys, options.look_ahead)
        self.meter = EpochMeter(pm, self.worker, ("wide", "deep", *self.dense.names), SUMS)
        self.histograms = RankTable(pm, self.worker, 3 * 2 * BINS, "score_histograms")

    def _embedding(self, name: str, keys: int, dim: int, deviation: float) -> Any:
        options = self.options
        rows = NormalRows(dim, dim, deviation, options.seed) if deviation else 0.0
        adagrad = intentpm.optim.Adagrad(
            lr=options.embedding_lr, initial_accumulator=RARE / options.batch**2, **l2(options.reg)
        )
        table = self.pm.create_table(name, keys, dim, init=rows, optimizer=adagrad)
        return intentpm.torch.Embedding(table, self.worker)

    def run(self) -> Iterator[CtrRow]:
        """Trains; yields one row per epoch, the same on every rank, beginning with the untrained model.

        Raises DivergedError when the loss is no longer finite, and whatever the PM raises.
        """
        return self.progress.run(CtrRow, self.options.epochs, self._epoch)

    def _epoch(self, epoch: int) -> CtrRow:
        return self._measured(epoch, *(self._train(epoch) if epoch else (0.0, 0)))

    def _train(self, epoch: int) -> tuple[float, int]:
        """One pass over this rank's examples; returns the sum of their log losses, and of how many."""
        self.model.train()
        rest = self.progress.rest_of(np.arange(self.batches.batches), 1)
        self.batches.begin(epoch, self.batches.batches - len(rest))
        with self.meter.training_pass():
            batches = self._scheduled(epoch, self.progress.follow(self.loader))
            return self.dense.train(batches, self._loss, (self.model.deep, self.model.wide))

    def _scheduled(self, epoch: int, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Sets the learning rates for each batch."""
        for batch in batches:
            left = 1 - (epoch - 1 + self.progress.share) / self.options.epochs
            share = max(left, self.options.final_lr_share)
            self.dense.lr = share * self.options.lr
            self.model.deep.lr = self.model.wide.lr = share * self.options.embedding_lr
            yield batch

    def _loss(self, batch: Batch) -> tuple[torch.Tensor, int]:
        label, numbers, categories = batch
        return functional.binary_cross_entropy_with_logits(self.model(numbers, categories), label), len(label)

    def _measured(self, epoch: int, loss: float, count: int) -> CtrRow:
        """Evaluates, adds up over the ranks, and checks that training is still sane."""
        self.dense.read()
        valid_loss, valid = self._evaluate(self.examples["valid"])
        test_loss, test = self._evaluate(self.examples["test"])
        hidden = self.examples["test"]
        best = score_histograms(hidden.logit, hidden.label) if hidden.logit is not None else np.zeros((2, BINS))
        areas = self._areas([valid, test, best])
        sums, took = self.meter.measured(
            loss=loss, count=count,
            valid_loss=valid_loss, valid_count=len(self.examples["valid"]),
            test_loss=test_loss, test_count=len(self.examples["test"]),
        )  # fmt: skip
        row = CtrRow(
            epoch=epoch, loss=mean(sums["loss"], sums["count"]), **took,
            valid_auc=areas[0], test_auc=areas[1], reachable_auc=areas[2],
            valid_log_loss=mean(sums["valid_loss"], sums["valid_count"]),
            test_log_loss=mean(sums["test_loss"], sums["test_count"]),
        )  # fmt: skip
        advice = f"Lower --lr ({self.options.lr}) or --embedding-lr ({self.options.embedding_lr})."
        check_finite(row, sums["count"], advice)
        return row

    @torch.no_grad()
    def _evaluate(self, examples: Clicks) -> tuple[float, NDArray[np.float64]]:
        """The sum of the log losses, and the histograms of the scores."""
        self.model.eval()
        total, histograms = 0.0, np.zeros((2, BINS))
        for first in range(0, len(examples), EVALUATION_BATCH):
            label, numbers, categories = tensors(examples.take(slice(first, first + EVALUATION_BATCH)))
            scores = self.model(numbers, categories)
            total += float(functional.binary_cross_entropy_with_logits(scores, label, reduction="sum"))
            histograms += score_histograms(torch.nan_to_num(scores).numpy(), label.numpy())
        return total, histograms

    def _areas(self, histograms: list[NDArray[np.float64]]) -> list[float]:
        total = self.histograms.gather(np.concatenate(histograms).ravel()).sum(axis=0)
        return [area_under_curve(part) for part in total.reshape(-1, 2, BINS)]
