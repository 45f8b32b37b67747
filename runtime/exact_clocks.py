"""``init(sync="exact")``: a clock of all ranks is one step, whose bits do not depend on the number of ranks.

``push_grad`` keeps gradients until its worker's clock advances. Then all ranks meet:

    1. each tells all the gradients it kept, as they came
    2. each key has one rank, by its number, that adds up its gradients in the order of ranks, of their calls and of
       the places in these, and takes one step, wherever the row is by now
    3. once the steps have reached all copies, all go on

One rank adds up the same numbers in the same order, if its calls have the batches of rank 0, rank 1 and so on, in that
order. Of moving rows and replicas nothing shows: each key has one step between two meetings, and a step has the same
bits at every copy (optimiser_kernels.hpp). Every gradient goes to every rank: to find out what is wrong, not for speed.

Assumption: one worker per rank, in one thread (checked).
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from intentpm.foundation.errors import CollectiveMismatchError, Error, OptimizerError, WaitTimeoutError
from intentpm.runtime._native.store import Table
from intentpm.runtime.collectives import Call, Collectives

Keys = npt.NDArray[np.int64]
Rows = npt.NDArray[Any]
AS_OFTEN = "With sync='exact' every rank advances its clock as often as the others"


class _Gradients:
    """Of one table and clock, of one rank or of several in rank order."""

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.keys: list[Keys] = []
        self.rows: list[Rows] = []

    def add(self, keys: Keys, rows: Rows) -> None:
        self.keys.append(keys)
        self.rows.append(rows)

    def of_rank(self, rank: int, size: int) -> tuple[Keys, Rows]:
        """Those of the keys that the rank adds up, in order."""
        keys = np.concatenate(self.keys)
        mine = keys % size == rank
        return keys[mine], np.concatenate(self.rows)[mine]


class ExactClocks:
    """The gradients this rank has kept, and the end of its clocks. Made by ParameterManager.

    tables: all there are, by their ids. agree: of a call that all ranks are in, brings all copies up to date.
    """

    def __init__(
        self,
        collectives: Collectives,
        rank: int,
        size: int,
        timeout_s: float,
        tables: Callable[[], Sequence[Table]],
        agree: Callable[[Call], None],
    ) -> None:
        self._collectives = collectives
        self._rank = rank
        self._size = size
        self._timeout_s = timeout_s
        self._tables = tables
        self._agree = agree
        self._worker: Any = None
        self._kept: dict[int, _Gradients] = {}
        self.steps: dict[int, int] = {}
        """Steps that all ranks have taken, per table; whichever worker takes them counts them."""

    def keep(self, worker: Any, table: Table, keys: Keys, rows: Rows, lr: float, duplicates: str) -> None:
        """Copies the gradients. Raises OptimizerError, Error; nothing is kept then."""
        self._claim(worker)
        where = f"table {table.name!r}: with sync='exact' a clock is one step per key"
        if duplicates != "sum":
            raise OptimizerError(f"{where}, of the sum of its gradients: duplicates={duplicates!r} has no meaning")
        kept = self._kept.setdefault(table.table_id, _Gradients(lr))
        if kept.lr != lr:
            raise OptimizerError(f"{where}: lr={lr!r}, but it was {kept.lr!r} before in this clock")
        kept.add(keys.copy(), rows.copy())

    def end_clock(self, worker: Any) -> None:
        """Collective: takes the step of this clock. Raises as ``worker.advance_clock``."""
        self._claim(worker)
        clock = worker.clock
        what = f"advance_clock() from clock {clock}"
        try:
            with self._collectives.call("advance_clock", what, b"%d" % clock, self._timeout_s) as call:
                self._take_step(call, worker, clock)
        except WaitTimeoutError as late:
            raise WaitTimeoutError(f"{late}. {AS_OFTEN}; call it again to wait on") from late

    def close(self, make_worker: Callable[[], Any]) -> None:
        """Collective: takes the step of gradients that were pushed after the last clock, if any rank has some."""
        with self._collectives.call("close", "close()", b"", self._timeout_s) as call:
            self._take_step(call, make_worker(), 0)

    def release(self, worker: Any) -> None:
        """It is closed: another may follow."""
        if self._worker is worker:
            self._worker = None

    def _claim(self, worker: Any) -> None:
        if self._worker is not None and self._worker is not worker:
            raise Error(
                f"{worker!r}: with sync='exact' a rank has one worker that pushes gradients and advances its clock. "
                f"That is {self._worker!r}: close that one first"
            )
        self._worker = worker

    def _take_step(self, call: Call, worker: Any, clock: int) -> None:
        told = call.gather(call.once(lambda: self._take_payload(clock)))
        for table, gradients in call.once(lambda: self._gathered(clock, told)):
            call.once(partial(self._step, worker, table, gradients))
        call.once(lambda: worker.wait_sync(call.remaining_s()))
        self._agree(call)

    def _step(self, worker: Any, table: Table, gradients: _Gradients) -> None:
        keys, rows = gradients.of_rank(self._rank, self._size)
        worker.take_step(table, keys, rows, gradients.lr)

    # -- what ranks tell each other: a line of JSON, then keys and rows of each table ----------------------------------

    def _take_payload(self, clock: int) -> bytes:
        parts, lines = [b""], []
        kept, self._kept = self._kept, {}
        for table_id, gradients in sorted(kept.items()):
            keys = np.concatenate(gradients.keys)
            lines.append([table_id, len(keys), gradients.lr.hex()])
            parts += [keys.tobytes(), np.concatenate(gradients.rows).tobytes()]
        parts[0] = json.dumps([clock, lines]).encode() + b"\n"
        return b"".join(parts)

    def _gathered(self, clock: int, told: list[bytes]) -> list[tuple[Table, _Gradients]]:
        """Of all ranks, per table. Raises, on every rank, where they do not fit together."""
        tables = {table.table_id: table for table in self._tables()}
        found: dict[int, _Gradients] = {}
        for rank, payload in enumerate(told):
            line, body = payload.split(b"\n", 1)
            their_clock, entries = json.loads(line)
            if their_clock != clock:
                raise CollectiveMismatchError(
                    f"rank {self._rank} ends clock {clock} while rank {rank} ends clock {their_clock}. {AS_OFTEN}"
                )
            at = 0
            for table_id, count, lr in entries:
                gradients = found.setdefault(table_id, _Gradients(float.fromhex(lr)))
                _check_rate(tables[table_id], gradients, rank, float.fromhex(lr))
                at = _read(tables[table_id], gradients, body, at, count)
        return [(tables[table_id], gradients) for table_id, gradients in sorted(found.items())]


def _check_rate(table: Table, gradients: _Gradients, rank: int, lr: float) -> None:
    if gradients.lr != lr:
        raise OptimizerError(
            f"table {table.name!r}: with sync='exact' a clock is one step: rank {rank} has lr={lr!r}, a rank before it "
            f"{gradients.lr!r}"
        )


def _read(table: Table, gradients: _Gradients, body: bytes, at: int, count: int) -> int:
    """Adds what a rank told of a table; returns where that ends."""
    keys = np.frombuffer(body, np.int64, count, at)
    rows = np.frombuffer(body, table.dtype, count * prod(table.row_shape), at + keys.nbytes)
    gradients.add(keys, rows.reshape(count, *table.row_shape))
    return at + keys.nbytes + rows.nbytes
