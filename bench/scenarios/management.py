"""One workload under one way of managing keys: what ``intentpm bench management`` compares."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks.look_ahead import look_ahead
from intentpm.bench.tasks.rank_table import RankTable, settle

ZIPF_EXPONENT = 1.1
COUNTED = ("bytes_sent", "messages_sent", "relocations_in", "replicas_set_up", "rounds")


class ZipfBatch:
    """Keys of one step, unique."""

    def __init__(self, table: Any, keys: NDArray[np.int64]) -> None:
        self.table, self.keys = table, keys

    def accesses(self) -> tuple[tuple[Any, NDArray[np.int64]], ...]:
        """Pairs of (table, keys)."""
        return ((self.table, self.keys),)


def run_rank(pm: Any, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Runs ``arguments["workload"]``; returns the seconds of its training and what this rank moved and accessed.

    ``epochs``: pairs of seconds and quality (loss, RMSE, MRR), the latter the same on every rank.
    """
    epochs = WORKLOADS[arguments["workload"]](pm, arguments)
    seconds = sum(epoch[0] for epoch in epochs)
    stats = pm.stats()
    kinds = {kind: sum(table[kind] for table in stats["tables"].values()) for kind in ("local", "replica", "remote")}
    return {"rank": pm.rank, "seconds": seconds, "epochs": epochs, **kinds, **{name: stats[name] for name in COUNTED}}


Epochs = Sequence[tuple[float, float]]


def _zipf(pm: Any, arguments: dict[str, Any]) -> Epochs:
    """Every rank pulls rows of keys drawn from one zipf distribution, and takes a step of the descent that brings their
    numbers from 1 to 0. Quality, per epoch: the loss, half the mean square, of the numbers as they are pulled. Copies
    that lack steps of other ranks make it worse, as any loss that is told while training.
    """
    table = pm.create_table("rows", arguments["num_keys"], (arguments["dim"],), init=1.0)
    worker = pm.worker()
    sums = RankTable(pm, worker, 2)
    streams = arguments.get("streams", 1)  # of steps: a rank alone may take those that so many ranks would
    batches = [zipf_batches(rank, table, arguments) for rank in range(pm.rank, pm.rank + streams)]
    in_turn = chain.from_iterable(zip(*batches, strict=True))
    epochs = arguments.get("zipf_epochs", 1)
    steps = streams * arguments["steps"] // epochs
    results = []
    for _ in range(epochs):
        squares = np.zeros(2)
        pm.barrier()
        start = time.perf_counter()
        for batch in look_ahead(worker, islice(in_turn, steps), arguments["look_ahead"]):
            rows = worker.pull(table, batch.keys)
            squares += np.vdot(rows, rows), rows.size
            worker.push(table, batch.keys, rows * np.float32(-0.01))
        settle(pm, worker)
        seconds = time.perf_counter() - start
        square, numbers = sums.gather(squares).sum(0)
        results.append((seconds, float(square / numbers / 2)))
    return results


def zipf_batches(rank: int, table: Any, arguments: Mapping[str, Any]) -> Iterator[ZipfBatch]:
    """A rank's steps. ``arguments``: num_keys, batch (keys drawn per step), steps, seed."""
    ranks = np.arange(1, arguments["num_keys"] + 1, dtype=np.float64)
    cumulated = np.cumsum(ranks**-ZIPF_EXPONENT)
    names = np.random.default_rng(arguments["seed"]).permutation(arguments["num_keys"])
    random = np.random.default_rng([arguments["seed"], rank])
    for _ in range(arguments["steps"]):
        drawn = np.searchsorted(cumulated, random.random(arguments["batch"]) * cumulated[-1])
        yield ZipfBatch(table, np.unique(names[drawn]))


def _mf(pm: Any, arguments: dict[str, Any]) -> Epochs:
    from intentpm.bench.tasks.mf import MatrixFactorisation, MfOptions
    from intentpm.bench.tasks.ratings import GeneratorSpec, generate_ratings

    options = MfOptions(epochs=arguments["epochs"], look_ahead=arguments["look_ahead"], **arguments.get("mf", {}))
    ratings = generate_ratings(GeneratorSpec.parse(arguments["ratings"]), arguments["seed"])
    return [(row.seconds, row.test_rmse) for row in MatrixFactorisation(pm, ratings, options).run()][1:]


def _kge(pm: Any, arguments: dict[str, Any]) -> Epochs:
    from intentpm.bench.tasks.kge import KgeOptions, KnowledgeGraphEmbedding
    from intentpm.bench.tasks.knowledge_graph import GraphSpec, generate_knowledge_graph, load_knowledge_graph

    options = KgeOptions(epochs=arguments["epochs"], look_ahead=arguments["look_ahead"], **arguments.get("kge", {}))
    if arguments.get("data"):
        graph = load_knowledge_graph(Path(arguments["data"]))
    else:
        graph = generate_knowledge_graph(GraphSpec.parse(arguments["graph"]), arguments["seed"])
    return [(row.seconds, row.mrr) for row in KnowledgeGraphEmbedding(pm, graph, options).run()][1:]


WORKLOADS: dict[str, Callable[[Any, dict[str, Any]], Epochs]] = {"zipf": _zipf, "mf": _mf, "kge": _kge}
