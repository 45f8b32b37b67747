"""A click model on the ranks of torchrun, its rows in a table, and under DistributedDataParallel: seconds per epoch.

    torchrun --nproc-per-node 2 -m intentpm.bench.scenarios.against_ddp --optimizer sgd --zipf 1.1

Meant for hosts with a link each. Both train the same model on the same batches, which lie in memory; the dense layers
are under DistributedDataParallel either way. DDP sends every rank's sparse gradient to every other rank; of the table
only those rows travel that several ranks use, with the optimizer's state, which DDP keeps on each rank.

A batch has 26 fields, as Criteo's logs, with rows of 64 float32. Rows are stepped by SGD, as in the reference program
of DLRM, or by Adagrad.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import intentpm.optim
import intentpm.torch
from intentpm.bench.keys import draw_keys

NUM_KEYS, DIM, FIELDS = 1_000_000, 64, 26
LR = 0.02
ROWS = {"adagrad": (intentpm.optim.Adagrad, torch.optim.Adagrad), "sgd": (intentpm.optim.SGD, torch.optim.SGD)}
"""What steps the rows, here and there."""


class ClickModel(torch.nn.Module):
    def __init__(self, features: torch.nn.Module) -> None:
        super().__init__()
        self.features = features
        self.network = torch.nn.Sequential(torch.nn.Linear(DIM, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))

    def forward(self, keys: torch.Tensor) -> Any:
        return self.network(self.features(keys)).squeeze(1)


def batches_of(rank: int, options: argparse.Namespace) -> list[Any]:
    """(keys int64 [batch, FIELDS], label float32 [batch]), so many as there are steps; labels depend on the keys."""
    random = np.random.default_rng(rank)
    batches = []
    for _ in range(options.steps):
        keys = draw_keys(random, "zipf", NUM_KEYS, options.batch * FIELDS, options.zipf).reshape(-1, FIELDS)
        label = (keys % 7).sum(1) > 3 * FIELDS
        batches.append((torch.from_numpy(keys), torch.from_numpy(label).float()))
    return batches


def sent_bytes() -> int:
    """By this host so far, but for what it sent to itself; twice what goes through a bridge or bond."""
    counts = Path("/sys/class/net").glob("*/statistics/tx_bytes")
    return sum(int(count.read_text()) for count in counts if count.parts[-3] != "lo")


class Side:
    """One of the two that are compared: a model, what trains it, and what its epochs took."""

    def __init__(
        self, model: torch.nn.Module, batches: Any, optimizers: list[Any], settle: Callable[[], object]
    ) -> None:
        self.model = DistributedDataParallel(model)
        self.batches, self.optimizers, self.settle = batches, optimizers, settle
        self.seconds: list[float] = []
        self.megabytes: list[Any] = []
        self.losses: list[float] = []

    def train(self) -> None:
        """An epoch, begun and ended by all ranks together."""
        dist.barrier()
        begin, begin_bytes, total = time.perf_counter(), sent_bytes(), torch.zeros(())
        for keys, label in self.batches:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(self.model(keys), label)
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            total += loss.detach()
        self.settle()
        dist.barrier()
        self.seconds.append(round(time.perf_counter() - begin, 3))
        everywhere = [(0.0, 0.0)] * dist.get_world_size()
        sent = round((sent_bytes() - begin_bytes) / 1e6, 1)
        dist.all_gather_object(everywhere, (sent, float(total) / len(self.batches)))
        self.megabytes.append([sent for sent, _ in everywhere])
        self.losses.append(round(statistics.mean(loss for _, loss in everywhere), 4))

    def measured(self) -> dict[str, Any]:
        """Of each epoch but the first: seconds, MB that each host sent. Of all of them: log loss per sample."""
        return {"s": self.seconds[1:], "mb": self.megabytes[1:], "loss": self.losses}


def dense_optimizer(model: ClickModel) -> Any:
    return torch.optim.Adam(model.network.parameters(), lr=0.001)


def ddp_side(batches: list[Any], rows: torch.Tensor, rule: str) -> Side:
    model = ClickModel(torch.nn.EmbeddingBag.from_pretrained(rows, freeze=False, sparse=True))
    rows_optimizer = ROWS[rule][1](model.features.parameters(), lr=LR)
    return Side(model, batches, [dense_optimizer(model), rows_optimizer], lambda: None)


def table_side(batches: list[Any], rows: torch.Tensor, rule: str, worker: Any) -> Side:
    bags = intentpm.torch.EmbeddingBag.from_pretrained(rows, worker, "features", ROWS[rule][0](lr=LR), freeze=False)
    model = ClickModel(bags)
    loader = intentpm.torch.IntentLoader(worker, batches, {bags.table: lambda batch: batch[0]})
    return Side(model, loader, [dense_optimizer(model)], bags.settle)


def accesses(pm: Any) -> dict[str, Any]:
    counts = pm.stats()["tables"]["features"]
    every = counts["local"] + counts["replica"] + counts["remote"]
    return {"remote": round(counts["remote"] / every, 4), "coverage": pm.stats()["coverage"]}


def in_turn(options: argparse.Namespace) -> dict[str, Any]:
    """What both took, an epoch of the one after an epoch of the other: what else the machine does meets both."""
    batches, rows = batches_of(dist.get_rank(), options), 0.01 * torch.randn(NUM_KEYS, DIM)
    with intentpm.init() as pm, torch.sparse.check_sparse_tensor_invariants(False):
        torch.manual_seed(1)
        ours = table_side(batches, rows, options.optimizer, pm.worker())
        torch.manual_seed(1)
        theirs = ddp_side(batches, rows, options.optimizer)
        for _ in range(options.epochs):
            ours.train()
            theirs.train()
        ratio = round(statistics.median(theirs.seconds[1:]) / statistics.median(ours.seconds[1:]), 2)
        return {"ratio": ratio, "intentpm": ours.measured() | accesses(pm), "ddp": theirs.measured()}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A click model: its rows in a table, and under DistributedDataParallel."
    )
    parser.add_argument("--optimizer", choices=sorted(ROWS), default="adagrad", help="of the rows [%(default)s]")
    parser.add_argument("--zipf", type=float, default=1.1, help="exponent of the keys' distribution [%(default)s]")
    parser.add_argument("--batch", type=int, default=2048, help="samples per rank and step [%(default)s]")
    parser.add_argument("--steps", type=int, default=20, help="per epoch [%(default)s]")
    parser.add_argument("--epochs", type=int, default=6, help="of which nothing counts of the first [%(default)s]")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    measured = in_turn(options)
    if dist.get_rank() == 0:
        print(json.dumps({**vars(options), "ranks": dist.get_world_size(), **measured}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
