"""A click model on the ranks of torchrun, its rows in a table, then under DistributedDataParallel: seconds per epoch.

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
EPOCHS = 4
"""Of the first one nothing is reported."""
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


def train(model: torch.nn.Module, batches: Any, optimizers: list[Any], settle: Callable[[], object]) -> dict[str, Any]:
    """Of each epoch, begun and ended by all ranks together: seconds, and MB that each host sent."""
    parallel = DistributedDataParallel(model)
    seconds: list[float] = []
    megabytes: list[Any] = []
    for _ in range(EPOCHS):
        dist.barrier()
        begin, begin_bytes = time.perf_counter(), sent_bytes()
        for keys, label in batches:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(parallel(keys), label)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        settle()
        dist.barrier()
        seconds.append(round(time.perf_counter() - begin, 3))
        everywhere = [0.0] * dist.get_world_size()
        dist.all_gather_object(everywhere, round((sent_bytes() - begin_bytes) / 1e6, 1))
        megabytes.append(everywhere)
    return {"s": seconds[1:], "mb": megabytes[1:]}


def dense_optimizer(model: ClickModel) -> Any:
    return torch.optim.Adam(model.network.parameters(), lr=0.001)


def train_ddp(batches: list[Any], rows: torch.Tensor, rule: str) -> dict[str, Any]:
    model = ClickModel(torch.nn.EmbeddingBag.from_pretrained(rows, freeze=False, sparse=True))
    with torch.sparse.check_sparse_tensor_invariants(False):
        rows_optimizer = ROWS[rule][1](model.features.parameters(), lr=LR)
        return train(model, batches, [dense_optimizer(model), rows_optimizer], lambda: None)


def train_table(batches: list[Any], rows: torch.Tensor, rule: str) -> dict[str, Any]:
    with intentpm.init() as pm:
        worker = pm.worker()
        bags = intentpm.torch.EmbeddingBag.from_pretrained(rows, worker, "features", ROWS[rule][0](lr=LR), freeze=False)
        model = ClickModel(bags)
        loader = intentpm.torch.IntentLoader(worker, batches, {bags.table: lambda batch: batch[0]})
        measured = train(model, loader, [dense_optimizer(model)], bags.settle)
        counts = pm.stats()["tables"]["features"]
        accesses = counts["local"] + counts["replica"] + counts["remote"]
        return measured | {"remote": round(counts["remote"] / accesses, 4), "coverage": pm.stats()["coverage"]}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A click model: its rows in a table, and under DistributedDataParallel."
    )
    parser.add_argument("--optimizer", choices=sorted(ROWS), default="adagrad", help="of the rows [%(default)s]")
    parser.add_argument("--zipf", type=float, default=1.1, help="exponent of the keys' distribution [%(default)s]")
    parser.add_argument("--batch", type=int, default=2048, help="samples per rank and step [%(default)s]")
    parser.add_argument("--steps", type=int, default=20, help="per epoch [%(default)s]")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    batches, rows = batches_of(dist.get_rank(), options), 0.01 * torch.randn(NUM_KEYS, DIM)
    ours = train_table(batches, rows, options.optimizer)
    theirs = train_ddp(batches, rows, options.optimizer)
    if dist.get_rank() == 0:
        ratio = round(statistics.median(theirs["s"]) / statistics.median(ours["s"]), 2)
        print(
            json.dumps(
                {**vars(options), "ranks": dist.get_world_size(), "ratio": ratio, "intentpm": ours, "ddp": theirs}
            )
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
