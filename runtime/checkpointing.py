"""What a ParameterManager does with checkpoints: its base class, so that its file has one idea less.

How the ranks make one together is in ``saving.py``, how they take one in in ``loading.py``.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from intentpm.checkpoint.manifest import RankEntry
from intentpm.checkpoint.storage import Location, located
from intentpm.foundation.deadlines import wait_s
from intentpm.foundation.errors import CheckpointError
from intentpm.runtime._native.engine import Engine
from intentpm.runtime._native.rank_memory import RankMemory
from intentpm.runtime._native.store import Table
from intentpm.runtime.collectives import Call, Collectives
from intentpm.runtime.loading import Exchange, Restored, load_together
from intentpm.runtime.periodic_saves import PeriodicSaves
from intentpm.runtime.rank_file import as_rows, stored_row_bytes
from intentpm.runtime.samplings import Samplings
from intentpm.runtime.save_order import SaveOrder, check_keep, plain
from intentpm.runtime.saving import Saves, Saving, run_here
from intentpm.runtime.worker import Worker
from intentpm.runtime.workers_of_rank import WorkersOfRank


class Checkpointing:
    """Of a rank: ``save``, ``load`` and what they need of its manager, which sets the attributes."""

    rank: int
    size: int
    _engine: Engine
    _collectives: Collectives
    _tables: dict[str, Table]
    _workers: WorkersOfRank
    _saves: Saves
    _memory: RankMemory
    _samplings: Samplings
    _told: dict[tuple[str, int], npt.NDArray[np.uint32]]
    """Who has asked for what has changed, and the versions he was told."""

    def worker(self) -> Worker:
        raise NotImplementedError

    def allgather(self, payload: bytes, timeout: float | None = None) -> list[bytes]:
        raise NotImplementedError

    def _check_own(self, table: Table) -> None:
        raise NotImplementedError

    @overload
    def save(
        self,
        folder: str | os.PathLike[str],
        tables: Iterable[Table | str] | None = None,
        *,
        incremental: bool = False,
        wait: Literal[True] = True,
        extra: Any = None,
        keep: int | None = None,
        timeout: float | None = None,
    ) -> Location: ...
    @overload
    def save(
        self,
        folder: str | os.PathLike[str],
        tables: Iterable[Table | str] | None = None,
        *,
        incremental: bool = False,
        wait: Literal[False],
        extra: Any = None,
        keep: int | None = None,
        timeout: float | None = None,
    ) -> Saving: ...
    def save(
        self,
        folder: str | os.PathLike[str],
        tables: Iterable[Table | str] | None = None,
        *,
        incremental: bool = False,
        wait: bool = True,
        extra: Any = None,
        keep: int | None = None,
        timeout: float | None = None,
    ) -> Location | Saving:
        """Adds a checkpoint of ``tables`` to those in ``folder``. Every rank calls it, at any moment of its training.

        The checkpoint has what this rank's workers had written when it was called, and nothing that they write later;
        likewise of every other rank. Rows come with what the optimizers keep. Any number of ranks can ``load`` it, and
        ``intentpm.checkpoint.open`` reads it with NumPy alone.

        Parameters
            folder: of one job's checkpoints; every rank must see the same one. It is made if need be. Or a URL that
                fsspec reaches ("s3://bucket/runs/7"; extra ``fsspec``): docs/checkpoints.md says what holds there.
            tables: tables or their names; None: all of this job.
            incremental: write only rows that have changed since this job last saved into ``folder`` with it; the
                checkpoint needs those before it then, which are kept. Where there is none, or they have become as
                large as the table, every row is written. Costs each rank 4 bytes per key.
            wait: False: returns a ``Saving`` as soon as this rank's part in it is fixed; training goes on meanwhile.
                A call that comes before the last one is over waits for it first.
            extra: anything that JSON can hold, kept for this rank: where in its data it is, say.
            keep: how many checkpoints to keep in ``folder``, this one included; older ones are removed. None: all.
            timeout: seconds for each of its steps; None waits as long as all ranks are alive.
        Returns the checkpoint (a pathlib.Path; of a URL what has its ``name``, ``parent`` and ``str``); with
        ``wait=False`` a ``Saving``, whose ``result()`` it is.
        Raises CheckpointError, on every rank, naming the file and the rank: what was in ``folder`` is as it was.
        PeerLostError; RankLost (``init(on_loss="continue")``); WaitTimeoutError naming what was waited for: nothing was
        saved.
        Threads: one at a time; workers of other threads may go on, their writes wait for the moment that it takes to
        have those under way acknowledged.
        """
        self._collectives.tell()
        self._saves.let_call(f"save({str(folder)!r})", None)
        order = self._save_order(folder, tables, incremental, extra, keep, timeout)
        saving = self._saves.begin(order, run_here if wait else self._saves.start_thread)
        return saving.result() if wait else saving

    def periodic_saves(
        self,
        folder: str | os.PathLike[str],
        every: float,
        tables: Iterable[Table | str] | None = None,
        *,
        incremental: bool = False,
        keep: int | None = 2,
        timeout: float | None = None,
    ) -> PeriodicSaves:
        """A checkpoint every ``every`` seconds: call ``step`` of what it returns in the training loop, on every rank.

        Rank 0 looks at the time; each saves at its next step, as ``save(wait=False)`` does. At the end: ``finish``.
        Until then nothing else may save, since ranks come to these saves at different times: ``save_now`` of what this
        returns makes one more, and to save elsewhere ``finish`` comes first (``step`` may go on after that).
        tables, incremental, keep, timeout: as ``save``. Does not wait.
        Raises CheckpointError, also from ``save``, while other periodic saves have not been finished.
        """
        seconds = wait_s(every, "every")
        return PeriodicSaves(
            f"periodic_saves({str(folder)!r})",
            self._saves,
            lambda extra: self._save_order(folder, tables, incremental, extra, keep, timeout),
            self.allgather,
            seconds,
        )

    def _save_order(
        self,
        folder: Any,
        tables: Iterable[Table | str] | None,
        incremental: bool,
        extra: Any,
        keep: Any,
        timeout: float | None,
    ) -> SaveOrder:
        """What is wrong with it the other ranks have to hear, too: they wait for this one."""
        mine = RankEntry(self.rank, {str(worker.worker_id): worker.clock for worker in list(self._workers.members)})
        try:
            mine = replace(mine, extra=plain(extra))
            return SaveOrder(located(folder), self._chosen(tables), check_keep(keep), bool(incremental), mine, timeout)
        except Exception as error:
            return SaveOrder(Path(str(folder)), [], None, False, mine, timeout, str(error))

    def changed_since(
        self, name: str, table: Table, rows_at_once: int = 4096
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        """The rows owned by this rank that have changed since it was last asked by this name, for a serving system say.

        name: of who asks; each has every change, and the first time every row.
        Yields pieces: keys int64 [K], and their weights [K, *row_shape], each as some write left it. What was yielded
        counts as told, whether or not the rest is asked for. A row that moved here since counts as changed.
        Not collective: all ranks together have every change, those of rows that are under way to another with the next
        call. One thread at a time by a name; others train on. Costs 4 bytes per key.
        """
        self._check_own(table)
        if (name, table.table_id) not in self._told:
            self._memory.keep(f"changed_since({name!r}) of table {table.name!r}", 4 * table.num_keys)
        seen = self._told.setdefault((name, table.table_id), np.zeros(table.num_keys, np.uint32))
        keys = np.empty(rows_at_once, np.int64)
        memory = np.empty(rows_at_once * stored_row_bytes(table), np.uint8)
        taken, begun = rows_at_once, None
        while taken == rows_at_once:
            taken, begun = self._saves.snapshot.take_changed(table, begun, keys, memory, seen)
            if taken:
                rows = as_rows(table, memory, taken)
                yield keys[:taken].copy(), np.array(rows if table.stored_dtype is None else rows["weights"])

    def load(
        self,
        path: str | os.PathLike[str],
        tables: Iterable[Table | str] | None = None,
        timeout: float | None = None,
    ) -> Restored:
        """Collective. Overwrites the rows of ``tables`` with those of a checkpoint, whatever the number of ranks that
        saved it, with what the optimizers keep; tables must be made first, as they were for the job that saved it.

        Parameters
            path: a checkpoint, or a folder of them: then the newest.
            tables: tables or their names; None: all of this job. The checkpoint may have others, too.
            timeout: seconds; None waits as long as all ranks are alive.
        Returns a ``Restored``, which has ``extra`` and the workers' ``clocks`` of the ranks that saved it.
        Raises CheckpointError, on every rank, naming the file that is missing, damaged or of another job: no row was
        changed then, unless it says so, of a disk or store that failed when all had been found right. Otherwise as
        ``barrier``.
        """
        chosen = self._chosen(tables)
        with self._collectives.call("load", f"load({str(path)!r})", str(path).encode(), timeout) as call:
            call.once(self._workers.settle)
            call.once(lambda: self._engine.refresh_replicas(call.remaining_s()))
            with self.worker() as worker:
                living = self._engine.living()
                restored = load_together(path, chosen, self.rank, living, worker, self._memory, _telling(call))
            call.deliver_news()
        self._samplings.branch_off((restored.number, zlib.crc32(restored.job.encode())))
        self._saves.job = restored.job
        self._saves.note_good(restored.path, chosen)
        return restored

    def _chosen(self, tables: Iterable[Table | str] | None) -> list[Table]:
        """The tables meant, each once, in the order they were made."""
        if tables is None:
            return list(self._tables.values())
        given = [tables] if isinstance(tables, Table | str) else list(tables)
        for table in given:
            if isinstance(table, str) and table not in self._tables:
                raise CheckpointError(f"there is no table {table!r} to save or load, but {list(self._tables)}")
            if not isinstance(table, str):
                self._check_own(table)
        names = {table if isinstance(table, str) else table.name for table in given}
        return [table for name, table in self._tables.items() if name in names]


def _telling(call: Call) -> Exchange:
    """What the ranks say to each other within a collective call."""
    return lambda said: [json.loads(answer) for answer in call.gather(json.dumps(said).encode())]
