"""What the training tasks report of an epoch: sums over the ranks, and the time and traffic of the training pass."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from intentpm.bench.tasks.diverged import DivergedError
from intentpm.bench.tasks.rank_table import RankTable, settle
from intentpm.bench.tasks.traffic import Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRow:
    """What one epoch did, over all ranks; tasks add their measures of quality. Epoch 0 is the untrained model."""

    epoch: int
    loss: float
    """Mean over what was trained on, each taken just before its own update; nan of nothing, as in epoch 0."""
    seconds: float
    """Wall-clock time of the training pass (the slowest rank's), without evaluation."""
    bytes_sent: int
    """By all ranks during the training pass."""
    local_share: float
    """Share of the rows accessed in the training pass that were owned or replicated at the rank, 0 to 1."""


class EpochMeter:
    """Measures a rank's training passes, and adds up what the ranks found. Collective; one thread.

    Parameters:
        pm, worker: the parameter manager, and this rank's worker.
        tables: names of the tables whose accesses count.
        sums: names of what ``measured`` adds up.
    """

    def __init__(self, pm: Any, worker: Any, tables: Sequence[str], sums: Sequence[str]) -> None:
        self.pm, self.worker, self.tables = pm, worker, tables
        self.names = sums
        self.seconds, self.traffic = 0.0, Traffic()
        self.ranks = RankTable(pm, worker, length=len(sums) + 1 + len(Traffic().vector()))

    @contextmanager
    def training_pass(self) -> Iterator[None]:
        """Around one rank's training pass. Ends when the updates of all ranks are in place."""
        before, start = Traffic.read(self.pm, self.tables), time.perf_counter()
        yield
        settle(self.pm, self.worker)
        self.seconds = time.perf_counter() - start
        self.traffic = Traffic.read(self.pm, self.tables) - before

    def measured(self, **sums: float) -> tuple[dict[str, float], dict[str, Any]]:
        """The sums over all ranks by name, and the fields of the row that say what the last training pass took."""
        mine = [*(sums[name] for name in self.names), self.seconds, *self.traffic.vector()]
        vectors = self.ranks.gather(mine)
        totals = vectors.sum(axis=0).tolist()
        traffic = Traffic(*(int(count) for count in totals[len(self.names) + 1 :]))
        took = {
            "seconds": float(vectors[:, len(self.names)].max()),
            "bytes_sent": traffic.bytes_sent, "local_share": traffic.local_share,
        }  # fmt: skip
        return dict(zip(self.names, totals, strict=False)), took


def mean(total: float, count: float) -> float:
    """nan of nothing."""
    return total / count if count else math.nan


def check_finite(row: EpochRow, trained: float, advice: str) -> None:
    """Raises DivergedError when the loss of ``trained`` examples, more than 0, is not finite.

    advice: which options to change.
    """
    if trained and not math.isfinite(row.loss):
        raise DivergedError(f"training diverged in epoch {row.epoch}: the loss is no longer finite. {advice}")
