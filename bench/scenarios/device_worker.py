"""Whole calls of a worker of a device: look-up on the host, slots sent, kernels, order with the caller's stream.

Times are those of the host's clock, over all batches and until the device is done: what a training loop sees of them.
"""

import time
from collections.abc import Callable

import numpy as np

import intentpm
import intentpm.optim
from intentpm.bench.scenarios.device_rows import BATCHES, Measured, Sizes, power_law

MOST_ROWS = 1 << 20
"""Of the table: its first rows come from the host."""


def measure_worker(device: str, sizes: Sizes) -> list[Measured]:
    """Pulls into an array on the device, and gradients from there, in a job of one rank. Keys are on the host.

    "among several": what it costs that others may need rows meanwhile (docs/gpu.md, why a write waits).
    """
    rows = min(sizes.rows, MOST_ROWS)
    small = Sizes(rows, sizes.items, sizes.lookups, sizes.copied_bytes, sizes.times)
    rng = np.random.default_rng(1)
    batches = [power_law(rng, small).astype(np.int64) for _ in range(BATCHES)]
    moved = 2 * sizes.lookups * 4 * sizes.items
    with intentpm.init(device=device) as pm:
        table = pm.create_table(
            "rows", rows, sizes.items, init=0.5, optimizer=intentpm.optim.Adam(lr=1e-6), storage="gpu"
        )
        with pm.worker(device=device) as worker:
            out = worker.pull(table, batches[0])
            one = worker.device.new_array((1,), np.dtype(np.int64))

            def finish() -> None:
                worker.keys_on_host(one)  # behind all that the caller's stream waits for

            def pull(turn: int) -> None:
                worker.pull(table, batches[turn % BATCHES], out=out)

            def step(turn: int) -> None:
                worker.push_grad(table, batches[turn % BATCHES], out)

            measured = [
                Measured("pull, a worker's", "intentpm", _times(pull, finish, sizes.times), moved),
                Measured("push_grad, Adam, a worker's", "intentpm", _times(step, finish, sizes.times), 4 * moved),
            ]
            pm.worker(device=device)
            for name, run, size in (("pull", pull, 2 * moved), ("push_grad, Adam", step, 4 * moved)):
                times = _times(run, finish, sizes.times)
                measured.append(Measured(f"{name}, a worker's among several", "intentpm", times, size))
            return measured


def _times(run: Callable[[int], None], finish: Callable[[], None], times: int) -> list[float]:
    """Milliseconds a call: the mean, for they overlap."""
    run(0)
    finish()
    began = time.perf_counter()
    for turn in range(times):
        run(turn)
    finish()
    return [1e3 * (time.perf_counter() - began) / times]
