"""Wide & Deep as it is written for AdaPM's PyTorch bindings; another program's view of ``intentpm.adapm``.

One key space: the layers of the deep part as a few long values, which every batch pulls and pushes and all workers
intend for ever, then the rows of both embeddings. The program is its own optimizer: a value is the weights and, behind
them, AdaGrad's sums of squares, and what is pushed is a step for both. Clicks are drawn from a hidden model.

    python bench/adapm_wide_deep.py --nodes 2

starts a scheduler and two processes of one worker thread, and prints a line of JSON. For AdaPM itself, change the
import to ``import adapm``.
"""

import argparse
import json
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as multiprocessing

import intentpm.adapm as adapm

Options = argparse.Namespace
Batch = tuple[torch.Tensor, ...]
"""ids [n, 26], dense features [n, 13], clicks [n]"""

DENSE_FEATURES, COLUMNS, HIDDEN = 13, 26, 1024
TEST_SAMPLES = 2048


class Layers:
    """The deep part's layers and the wide part's bias: a key each, from 0 on."""

    def __init__(self, kv: adapm.Worker, options: Options) -> None:
        width = DENSE_FEATURES + COLUMNS * options.dim
        torch.manual_seed(options.seed)
        layers = [torch.nn.Linear(width, HIDDEN), torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.Linear(HIDDEN, 1)]
        weights = [parameter.detach() for layer in layers for parameter in layer.parameters()] + [torch.zeros(1)]
        self.kv, self.options = kv, options
        self.keys = [torch.tensor([key]) for key in range(len(weights))]
        self.values = [torch.stack([weight, torch.zeros_like(weight)]) for weight in weights]
        kv.intent(torch.arange(len(weights)), 0, sys.maxsize)

    def set_first_values(self) -> None:
        for key, value in zip(self.keys, self.values, strict=True):
            self.kv.set(key, value)

    def pull(self) -> list[torch.Tensor]:
        weights = []
        for key, value in zip(self.keys, self.values, strict=True):
            self.kv.pull(key, value)
            weights.append(value[0].clone().requires_grad_())
        return weights

    def push(self, weights: list[torch.Tensor]) -> None:
        for key, value, weight in zip(self.keys, self.values, weights, strict=True):
            self.kv.push(key, step(weight.grad, value[1], self.options.lr), True)


