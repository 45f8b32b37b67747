"""PyTorch with the same look-ups on the same device: ``index_select``, ``index_add_``, EmbeddingBag with SparseAdam."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from intentpm.bench.scenarios.device_rows import BATCHES, Measured, Sizes, power_law

Timer = Callable[[Callable[[int], object]], list[float]]


def measure_torch(sizes: Sizes, cuda: bool) -> list[Measured]:
    """cuda: False on the host, where times say nothing of a GPU. Empty: PyTorch is not installed."""
    try:
        import torch
    except ImportError:
        return []
    device = torch.device("cuda" if cuda else "cpu")
    rng = np.random.default_rng(1)
    batches = [torch.from_numpy(power_law(rng, sizes).astype(np.int64)).to(device) for _ in range(BATCHES)]
    given = torch.rand(sizes.lookups, sizes.items, device=device)
    timer = _timer(torch, cuda, sizes.times)
    return [*_moves(torch, sizes, batches, given, timer), _trained(torch, sizes, batches, given, timer)]


def _moves(torch: Any, sizes: Sizes, batches: list[Any], given: Any, timer: Timer) -> list[Measured]:
    weights = torch.rand(sizes.rows, sizes.items, device=given.device)
    moved = 8 * sizes.lookups * sizes.items
    selected = timer(lambda turn: torch.index_select(weights, 0, batches[turn % BATCHES]))
    added = timer(lambda turn: weights.index_add_(0, batches[turn % BATCHES], given))
    return [
        Measured("gather", "torch.index_select", selected, moved),
        Measured("add", "torch.index_add_", added, moved),
    ]


def _trained(torch: Any, sizes: Sizes, batches: list[Any], given: Any, timer: Timer) -> Measured:
    bag = torch.nn.EmbeddingBag(sizes.rows, sizes.items, mode="sum", sparse=True, device=given.device)
    stepper = torch.optim.SparseAdam(list(bag.parameters()), lr=1e-6)
    offsets = torch.arange(sizes.lookups, device=given.device)

    def train(turn: int) -> None:
        stepper.zero_grad()
        bag(batches[turn % BATCHES], offsets).backward(given)
        stepper.step()

    return Measured("step, Adam", "torch EmbeddingBag + SparseAdam", timer(train), 32 * sizes.lookups * sizes.items)


def _timer(torch: Any, cuda: bool, times: int) -> Timer:
    def by_device(run: Callable[[int], object]) -> list[float]:
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(times)]
        for turn in range(BATCHES):
            run(turn)
        for turn, (before, after) in enumerate(marks):
            before.record()
            run(turn)
            after.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) for before, after in marks]

    def by_host(run: Callable[[int], object]) -> list[float]:
        took = []
        for turn in range(times):
            began = time.perf_counter()
            run(turn)
            took.append(1e3 * (time.perf_counter() - began))
        return took

    return by_device if cuda else by_host
