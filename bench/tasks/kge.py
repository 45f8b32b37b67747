"""Knowledge graph embeddings with AdaGrad and negative sampling, data-parallel over ranks.

Entities and relations are two tables; a row holds an embedding and its AdaGrad sums, so that both are updated by the
same push. Each rank trains its share of the triples, in an order shuffled for each epoch. Per batch it pulls the rows
of the batch's entities and relations and those of the negatives that all its triples share, makes a step on these
copies (``kge_models.py``) and pushes what changed. The parameter manager chooses the negatives (``prepare_sample``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks.checkpoints import CheckpointOptions, Progress
from intentpm.bench.tasks.epochs import EpochMeter, EpochRow, check_finite, mean
from intentpm.bench.tasks.initial_rows import NormalRows
from intentpm.bench.tasks.kge_models import Step, model_named, queries, relation_length, train_batch
from intentpm.bench.tasks.kge_ranking import HITS_AT, KnownAnswers, RankingTotals, filtered_ranks
from intentpm.bench.tasks.knowledge_graph import KnowledgeGraph, Triples
from intentpm.bench.tasks.look_ahead import look_ahead
from intentpm.bench.tasks.merged_rows import merge_rows

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

TABLES = ("entities", "relations")
HITS = tuple(f"hits_{count}" for count in HITS_AT)
SAMPLING_STREAM = 3
"""Distinguishes the seed of the order of the triples from other uses of the job's seed."""
ANGLE_DEVIATION = 1.8
"""Of the first angles of RotatE: about that of angles that are equally likely."""
EVALUATION_TRIPLES = 8_192
"""Ranked at a time. Each time all entities are pulled once, so there should be many."""
EVALUATION_CHUNK = 8_192
"""Entities pulled at once."""
EVALUATION_QUERIES = 512
"""Scored at once: with the entities, 16 MB of scores."""


@dataclass(frozen=True, slots=True)
class KgeOptions:
    """Hyper-parameters. The defaults suit FB15k-237, whose validation triples they do best on, and WN18RR."""

    model: str = "complex"
    """"complex", "distmult", "rotate" or "rescal"."""
    dim: int = 400
    """Length of an entity's embedding; of complex and rotate half as many complex numbers."""
    lr: float = 0.1
    """Learning rate of AdaGrad, which divides it by the root of the sum of the squared gradients."""
    reg: float = 0.1
    """Regularisation of the embeddings of a triple, each time it is used: of the cubes of their (complex) numbers."""
    negatives: int = 1_024
    """Entities sampled per batch: its heads and its tails are told from the same."""
    loss: str = "softmax"
    """"softmax" or "logistic", as ``kge_models.Step`` explains."""
    sampling: str = "preloc"
    """Scheme that negatives are sampled by: naive, preloc, pool or local."""
    epochs: int = 18
    batch: int = 512
    """Triples per pull and push."""
    look_ahead: int | str = "auto"
    """Batches prepared, and signalled to the PM, before use; 0: signal nothing."""
    evaluate: str = "valid"
    """Split that is ranked."""
    evaluate_triples: int = 1_000
    """How many of its triples, from the first on; 0: all."""
    evaluate_every: int = 1
    """Epochs from one ranking to the next; the untrained and the last model are ranked in any case."""
    initial_deviation: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KgeRow(EpochRow):
    """Filtered mean reciprocal rank, and the shares of ranks up to 1, 3 and 10; means of heads and tails.

    nan after epochs that were not ranked.
    """

    mrr: float
    hits_1: float
    hits_3: float
    hits_10: float


@dataclass(slots=True)
class TripleBatch:
    """Triples used together, with the keys they need: unique keys, and each triple as indices among them."""

    tables: tuple[Any, Any]
    entity_keys: Int64
    relation_keys: Int64
    triples: NDArray[np.int32]
    """int32 (T, 3)."""
    sample: Any = None
    """Of its negatives: prepared with the batch."""

    def accesses(self) -> tuple[tuple[Any, Int64], ...]:
        """Pairs of (table, keys)."""
        return ((self.tables[0], self.entity_keys), (self.tables[1], self.relation_keys))


