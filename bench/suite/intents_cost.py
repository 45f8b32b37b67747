"""What signalling an intent costs the training thread, and what advance_clock does, in a job of two ranks.

Every call is timed as users make it, ``worker.intent(table, keys, start, end)``, by rank 0; rank 1 owns half of the
keys and serves. In the situation "in training" it is part of a training loop: signal the keys of a later step, pull and
push those of this one, advance the clock. The others are calls in a row: intents "far ahead" that are not due, and keys
"signalled again" that are intended already. Calls in a row pile up, so they touch fresh memory all the time, which some
virtual machines charge 10 us a page for. The limit is the copy of the keys that any intent has to make.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.results import Row
from intentpm.bench.runner import run_scenario
from intentpm.bench.suite.parts import SUBJECT
from intentpm.bench.timing import interleaved

RANKS = 2
NUM_KEYS, DIM = 200_000, 64
BATCH_SIZES = (1, 100, 10_000)
STEPS_AHEAD = 16
CALLS = {1: 3_000, 100: 3_000, 10_000: 300}
"""Timed calls per K."""
BATCHES = 64
FAR_CLOCKS = 1_000_000_000
WINDOW_CLOCKS = 1_000_000
WAITING_INTENTS = 10_000
TIMEOUT_S = 120.0
COPY = "copy to uint32"


def measure(effort: float) -> list[Row]:
    """Seconds per call, over each transport between processes that works here; ucx may use any way it finds."""
    from intentpm.bench.scenarios.cli import available_transports

    rows = []
    for transport in available_transports():
        results = run_scenario(__name__, RANKS, {"effort": effort}, transport=transport, timeout_s=TIMEOUT_S)
        rows += [
            Row(
                case["name"], case["samples"], transport=transport, ranks=RANKS,
                sizes={"keys": case["keys"], "dim": DIM, "num_keys": NUM_KEYS} if case["keys"] else {},
                facts={"by": case["by"], "situation": case["situation"]},
            )
            for case in results[0]["cases"]
        ]  # fmt: skip
    return rows


def run_rank(pm: Any, arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The cases of rank 0; the others serve."""
    table = pm.create_table("rows", num_keys=NUM_KEYS, row_shape=(DIM,), dtype="float32", init=1.0)
    pm.barrier()
    cases: list[dict[str, Any]] = []
    if pm.rank == 0:
        signalling = Signalling(pm, table, arguments["effort"])
        for batch_size in BATCH_SIZES:
            cases += signalling.cases(batch_size)
        cases += advance_cases(pm, table, arguments["effort"])
    pm.barrier()
    return {"cases": cases}


class Signalling:
    """Times ``worker.intent``."""

    def __init__(self, pm: Any, table: Any, effort: float) -> None:
        self.pm, self.table, self.effort = pm, table, effort
        self.random = np.random.default_rng(0)

    def cases(self, batch_size: int) -> list[dict[str, Any]]:
        """Every situation with K = ``batch_size``, each by a worker of its own."""
        calls = max(50, round(CALLS[batch_size] * self.effort))
        batches = list(self.random.integers(0, NUM_KEYS, (BATCHES, batch_size)))
        situations = {
            "in training": self._in_training,
            "far ahead": self._far_ahead,
            "signalled again": self._again,
        }
        made = [
            {"name": "intent", "by": SUBJECT, "situation": name, "keys": batch_size, "samples": run(batches, calls)}
            for name, run in situations.items()
        ]
        copied = {**made[0], "by": COPY, "situation": "alone", "samples": _times_of_copies(batches, calls)}
        return [*made, copied]

    def _in_training(self, batches: Sequence[NDArray[np.int64]], calls: int) -> list[float]:
        worker, samples = self.pm.worker(), []
        rows = np.zeros((len(batches[0]), DIM), np.float32)
        for step in range(calls):
            samples.append(_signal(worker, self.table, batches[(step + STEPS_AHEAD) % BATCHES], step + STEPS_AHEAD))
            keys = batches[step % BATCHES]
            worker.pull(self.table, keys, rows)
            worker.push(self.table, keys, rows)
            worker.advance_clock()
        worker.wait_sync()
        return samples

    def _far_ahead(self, batches: Sequence[NDArray[np.int64]], calls: int) -> list[float]:
        worker = self.pm.worker()
        return [_signal(worker, self.table, batches[n % BATCHES], FAR_CLOCKS + n) for n in range(calls)]

    def _again(self, batches: Sequence[NDArray[np.int64]], calls: int) -> list[float]:
        worker = self.pm.worker()
        worker.intent(self.table, batches[0], 0, WINDOW_CLOCKS)
        worker.wait_sync()
        return [_signal(worker, self.table, batches[0], 0, WINDOW_CLOCKS) for _ in range(calls)]


def _signal(worker: Any, table: Any, keys: NDArray[np.int64], start: int, end: int | None = None) -> float:
    """Seconds of one call."""
    end = start + 1 if end is None else end
    begin = time.perf_counter()
    worker.intent(table, keys, start, end)
    return time.perf_counter() - begin


def _times_of_copies(batches: Sequence[NDArray[np.int64]], calls: int) -> list[float]:
    samples = []
    for n in range(calls):
        keys = batches[n % BATCHES]
        begin = time.perf_counter()
        keys.astype(np.uint32)
        samples.append(time.perf_counter() - begin)
    return samples


def advance_cases(pm: Any, table: Any, effort: float) -> list[dict[str, Any]]:
    """``advance_clock`` with nothing to do, and with many intents that are not due; next to a bound method of C."""
    waiting = pm.worker()
    for n in range(WAITING_INTENTS):
        waiting.intent(table, np.array([n]), FAR_CLOCKS + n)
    calls: dict[tuple[str, str], Callable[[], object]] = {
        (SUBJECT, "no intents"): pm.worker().advance_clock,
        (SUBJECT, f"{WAITING_INTENTS} intents far ahead"): waiting.advance_clock,
        ("dict.clear", "alone"): {}.clear,
    }
    names = {" / ".join(case): call for case, call in calls.items()}
    timed = interleaved(names, max(3, round(30 * effort)))
    return [
        {"name": "advance_clock", "by": by, "situation": situation, "keys": 0, "samples": samples}
        for (by, situation), samples in zip(calls, timed.values(), strict=True)
    ]


def draw(rows: Sequence[Mapping[str, Any]], figure: Any) -> None:
    """Microseconds per call over keys: median, and a band up to the 99th percentile; a panel per transport."""
    from intentpm.bench.suite.drawing import legend_below

    shown = [row for row in rows if row["name"] == "intent"]
    transports = list(dict.fromkeys(row["transport"] for row in shown))
    for axes, transport in zip(figure.subplots(1, len(transports), squeeze=False)[0], transports, strict=True):
        cases = [row for row in shown if row["transport"] == transport]
        for by, situation in dict.fromkeys((row["facts"]["by"], row["facts"]["situation"]) for row in cases):
            of = [row for row in cases if (row["facts"]["by"], row["facts"]["situation"]) == (by, situation)]
            keys = [row["sizes"]["keys"] for row in of]
            low, high = (np.array([np.quantile(row["samples"], share) for row in of]) * 1e6 for share in (0.5, 0.99))
            label = f"intent, {situation}" if by == SUBJECT else by
            (line,) = axes.plot(keys, low, marker="o", linewidth=2 if by == SUBJECT else 1, label=label)
            axes.fill_between(keys, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(xscale="log", yscale="log", xlabel="keys per intent", ylabel="us per call: median to 99 %")
        axes.set_title(transport, loc="left", fontsize=9)
    legend_below(figure)
