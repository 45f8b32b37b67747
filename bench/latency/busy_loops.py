"""What the main thread of a rank may be doing while it serves others."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from intentpm.bench.accesses import one_thread_torch
from intentpm.bench.latency.job import ANSWER_S, Rank

LOOK_S = 0.05
"""How often a rank that does nothing asks whether it may end."""
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
    torch = one_thread_torch()
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


def serve(here: Rank, situation: str) -> None:
    """What the main thread of another rank does until rank 0 is done, as a task; its progress thread serves meanwhile.

    Rank 0 calls ``here.exchange`` before it measures: the loop is running then.
    """
    step = BUSY_LOOPS[situation]() if situation in BUSY_LOOPS else None
    here.exchange()
    while not here.stopped():
        if step:
            step()
        else:
            time.sleep(LOOK_S)


def come_to_barrier(here: Rank) -> None:
    """Waits in the job that is measured, as a rank that is done earlier does: it polls for messages as well. A task."""
    here.pm.barrier(ANSWER_S)