class KnowledgeGraphEmbedding:
    """One rank's part of the training. Construct and use it on every rank alike; one thread.

    Parameters:
        pm: the parameter manager.
        graph: all triples (every rank has them all and picks its own part).
        options: hyper-parameters, the same on every rank.
        checkpoints: when and where they are made, and whether to go on from one.
    """

    def __init__(
        self, pm: Any, graph: KnowledgeGraph, options: KgeOptions, checkpoints: CheckpointOptions | None = None
    ) -> None:
        self.pm, self.options = pm, options
        self.worker = pm.worker()
        self.tables = (self._create_table(0, graph.entities), self._create_table(1, graph.relations))
        self.entities = graph.entities
        self.step = Step(model_named(options.model), options.loss, options.lr, options.reg)
        self.progress = Progress(pm, self.tables, checkpoints)
        self.sampling = pm.create_sampling(self.tables[0], scheme=self._scheme(), seed=options.seed)
        self.meter = EpochMeter(pm, self.worker, TABLES, ("loss", "triples", "queries", "reciprocal", *HITS))
        shuffled = np.random.default_rng([options.seed, SAMPLING_STREAM]).permutation(len(graph.train))
        self.train = graph.train[shuffled[pm.rank :: pm.size]]
        ranked = graph.valid if options.evaluate == "valid" else graph.test
        self.ranked = ranked[: options.evaluate_triples or None][pm.rank :: pm.size]
        self.known = KnownAnswers(graph.everything(), graph.relations)

    def run(self) -> Iterator[KgeRow]:
        """Trains; yields one row per epoch, the same on every rank, beginning with the untrained model.

        Raises DivergedError when the loss is no longer finite, and whatever the PM raises.
        """
        return self.progress.run(KgeRow, self.options.epochs, self._epoch)

    def _epoch(self, epoch: int) -> KgeRow:
        return self._measured(epoch, *(self._train(epoch) if epoch else (0.0, 0)))

    def _scheme(self) -> str:
        """Without look-ahead nothing is signalled, for negatives neither."""
        signals = self.options.sampling in ("preloc", "pool")
        return "naive" if signals and not self.options.look_ahead else self.options.sampling

    def _create_table(self, position: int, keys: int) -> Any:
        options, seed = self.options, 2 * self.options.seed + position
        length = relation_length(options.model, options.dim) if position else options.dim
        angles = position and options.model == "rotate"
        rows = NormalRows(2 * length, length, ANGLE_DEVIATION if angles else options.initial_deviation, seed)
        return self.pm.create_table(TABLES[position], keys, 2 * length, dtype="float32", init=rows)

    # -- training ------------------------------------------------------------------------------------------------------

    def _train(self, epoch: int) -> tuple[float, int]:
        """One pass over this rank's training triples; returns the sum of their losses, and how many there were."""
        loss = 0.0
        order = np.random.default_rng([self.options.seed, epoch, self.pm.rank]).permutation(len(self.train))
        order = self.progress.rest_of(order, self.options.batch)
        with self.meter.training_pass():
            batches = look_ahead(self.worker, self._batches(order), self.options.look_ahead, self._prepare)
            for batch in self.progress.follow(batches):
                loss += self._train_batch(batch)
        return loss, len(order)

    def _batches(self, order: Int64) -> Iterator[TripleBatch]:
        size = self.options.batch
        return (self._batch(self.train[order[first : first + size]]) for first in range(0, len(order), size))

    def _batch(self, triples: Triples) -> TripleBatch:
        entity_keys, entity = np.unique(triples[:, [0, 2]], return_inverse=True)
        relation_keys, relation = np.unique(triples[:, 1], return_inverse=True)
        entity = entity.reshape(-1, 2)
        indices = np.stack([entity[:, 0], relation, entity[:, 1]], axis=1).astype(np.int32)
        return TripleBatch(self.tables, entity_keys.astype(np.int64), relation_keys.astype(np.int64), indices)

    def _prepare(self, batch: TripleBatch, clock: int) -> None:
        batch.sample = self.worker.prepare_sample(self.sampling, self.options.negatives, clock)

    def _train_batch(self, batch: TripleBatch) -> float:
        entity_pull, relation_pull = (self.worker.pull_async(*access) for access in batch.accesses())
        sampled = self.worker.pull_sample(batch.sample)
        keys, rows, (entity_row, negatives) = merge_rows([(batch.entity_keys, entity_pull.result()), sampled])
        triples = batch.triples.copy()
        triples[:, [0, 2]] = entity_row[batch.triples[:, [0, 2]]]
        loss, deltas, relation_deltas = train_batch(self.step, rows, relation_pull.result(), triples, negatives)
        pushes = [
            self.worker.push_async(self.tables[0], keys, deltas),
            self.worker.push_async(self.tables[1], batch.relation_keys, relation_deltas),
        ]
        for push in pushes:
            push.wait()
        return loss

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def _measured(self, epoch: int, loss: float, triples: int) -> KgeRow:
        """Ranks, adds up over the ranks, and checks that training is still sane."""
        found = self._rank_triples() if self._is_ranked(epoch) else RankingTotals()
        sums, took = self.meter.measured(
            loss=loss, triples=triples, queries=found.queries, reciprocal=found.reciprocal,
            **dict(zip(HITS, found.hits, strict=True)),
        )  # fmt: skip
        named = {name: name for name in HITS} | {"mrr": "reciprocal"}
        quality = {name: mean(sums[total], sums["queries"]) for name, total in named.items()}
        row = KgeRow(epoch=epoch, loss=mean(sums["loss"], sums["triples"]), **took | quality)
        check_finite(row, sums["triples"], f"Lower --lr ({self.options.lr}) or raise --reg ({self.options.reg}).")
        return row

    def _is_ranked(self, epoch: int) -> bool:
        return epoch % self.options.evaluate_every == 0 or epoch == self.options.epochs

    def _rank_triples(self) -> RankingTotals:
        """This rank's share of the triples to be ranked, by tail and by head."""
        parts = range(0, len(self.ranked), EVALUATION_TRIPLES)
        ranks = [self._ranks_of(self.ranked[first : first + EVALUATION_TRIPLES]) for first in parts]
        return RankingTotals.of(np.concatenate([np.empty(0), *ranks]))

    def _ranks_of(self, triples: Triples) -> NDArray[np.float64]:
        entities = self.worker.pull(self.tables[0], triples[:, [0, 2]].ravel().astype(np.int64))
        relations = self.worker.pull(self.tables[1], triples[:, 1].astype(np.int64))
        asked, answers = self._asked(entities, relations)
        tails, heads = self.known.tails(triples), self.known.heads(triples)
        known = (np.concatenate([tails[0], heads[0] + len(triples)]), np.concatenate([tails[1], heads[1]]))
        return filtered_ranks(self.step.model.pair_scores(asked, answers), known, self._scored(asked))

    def _asked(self, entities: Float32, relations: Float32) -> tuple[Float32, Float32]:
        """The queries of triples, for their tails and then for their heads, and the embeddings of the answers.

        entities: float32 (2 T, 2 D), rows of head, tail, head, tail and so on; relations: float32 (T, 2 L).
        """
        count, dim = len(relations), self.options.dim
        places = np.arange(count, dtype=np.int32)
        asked = np.empty((2 * count, dim), np.float32)
        queries(self.options.model, entities, relations, np.stack([2 * places, places, 2 * places + 1], axis=1), asked)
        return asked, np.concatenate([entities[1::2, :dim], entities[::2, :dim]])

    def _scored(self, asked: Float32) -> Iterator[tuple[int, int, Float32]]:
        """Blocks of scores, as ``filtered_ranks`` takes them. Pulls every entity once."""
        for entity in range(0, self.entities, EVALUATION_CHUNK):
            keys = np.arange(entity, min(entity + EVALUATION_CHUNK, self.entities))
            embeddings = np.ascontiguousarray(self.worker.pull(self.tables[0], keys)[:, : self.options.dim])
            for query in range(0, len(asked), EVALUATION_QUERIES):
                yield query, entity, self.step.model.scores(asked[query : query + EVALUATION_QUERIES], embeddings)
