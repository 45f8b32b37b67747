"""Training that can be gone on with: where it is in its data, saved with the rows every so often.

A task that trains in epochs uses it so:

    self.progress = Progress(pm, self.tables, checkpoints)     # after its tables are made; loads, if it is to go on
    def run(self):
        return self.progress.run(EpochRow, self.options.epochs, self._epoch)  # from 0 on: the untrained model
    def _epoch(self, epoch):
        return self._measured(epoch, *(self._train(epoch) if epoch else (0.0, 0)))
    def _train(self, epoch):
        order = self.progress.rest_of(order, self.options.batch)  # what of the epoch is not trained yet
        for batch in self.progress.follow(batches of order): ...

With as many ranks as saved it, each goes on where it was. Others have other shares of the data: then every rank leaves
out as much of the epoch as all together had trained. Ranks that step together (``in_step``) go on where rank 0 was: a
batch that another had trained beyond that is trained again.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import click
import numpy as np
from numpy.typing import NDArray

from intentpm.checkpoint.series import latest
from intentpm.checkpoint.storage import Location
from intentpm.foundation.errors import CheckpointError

B = TypeVar("B")
R = TypeVar("R")
KEPT = 2
_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smh]?)")


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers alone
    """A click type: seconds, as "30", "30s", "5m" or "1h"."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = _DURATION.fullmatch(str(value))
        if found is None or not float(found[1]) > 0:
            self.fail(f"{value!r} is no time: write 30s, 5m or 1h", param, ctx)
        return float(found[1]) * _UNITS_S[found[2]]


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """What the command line says."""

    folder: Location
    every_s: float | None = None
    """None: no checkpoints are made."""
    resume: bool = False
    """Go on from the newest there, if there is one."""

    @property
    def are_used(self) -> bool:
        """Whether any is made or read."""
        return self.every_s is not None or self.resume


class Progress:
    """How far this rank's training is. Made, and used, by every rank alike; one thread.

    Attributes: ``rows``, those of the epochs that are over; ``generation``, of the checkpoint it went on from; 0: none.
    """

    def __init__(
        self, pm: Any, tables: Sequence[Any], options: CheckpointOptions | None, *, in_step: bool = False,
        before_save: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Collective where there are ``options``. Raises CheckpointError.

        before_save: called on every rank just before it saves, to write what is to be saved into a table.
        """
        self._in_step, self._before_save = in_step, before_save
        self.rows: list[dict[str, Any]] = []
        self.generation = 0
        self._first_epoch, self._share = 0, 0.0
        self._epoch, self._done, self._batches = 0, 0, 0
        self._saves = None
        if options is None or not options.are_used:
            return
        newest = latest(options.folder)
        if newest is not None and not options.resume:
            raise CheckpointError(
                f"{options.folder} has checkpoints of an earlier run: go on from them (--resume), or save elsewhere "
                "(--checkpoints)"
            )
        if newest is not None:
            self._go_on(pm, pm.load(newest, tables))
        if options.every_s is not None:
            self._saves = pm.periodic_saves(options.folder, options.every_s, tables, keep=KEPT)

    def _go_on(self, pm: Any, restored: Any) -> None:
        """Where the ranks were that saved it; none is more than an epoch ahead of another."""
        at = [rank["epoch"] + rank["share"] for rank in restored.extra]
        at = at[:1] * pm.size if self._in_step else at
        self.generation = restored.number
        rows = restored.extra[0]["rows"]
        # An epoch whose batches were all trained, but that has no row yet, is not over.
        self._first_epoch = self._epoch = min(int(min(at)), len(rows))
        shares = [min(position - self._first_epoch, 1.0) for position in at]
        self._share = shares[pm.rank] if len(shares) == pm.size else float(np.mean(shares))
        self.rows = rows[: self._first_epoch]

    def run(self, row: Callable[..., R], last: int, train: Callable[[int], R]) -> Iterator[R]:
        """The rows of all epochs up to ``last``: of those that were over as they were yielded then, and of the rest.

        row: makes one of its fields. train: trains an epoch (0: the untrained model) and returns its row.
        """
        yield from (row(**fields) for fields in self.rows)
        for epoch in self.epochs(last):
            yield self.note_epoch(train(epoch))
        self.finish()

    def epochs(self, last: int) -> Iterator[int]:
        """Those to go through, from the first that is not over. Of the first a part may be trained already."""
        for epoch in range(self._first_epoch, last + 1):
            self._epoch, self._done, self._batches = epoch, 0, 0
            yield epoch
            self._share = 0.0

    def rest_of(self, order: NDArray[np.int64], batch: int) -> NDArray[np.int64]:
        """What of this epoch's order is to be trained still, from a whole batch on."""
        self._batches = -(-len(order) // batch)
        self._done = round(self._share * self._batches)
        return order[self._done * batch :]

    @property
    def share(self) -> float:
        """How much of the epoch is trained, 0 to 1; after ``rest_of``."""
        return self._done / self._batches if self._batches else 0.0

    def follow(self, batches: Iterable[B]) -> Iterator[B]:
        """Yields them, and has a checkpoint made after one where it is due."""
        for batch in batches:
            yield batch
            self._done += 1
            if self._saves is not None:
                self._saves.step(self._position)

    def note_epoch(self, row: R) -> R:
        """The epoch is over; returns its row."""
        self.rows.append(asdict(row))  # type: ignore[call-overload]  # a dataclass
        self._epoch, self._done = self._epoch + 1, 0
        return row

    def finish(self) -> None:
        """Collective: all epochs are over, and a checkpoint says so."""
        if self._saves is not None:
            self._saves.save_now(self._position)

    def _position(self) -> dict[str, Any]:
        if self._before_save is not None:
            self._before_save()
        return {"epoch": self._epoch, "share": self.share, "rows": self.rows}
