"""Word vectors: skip-gram with negative sampling, SGD with sub-sampling of frequent words, data-parallel over ranks.

Input and output vectors of the words are two tables. Each rank trains its share of the articles, in an order shuffled
for each epoch. Per batch of centre words it pulls the input rows of the words in their windows and the output rows of
the centres and of sampled negatives, trains on these copies window by window (``_wv.pyx``) and pushes what changed.
Negatives are drawn by the parameter manager in proportion to count^0.75 (``prepare_sample``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks._wv import train_batch
from intentpm.bench.tasks.checkpoints import CheckpointOptions, Progress
from intentpm.bench.tasks.corpus import Corpus, starts_of
from intentpm.bench.tasks.epochs import EpochMeter, EpochRow, check_finite, mean
from intentpm.bench.tasks.initial_rows import NormalRows
from intentpm.bench.tasks.look_ahead import look_ahead
from intentpm.bench.tasks.merged_rows import merge_rows

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Counts = NDArray[np.uint8]

TABLES = ("input", "output")
NEGATIVE_POWER = 0.75
MEASURES = ("ws353", "simlex", "topics")
ARTICLE_STREAM = 4
"""Distinguishes the seed of the partition of the articles from other uses of the job's seed."""
MAX_WINDOW = 255


@dataclass(frozen=True, slots=True)
class WvOptions:
    """Hyper-parameters. The defaults were chosen on a part of the English Wikipedia."""

    dim: int = 100
    lr: float = 0.05
    """Learning rate of the first batch; falls linearly over the epochs to ``final_lr_share`` of it."""
    final_lr_share: float = 0.001
    window: int = 5
    """Most context words on either side of a centre; how many is drawn for each centre."""
    negatives: int = 5
    """Per centre word; the pairs of its window share them."""
    subsample: float = 1e-3
    """A word with share f of the tokens is kept with probability sqrt(subsample / f) + subsample / f; 0: always."""
    epochs: int = 5
    batch: int = 1_000
    """Centre words per pull and push."""
    look_ahead: int | str = "auto"
    """Batches prepared, and signalled to the PM, before use; 0: signal nothing; "auto": as many as it needs."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WvRow(EpochRow):
    """Spearman's correlation with WordSim-353 and SimLex-999, or with having a topic in common in generated text."""

    ws353: float
    simlex: float
    topics: float


@dataclass(slots=True)
class WindowBatch:
    """Centre words used together, with the words around them: unique keys, and each token as an index among them."""

    tables: tuple[Any, Any]
    input_keys: Int64
    tokens: Int32
    """The centres and, before and after them, the words that their windows reach."""
    first: int
    """Where the first centre is among ``tokens``."""
    before: Counts
    after: Counts
    centres: Int64
    """Their keys in the output table."""
    learning_rate: float
    sample: Any = None
    """Of the negatives: prepared with the batch."""

    def accesses(self) -> tuple[tuple[Any, Int64], ...]:
        """Pairs of (table, keys)."""
        return ((self.tables[0], self.input_keys), (self.tables[1], np.unique(self.centres)))


