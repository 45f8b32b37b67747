"""What the main thread of a training rank may be doing while its rank serves others."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

SIDE = 128
"""Of the matrices: one product takes some 100 us, as a small layer does."""
GIL_SLICE = 1000


def python_loop() -> Callable[[], object]:
    """Pure Python: holds the GIL, and gives it up only when asked."""

    def step() -> int:
        total = 0
        for i in range(GIL_SLICE):
            total += i
        return total

    return step


def numpy_loop() -> Callable[[], object]:
    """Matrix products: the GIL is taken and released around each."""
    a, out = np.ones((SIDE, SIDE), np.float32), np.empty((SIDE, SIDE), np.float32)
    return lambda: np.matmul(a, a, out=out)


def torch_loop() -> Callable[[], object]:
    """A layer forward and backward, on one thread. Raises ImportError."""
    import torch

    torch.set_num_threads(1)
    layer = torch.nn.Linear(SIDE, SIDE)
    batch = torch.ones(32, SIDE)

    def step() -> Any:
        layer.zero_grad()
        loss = layer(batch).square().mean()
        loss.backward()
        return loss

    return step


BUSY_LOOPS: Mapping[str, Callable[[], Callable[[], object]]] = {
    "python loop": python_loop,
    "numpy": numpy_loop,
    "torch": torch_loop,
}
"""By the situation's name; each makes the step that is repeated."""


def spin(step: Callable[[], object], seconds: float) -> int:
    """Repeats ``step`` for ``seconds``; returns how often."""
    end, steps = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        step()
        steps += 1
    return steps
