"""A click model on the ranks of torchrun, its rows in a table, then under DistributedDataParallel: seconds per epoch.

    torchrun --nproc-per-node 2 -m intentpm.bench.scenarios.against_ddp

Meant for hosts with a link each. Both train the same model on the same batches, which lie in memory, with Adagrad for
the rows; the dense layers are under DistributedDataParallel either way. DDP sends every rank's sparse gradient to every
other rank; of the table only those rows travel that several ranks use at the same time.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import intentpm.optim
import intentpm.torch
from intentpm.bench.keys import draw_keys

NUM_KEYS, DIM, FIELDS, BATCH = 1_000_000, 64, 26, 2048
STEPS, EPOCHS = 20, 3
"""Of the first epoch nothing is reported."""
LR = 0.02


class ClickModel(torch.nn.Module):
    def __init__(self, features: torch.nn.Module) -> None:
        super().__init__()
        self.features = features
        self.network = torch.nn.Sequential(torch.nn.Linear(DIM, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))

    def forward(self, keys: torch.Tensor) -> Any:
        return self.network(self.features(keys)).squeeze(1)


def batches_of(rank: int) -> list[Any]:
    """(keys int64 [BATCH, FIELDS], label float32 [BATCH]), STEPS of them; labels depend on the keys."""
    random = np.random.default_rng(rank)
    batches = []
    for _ in range(STEPS):
        keys = draw_keys(random, "zipf", NUM_KEYS, BATCH * FIELDS).reshape(BATCH, FIELDS)
        label = (keys % 7).sum(1) > 3 * FIELDS
        batches.append((torch.from_numpy(keys), torch.from_numpy(label).float()))
    return batches


def train(model: torch.nn.Module, batches: Any, optimizers: list[Any], settle: Callable[[], object]) -> list[float]:
    """Seconds of each epoch, begun and ended by all ranks together."""
    parallel, seconds = DistributedDataParallel(model), []
    for _ in range(EPOCHS):
        dist.barrier()
        begin = time.perf_counter()
        for keys, label in batches:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(parallel(keys), label)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        settle()
        dist.barrier()
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def dense_optimizer(model: ClickModel) -> Any:
    return torch.optim.Adam(model.network.parameters(), lr=0.001)


def train_ddp(batches: list[Any], rows: torch.Tensor) -> list[float]:
    model = ClickModel(torch.nn.EmbeddingBag.from_pretrained(rows, freeze=False, sparse=True))
    with torch.sparse.check_sparse_tensor_invariants(False):
        rows_optimizer = torch.optim.Adagrad(model.features.parameters(), lr=LR)
        return train(model, batches, [dense_optimizer(model), rows_optimizer], lambda: None)


def train_table(batches: list[Any], rows: torch.Tensor) -> tuple[list[float], dict[str, Any]]:
    with intentpm.init() as pm:
        worker, adagrad = pm.worker(), intentpm.optim.Adagrad(lr=LR)
        bags = intentpm.torch.EmbeddingBag.from_pretrained(rows, worker, "features", adagrad, freeze=False)
        model = ClickModel(bags)
        loader = intentpm.torch.IntentLoader(worker, batches, {bags.table: lambda batch: batch[0]})
        seconds = train(model, loader, [dense_optimizer(model)], bags.settle)
        counts = pm.stats()["tables"]["features"]
        accesses = counts["local"] + counts["replica"] + counts["remote"]
        return seconds, {"remote": round(counts["remote"] / accesses, 4), "coverage": pm.stats()["coverage"]}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    batches, rows = batches_of(dist.get_rank()), 0.01 * torch.randn(NUM_KEYS, DIM)
    ours, facts = train_table(batches, rows)
    theirs = train_ddp(batches, rows)
    if dist.get_rank() == 0:
        ratio = round(min(theirs) / min(ours), 2)
        print(
            json.dumps({"ranks": dist.get_world_size(), "intentpm_s": ours, "ddp_s": theirs, "ratio": ratio, **facts})
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