class Embedding:
    """Rows of ``dim`` floats: a key each, from ``first_key`` on."""

    def __init__(self, kv: adapm.Worker, first_key: int, num_rows: int, dim: int, options: Options) -> None:
        self.kv, self.first_key, self.num_rows, self.dim, self.options = kv, first_key, num_rows, dim, options

    def set_first_values(self) -> None:
        generator = torch.Generator().manual_seed(self.options.seed)
        for ids in torch.arange(self.num_rows).split(2**18):
            values = torch.zeros(len(ids), 2, self.dim)
            values[:, 0].uniform_(-0.05, 0.05, generator=generator)
            self.kv.set(ids + self.first_key, values, True)
        self.kv.waitall()

    def intend(self, ids: torch.Tensor, clock: int) -> None:
        self.kv.intent(ids.flatten() + self.first_key, clock)

    def pull(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows that require a gradient, and their sums of squares: [*ids.shape, dim] each."""
        values = torch.empty(*ids.shape, 2, self.dim)
        self.kv.pull(ids.flatten() + self.first_key, values)
        return values[..., 0, :].clone().requires_grad_(), values[..., 1, :]

    def push(self, ids: torch.Tensor, rows: torch.Tensor, sums: torch.Tensor) -> None:
        self.kv.push(ids.flatten() + self.first_key, step(rows.grad, sums, self.options.lr, dim=-2), True)


def step(gradient: torch.Tensor, sums: torch.Tensor, lr: float, dim: int = 0) -> torch.Tensor:
    """What AdaGrad adds to weights and to their sums of squares."""
    squares = gradient.square()
    return torch.stack([gradient / ((sums + squares).sqrt_() + 1e-10) * -lr, squares], dim=dim)


class Model:
    def __init__(self, kv: adapm.Worker, options: Options) -> None:
        num_rows = COLUMNS * options.ids
        self.layers = Layers(kv, options)
        self.wide = Embedding(kv, 7, num_rows, 1, options)
        self.deep = Embedding(kv, 7 + num_rows, num_rows, options.dim, options)

    def set_first_values(self) -> None:
        for part in self.layers, self.wide, self.deep:
            part.set_first_values()

    def forward(self, batch: Batch, is_training: bool) -> tuple[torch.Tensor, Any]:
        ids, dense, _ = batch
        weights = self.layers.pull()
        wide, wide_sums = self.wide.pull(ids)
        deep, deep_sums = self.deep.pull(ids)
        hidden = torch.cat([dense, deep.flatten(1)], dim=1)
        for layer in 0, 2:
            hidden = torch.relu(torch.nn.functional.linear(hidden, weights[layer], weights[layer + 1]))
            hidden = torch.nn.functional.dropout(hidden, 0.5, is_training)
        logits = torch.nn.functional.linear(hidden, weights[4], weights[5]).squeeze(1)
        return logits + wide.sum((1, 2)) + weights[6], [weights, (wide, wide_sums), (deep, deep_sums)]

    def train(self, batch: Batch) -> float:
        logits, (weights, wide, deep) = self.forward(batch, True)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch[2])
        loss.backward()
        self.layers.push(weights)
        self.wide.push(batch[0], *wide)
        self.deep.push(batch[0], *deep)
        return loss.item()

    def log_loss(self, batches: list[Batch]) -> float:
        with torch.no_grad():
            losses = [
                torch.nn.functional.binary_cross_entropy_with_logits(self.forward(batch, False)[0], batch[2])
                for batch in batches
            ]
        return float(torch.stack(losses).mean())


def ahead(kv: adapm.Worker, model: Model, batches: list[Batch], count: int) -> Iterator[Batch]:
    """The batches; their embedding rows are intended ``count`` clocks before."""
    queue: deque[Batch] = deque()
    for batch in batches:
        model.wide.intend(batch[0], kv.current_clock() + count)
        model.deep.intend(batch[0], kv.current_clock() + count)
        queue.append(batch)
        if len(queue) <= count:
            kv.advance_clock()
        else:
            yield queue.popleft()
    yield from queue


def generate(options: Options) -> tuple[Batch, Batch]:
    """Training and test samples."""
    random = np.random.default_rng(options.seed)
    count = options.samples + TEST_SAMPLES
    ranks = random.zipf(1.3, (count, COLUMNS)) % options.ids
    ids = torch.from_numpy(ranks + np.arange(COLUMNS) * options.ids)
    dense = torch.from_numpy(random.normal(size=(count, DENSE_FEATURES)).astype(np.float32))
    effects = random.normal(0, 0.4, COLUMNS * options.ids)[ids].sum(1) + dense.numpy() @ random.normal(0, 0.5, 13)
    clicks = torch.from_numpy((random.random(count) < 1 / (1 + np.exp(-effects))).astype(np.float32))
    everything = (ids, dense, clicks)
    return tuple(part[: options.samples] for part in everything), tuple(part[options.samples :] for part in everything)


def split(samples: Batch, size: int, order: torch.Tensor | None = None) -> list[Batch]:
    """Batches of samples, in ``order`` if given."""
    if order is not None:
        samples = tuple(part[order] for part in samples)
    return list(zip(*[part.split(size) for part in samples], strict=True))


def run_worker(worker_id: int, kv: adapm.Worker, options: Options) -> None:
    try:
        torch.set_num_threads(1)
        train, test = generate(options)
        kv.begin_setup()
        model = Model(kv, options)
        if worker_id == 0:
            model.set_first_values()
        kv.end_setup()
        seconds, losses = [], []
        for epoch in range(options.epochs):
            order = torch.randperm(options.samples, generator=torch.Generator().manual_seed(epoch))
            kv.barrier()
            began = time.monotonic()
            for batch in ahead(kv, model, split(train, options.batch, order[worker_id :: options.nodes]), 20):
                model.train(batch)
                kv.advance_clock()
            kv.wait_sync()
            kv.barrier()
            kv.wait_sync()
            seconds.append(time.monotonic() - began)
            if worker_id == 0:
                losses.append(model.log_loss(split(test, options.batch)))
            kv.barrier()
        if worker_id == 0:
            print(json.dumps({"nodes": options.nodes, "seconds": seconds, "log_loss": losses}), flush=True)
        kv.finalize()
    except BaseException as error:
        print(f"worker {worker_id}: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)


def set_variables(role: str, port: int, options: Options) -> int:
    """Returns the number of keys."""
    os.environ["DMLC_NUM_SERVER"] = str(options.nodes)
    os.environ["DMLC_ROLE"] = role
    os.environ["DMLC_PS_ROOT_URI"] = "127.0.0.1"
    os.environ["DMLC_PS_ROOT_PORT"] = str(port)
    return 7 + 2 * COLUMNS * options.ids


def run_scheduler(port: int, options: Options) -> None:
    adapm.scheduler(set_variables("scheduler", port, options), 1)


def run_node(port: int, options: Options) -> None:
    num_keys = set_variables("server", port, options)
    adapm.setup(num_keys, 1)
    width = DENSE_FEATURES + COLUMNS * options.dim
    layers = [width * HIDDEN, HIDDEN, HIDDEN * HIDDEN, HIDDEN, HIDDEN, 1, 1]
    embeddings = [1] * (COLUMNS * options.ids) + [options.dim] * (COLUMNS * options.ids)
    server = adapm.Server(2 * torch.tensor(layers + embeddings))
    kv = adapm.Worker(0, server)
    thread = threading.Thread(target=run_worker, args=(server.my_rank(), kv, options))
    thread.start()
    thread.join()
    server.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(description="Wide & Deep, as written for AdaPM's PyTorch bindings")
    for name, default in ("nodes", 2), ("samples", 8192), ("ids", 40_000), ("dim", 16), ("batch", 128), ("epochs", 3):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_scheduler, args=(port, options))]
    processes += [context.Process(target=run_node, args=(port, options)) for _ in range(options.nodes)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode) for process in processes)


if __name__ == "__main__":
    sys.exit(main())