class WordVectors:
    """One rank's part of the training. Construct and use it on every rank alike; one thread.

    Parameters:
        pm: the parameter manager.
        corpus: all articles (every rank has them all and picks its own part).
        options: hyper-parameters, the same on every rank.
        checkpoints: when and where they are made, and whether to go on from one.
    """

    def __init__(
        self, pm: Any, corpus: Corpus, options: WvOptions, checkpoints: CheckpointOptions | None = None
    ) -> None:
        self.pm, self.corpus, self.options = pm, corpus, options
        self.worker = pm.worker()
        inputs = NormalRows(options.dim, options.dim, 0.5 / options.dim, options.seed)
        self.tables = (
            pm.create_table(TABLES[0], num_keys=corpus.words, row_shape=(options.dim,), dtype="float32", init=inputs),
            pm.create_table(TABLES[1], num_keys=corpus.words, row_shape=(options.dim,), dtype="float32", init=0.0),
        )
        scheme = "preloc" if options.look_ahead else "naive"
        weights = corpus.counts.astype(np.float64) ** NEGATIVE_POWER
        self.progress = Progress(pm, self.tables, checkpoints)
        self.sampling = pm.create_sampling(self.tables[1], weights, scheme=scheme, seed=options.seed)
        self.meter = EpochMeter(pm, self.worker, TABLES, ("loss", "pairs", *MEASURES))
        self.articles = articles_of_rank(corpus, pm.rank, pm.size, options.seed)
        self.keep = keep_probabilities(corpus.counts, options.subsample)

    def run(self) -> Iterator[WvRow]:
        """Trains; yields one row per epoch, the same on every rank, beginning with the untrained model.

        Raises DivergedError when the loss is no longer finite, and whatever the PM raises.
        """
        return self.progress.run(WvRow, self.options.epochs, self._epoch)

    def _epoch(self, epoch: int) -> WvRow:
        return self._measured(epoch, *(self._train(epoch) if epoch else (0.0, 0)))

    def _train(self, epoch: int) -> tuple[float, int]:
        """One pass over this rank's articles; returns the sum of the losses, and of how many pairs."""
        loss, pairs = 0.0, 0
        with self.meter.training_pass():
            batches = self._batches(epoch, np.random.default_rng([self.options.seed, epoch, self.pm.rank]))
            ahead = look_ahead(self.worker, batches, self.options.look_ahead, self._prepare)
            for batch in self.progress.follow(ahead):
                loss += self._train_batch(batch)
                pairs += int(batch.before.sum()) + int(batch.after.sum())
        return loss, pairs

    def _batches(self, epoch: int, random: np.random.Generator) -> Iterator[WindowBatch]:
        tokens, starts = self._subsampled(random.permutation(self.articles), random)
        before, after = window_sizes(starts, self.options.window, random)
        size, window = self.options.batch, self.options.window
        for first in self.progress.rest_of(np.arange(0, len(tokens), size), 1).tolist():
            last = min(first + size, len(tokens))
            begin = max(0, first - window)
            keys, index = np.unique(tokens[begin : last + window], return_inverse=True)
            yield WindowBatch(
                self.tables, keys.astype(np.int64), index.astype(np.int32), first - begin, before[first:last],
                after[first:last], tokens[first:last].astype(np.int64), self.learning_rate(epoch, first / len(tokens)),
            )  # fmt: skip

    def learning_rate(self, epoch: int, done: float) -> float:
        """The learning rate when a share ``done`` of ``epoch`` (from 1) has been trained."""
        progress = (epoch - 1 + done) / self.options.epochs
        return self.options.lr * max(1 - progress, self.options.final_lr_share)

    def _subsampled(self, articles: Int64, random: np.random.Generator) -> tuple[Int32, Int64]:
        """The tokens of ``articles`` that are kept this time, and where each article starts among them."""
        starts, parts = self.corpus.starts, []
        for article in articles:
            tokens = self.corpus.tokens[starts[article] : starts[article + 1]]
            parts.append(tokens[random.random(len(tokens)) < self.keep[tokens]])
        return np.concatenate([np.empty(0, np.int32), *parts]), starts_of([len(part) for part in parts])

    def _prepare(self, batch: WindowBatch, clock: int) -> None:
        count = self.options.negatives * len(batch.centres)
        batch.sample = self.worker.prepare_sample(self.sampling, count, clock)

    def _train_batch(self, batch: WindowBatch) -> float:
        input_pull, centre_pull = (self.worker.pull_async(*access) for access in batch.accesses())
        negatives = self.worker.pull_sample(batch.sample)
        inputs = input_pull.result()
        centre_keys, centre_index = np.unique(batch.centres, return_inverse=True)
        keys, outputs, (centre_row, negative_row) = merge_rows([(centre_keys, centre_pull.result()), negatives])
        output_index = np.empty((len(batch.centres), 1 + self.options.negatives), np.int32)
        output_index[:, 0] = centre_row[centre_index]
        output_index[:, 1:] = negative_row.reshape(len(batch.centres), -1)
        input_deltas, output_deltas = np.empty_like(inputs), np.empty_like(outputs)
        loss = train_batch(
            inputs, outputs, batch.tokens, batch.first, batch.before, batch.after, output_index,
            input_deltas, output_deltas, batch.learning_rate,
        )  # fmt: skip
        pushes = [
            self.worker.push_async(self.tables[0], batch.input_keys, input_deltas),
            self.worker.push_async(self.tables[1], keys, output_deltas),
        ]
        for push in pushes:
            push.wait()
        return loss

    def _measured(self, epoch: int, loss: float, pairs: int) -> WvRow:
        """Evaluates, adds up over the ranks, and checks that training is still sane."""
        nothing = dict.fromkeys(MEASURES, 0.0)
        found = self._correlations() if self.pm.rank == 0 else nothing
        sums, took = self.meter.measured(loss=loss, pairs=pairs, **found)
        quality = {name: sums[name] for name in MEASURES}
        row = WvRow(epoch=epoch, loss=mean(sums["loss"], sums["pairs"]), **took | quality)
        check_finite(row, sums["pairs"], f"Lower --lr ({self.options.lr}).")
        return row

    def _correlations(self) -> dict[str, float]:
        sets = self.corpus.similarity
        found = dict.fromkeys(MEASURES, float("nan"))
        for name, pairs in sets.items():
            keys = np.unique(np.concatenate([pairs.first, pairs.second]))
            found[name] = pairs.correlation(self.worker.pull(self.tables[0], keys), keys)
        return found


def articles_of_rank(corpus: Corpus, rank: int, ranks: int, seed: int) -> Int64:
    """The articles that ``rank`` trains: they are dealt by falling length, so that each rank has as many tokens."""
    lengths = np.diff(corpus.starts)
    shuffled = np.random.default_rng([seed, ARTICLE_STREAM]).permutation(len(lengths))
    order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    # There and back again (0 1 2 2 1 0 ..): the first of each round is not always the longest.
    turn = np.arange(len(order)) % (2 * ranks)
    return order[np.minimum(turn, 2 * ranks - 1 - turn) == rank]


def keep_probabilities(counts: Int64, subsample: float) -> NDArray[np.float32]:
    """By word: with which probability a token of it is kept, float32 (words,)."""
    if not subsample:
        return np.ones(len(counts), np.float32)
    share = subsample * counts.sum() / np.maximum(counts, 1)
    return np.minimum(1, np.sqrt(share) + share).astype(np.float32)


def window_sizes(starts: Int64, window: int, random: np.random.Generator) -> tuple[Counts, Counts]:
    """How many words before and after each token are its context: up to a size drawn for it, within its article."""
    lengths = np.diff(starts)
    place = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    size = random.integers(1, window, size=len(place), endpoint=True)
    left = np.minimum(size, place)
    right = np.minimum(size, np.repeat(lengths, lengths) - 1 - place)
    return left.astype(np.uint8), right.astype(np.uint8)
