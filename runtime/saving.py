"""``ParameterManager.save``: how the ranks make one checkpoint together, while they train on.

    each rank      makes its cut (cuts.pxd), and says so, what it was asked, or what keeps it from taking part
    rank 0         makes the checkpoint's folder; every rank has made its cut now, and says so
    each rank      once no row can come any more that it has to write, writes its rows into a file there
    rank 0         puts the manifest in place, which makes it a checkpoint; removes what is no longer to be kept

After each line the ranks tell each other how it went. Who fails says so, and all raise the same error; what was there
before is as it was. The first line is the caller's; the others are a thread's, unless the caller waits.
"""

import json
import os
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from intentpm.checkpoint import series
from intentpm.checkpoint.disk_thread import DiskThread
from intentpm.checkpoint.manifest import FileEntry, Manifest, RankEntry
from intentpm.checkpoint.storage import Location, located
from intentpm.foundation.deadlines import wait_s
from intentpm.foundation.errors import (
    CheckpointError,
    MemoryBudgetError,
    RankLost,
    SaveInterruptedError,
    WaitTimeoutError,
    save_interrupted,
)
from intentpm.runtime._native.engine import Engine
from intentpm.runtime._native.rank_memory import RankMemory
from intentpm.runtime._native.rank_snapshot import RankSnapshot
from intentpm.runtime._native.store import Table
from intentpm.runtime.rank_file import SAVED_BYTES, describe_table, rank_file_name, write_rank_file
from intentpm.runtime.save_order import SaveOrder
from intentpm.runtime.snapshot_rows import SnapshotRows, Versions
from intentpm.runtime.workers_of_rank import WorkersOfRank

Said = dict[str, Any]
STAGES = 4
"""Exchanges of a save."""
BUDGET_PIECES = 128
"""A piece of a save has this part of the memory budget, and what is written of it as much again at most."""
NICER = 10
"""Of ``nice``: a thread that saves beside training counts for a tenth of the workers."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """Somebody who takes rows that have changed since he last did, a saved folder say. Four bytes per key and rank."""

    base: str | None = None
    """The checkpoint with what was taken."""
    seen: Mapping[str, Versions] = field(default_factory=dict)
    """Table -> per key 1 + the version of the row that was taken; 0: none."""

    def seen_of(self, table: Table) -> Versions:
        found = self.seen.get(table.name)
        return np.zeros(table.num_keys, np.uint32) if found is None else found


@dataclass(frozen=True, slots=True)
class GoodCheckpoint:
    """The newest of a table that this job has made or loaded, and how many those are."""

    count: int
    path: Location


class Saving:
    """A save that is under way; what ``ParameterManager.save(wait=False)`` returns. Any thread may wait for it."""

    def __init__(self, order: SaveOrder, savers: "Saves", number: int) -> None:
        self._order, self._savers, self._number = order, savers, number
        self._ended = threading.Event()
        self._path: Location | None = None
        self._error: BaseException | None = None
        self._stage = 0
        """Exchanges that this rank has taken part in."""
        self._heard = 0
        """Those of which it knows how they went."""
        self._given_up = False
        """The others may not have heard of that yet."""
        self._taken: Consumer | None = None
        self.looked_at = False
        """Somebody has been told how it ended."""

    def done(self) -> bool:
        """True when ``result`` would return (or raise) at once. Does not wait."""
        return self._ended.is_set()

    def wait(self, timeout: float | None = None) -> None:
        """Waits until the checkpoint is made, on every rank. Raises as ``result``."""
        self.result(timeout)

    def result(self, timeout: float | None = None) -> Location:
        """The checkpoint. timeout: seconds; None waits as long as all ranks are alive.

        Raises CheckpointError, the same on every rank; PeerLostError; WaitTimeoutError (it goes on all the same).
        """
        if not self._ended.wait(None if timeout is None else wait_s(timeout)):
            raise WaitTimeoutError(f"{self._order} was not over within {timeout:g} s")
        self.looked_at = True
        if self._error is not None:
            raise self._error
        assert self._path is not None
        return self._path

    def wait_for_all(self, timeout_s: float | None) -> None:
        """Until it is over, whatever came of it; if it was given up here, until all ranks have heard of that."""
        if not self._ended.wait(None if timeout_s is None else wait_s(timeout_s)):
            raise WaitTimeoutError(f"{self._order}, the save before, was not over within {timeout_s:g} s")
        with suppress(SaveInterruptedError):  # ranks have formed anew since: nobody waits for it any more
            while self._given_up and self._heard < STAGES:
                said = self._hear(f"{self._order}, which was given up here", timeout_s)
                self._given_up = not any("problem" in theirs for theirs in said)  # with the first, all stop
        self._given_up = False

    def run(self) -> None:
        """All that comes after the cut; keeps what it raises."""
        try:
            self._path = self._make(DiskThread(self._order.longest_on_disk_s()))
        except BaseException as error:
            self.fail(error)
        else:
            self._end()

    def fail(self, error: BaseException) -> None:
        """It ends with ``error``, here and on the other ranks."""
        self._error = error
        try:
            self._give_up(error)
        finally:
            self._end()

    def _end(self) -> None:
        with suppress(Exception):
            self._savers.snapshot.end(list(self._order.tables), self._number)
        self._ended.set()

    def _make(self, disk: DiskThread) -> Location:
        order, first = self._order, self._savers.is_first()
        said = self._tell(lambda: self._begin(disk))
        ranks = self._savers.ranks(len(said))
        for other, theirs in zip(ranks, said, strict=True):
            if theirs["asked"] != said[0]["asked"]:
                asked = said[0]["asked"]
                raise CheckpointError(
                    f"{order}: rank {other} was asked for {theirs['asked']}, rank {ranks[0]} for {asked}"
                )
        entries_of_ranks = [RankEntry(**theirs["mine"]) for theirs in said]
        self._savers.snapshot.seal(list(order.tables))
        bases = [theirs["base"] for theirs in said]
        told = self._tell(lambda: disk.do(f"beginning in {order.folder}", lambda: self._make_folder(bases)))[0]
        path, base, job = located(told["path"]), told["base"], told["job"]
        self._savers.job = job
        try:
            self._savers.snapshot.settle_replicas(order.timeout_s)
            written = self._tell(lambda: self._write(path, base, disk))
            entries = [FileEntry(*theirs["file"]) for theirs in written]
            tables = [describe_table(table) for table in order.tables]
            seed = self._savers.seed
            manifest = Manifest(job, int(path.name), _version(), base, seed, tables, entries, entries_of_ranks)
            self._tell(lambda: disk.do(f"ending {path}", lambda: _commit(path, manifest)) if first else {})
        except CheckpointError:
            if first:
                with suppress(OSError):  # else the next one does it
                    disk.do(f"removing {path}", lambda: series.remove(path))
            raise
        if first:  # only now: all ranks agree that the new one is there
            with suppress(OSError):  # an older one is damaged, say: this one is made all the same
                disk.do(f"removing from {order.folder}", lambda: series.prune(order.folder, order.keep))
        if self._taken is not None:
            self._savers.consumers[str(order.folder)] = replace(self._taken, base=path.name)
        self._savers.note_good(path, order.tables)
        return path

    def _write(self, path: Location, base: str | None, disk: DiskThread) -> Said:
        rank, rows = self._savers.rank, self._rows(base, disk)
        what = f"writing {path / rank_file_name(rank)}"
        return {"file": disk.do(what, lambda: write_rank_file(path, rank, self._order.tables, rows))}

    def _rows(self, base: str | None, disk: DiskThread) -> SnapshotRows:
        limit = self._savers.memory.report()["limit"]
        piece_bytes = min(SAVED_BYTES, limit // BUDGET_PIECES) if limit else SAVED_BYTES
        return SnapshotRows(self._savers.snapshot, self._seen(), base is not None, piece_bytes, disk)

    def _seen(self) -> dict[str, Versions] | None:
        """What the save before has taken of each row; from here on it is not known until this one is made."""
        order = self._order
        if not order.incremental:
            return None
        before = self._savers.consumers.pop(str(order.folder), Consumer())
        seen = {}
        for table in order.tables:
            self._savers.memory.keep(f"{order}, incremental: table {table.name!r}", 4 * table.num_keys)
            seen[table.name] = before.seen_of(table)
        self._taken = Consumer(None, seen)
        return seen

    def _begin(self, disk: DiskThread) -> Said:
        if self._order.problem is not None:
            raise CheckpointError(self._order.problem)
        return {"asked": self._order.identity(), "mine": asdict(self._order.mine), "base": self._base(disk)}

    def _base(self, disk: DiskThread) -> str | None:
        """The checkpoint since which this rank knows what has changed."""
        before = self._savers.consumers.get(str(self._order.folder), Consumer())
        known = self._order.incremental and all(table.name in before.seen for table in self._order.tables)
        if before.base is None or not known:
            return None
        return before.base if self._is_right(self._order.folder / before.base, disk) else None

    def _is_right(self, base: Location, disk: DiskThread) -> bool:
        """It is not damaged, of this rank's share of it. Those that it was built on have been looked at before."""
        living = self._savers.living()
        place = living.index(self._savers.rank)
        return disk.do(f"reading {base}", lambda: series.is_right(base, place, len(living), disk.live))

    def _make_folder(self, bases: list[str | None]) -> Said:
        """On rank 0: also whether this one can have changes alone."""
        if not self._savers.is_first():
            return {}
        base = bases[0] if bases[0] is not None and bases == bases[:1] * len(bases) else None
        path = series.begin(self._order.folder, self._savers.job)
        if base is not None and not series.may_build_on(self._order.folder / base):
            base = None
        return {"path": str(path), "job": self._savers.job, "base": base}

    def _tell(self, do: Callable[[], Said]) -> list[Said]:
        """Does this rank's part, and returns what all ranks have to say of theirs. Raises CheckpointError."""
        number = self._number * STAGES + self._stage
        self._savers.snapshot.contribute(number, json.dumps(_try(do)).encode())
        self._stage += 1  # only now: who is interrupted before gives up this step, too
        said = self._hear(f"{self._order} (step {self._stage} of {STAGES})", self._order.timeout_s)
        for rank, theirs in zip(self._savers.ranks(len(said)), said, strict=True):
            if "problem" in theirs:
                raise CheckpointError(f"{self._order}: nothing was saved, because of rank {rank}: {theirs['problem']}")
        return said

    def _hear(self, what: str, timeout_s: float | None) -> list[Said]:
        """What all ranks had to say in the next exchange."""
        answers = self._savers.snapshot.answers(self._number * STAGES + self._heard, what, timeout_s)
        self._heard += 1
        return [json.loads(part) for part in answers]

    def _give_up(self, error: BaseException) -> None:
        """The other ranks may wait for this one's part in what comes next."""
        if isinstance(error, CheckpointError | RankLost):
            return  # all ranks know, and stop here
        told = json.dumps({"problem": f"gave up: {error}"}).encode()
        self._given_up = True
        with suppress(Exception):
            for stage in range(self._stage, STAGES):
                self._savers.snapshot.contribute(self._number * STAGES + stage, told)


class Saves:
    """The saves of a rank, one at a time. ``begin`` is for one thread at a time.

    Attributes: ``snapshot``; ``job``, the name by which checkpoints of one job know each other (rank 0's counts);
    ``consumers``: folder -> what was saved there last, for ``incremental``; ``called_by``, the PeriodicSaves that may
    have called for saves which not every rank has made, or None. The thread that saves sets it. ``good``: table name ->
    the newest checkpoint of it, the same on all ranks, but while one is made.
    """

    def __init__(self, engine: Engine, workers: WorkersOfRank, memory: RankMemory, rank: int, seed: int | None) -> None:
        told = {"problem": "it has closed its parameter manager without saving"}
        self.snapshot = RankSnapshot(engine, json.dumps(told).encode())
        self.rank, self.seed = rank, seed
        self.job = uuid.uuid4().hex
        self.consumers: dict[str, Consumer] = {}
        self.called_by: object | None = None
        self._called_what = ""
        self.good: dict[str, GoodCheckpoint] = {}
        self._engine, self._workers, self.memory = engine, workers, memory
        self._last: Saving | None = None
        self._thread: threading.Thread | None = None

    def begin(
        self, order: SaveOrder, start: Callable[[Callable[[], None]], object], formed: int | None = None
    ) -> Saving:
        """Makes this rank's cut, and has ``start`` run the rest of the save, which keeps what it raises.

        Waits for the save before it, on all ranks: also if that was given up here.
        formed: ``formed()`` when it was asked for; None: now. When ranks form anew before the cut, all that asked for
        it raise SaveInterruptedError: RankLost is for their workers.
        Raises PeerLostError, ClosedError, WaitTimeoutError: there was no cut then.
        """
        self.snapshot.await_cut(self.formed() if formed is None else formed)
        if self._last is not None:
            self._last.wait_for_all(order.timeout_s)
        self._cut_off(order)
        made = self.snapshot.made()
        try:
            order = self._cut(order)
        except BaseException as error:
            if self.snapshot.made() > made:  # a signal came when the cut was made: the others wait for this rank
                self._last = Saving(order, self, made + 1)
                self._last.fail(error)
            raise
        saving = self._last = Saving(order, self, made + 1)
        try:
            start(saving.run)
        except BaseException as error:  # no thread is left, say
            saving.fail(error)
            raise
        return saving

    def _cut(self, order: SaveOrder) -> SaveOrder:
        """Returns ``order``, and with it what is wrong: the other ranks have to hear of it."""
        try:
            self.snapshot.cut(list(order.tables))
        except MemoryBudgetError as error:
            return replace(order, problem=str(error))
        finally:
            self._workers.open_gate(self._engine)
        return order

    def let_call(self, what: str, caller: object | None) -> None:
        """``caller`` alone may make saves from here on; None: whoever asks. Raises CheckpointError: another may."""
        if self.called_by not in (None, caller):
            raise CheckpointError(
                f"{what}: the ranks are not done with {self._called_what}: call finish() of these first, on every rank"
            )
        self.called_by, self._called_what = caller, what

    def start_thread(self, run: Callable[[], None]) -> None:
        """A way to ``begin``."""
        thread = threading.Thread(target=_run_behind, args=(run,), name="intentpm-save", daemon=True)
        thread.start()
        self._thread = thread

    def _cut_off(self, order: SaveOrder) -> None:
        """No write of this rank is under way when it returns, and none begins until the gate is opened."""
        try:
            self._workers.close_gate(self._engine, order.timeout_s)
            self.snapshot.settle_replicas(order.timeout_s, cutting=True)
        except BaseException as error:
            self.snapshot.end_cutting()
            self._workers.open_gate(self._engine)
            if isinstance(error, RankLost):
                raise save_interrupted() from error
            raise

    def is_first(self) -> bool:
        """This rank does what one has to do for all: rank 0, or the first that is left."""
        return self._engine.root() == self.rank

    def formed(self) -> int:
        """How often the ranks have formed anew."""
        return self._engine.formed()

    def wait_until_formed(self) -> None:
        """Where ranks were lost, until the others have formed anew. Raises what has ended the job."""
        self._engine.check()

    def living(self) -> Sequence[int]:
        """The ranks that are in the job."""
        found: Sequence[int] = self._engine.living()
        return found

    def ranks(self, answered: int) -> Sequence[int]:
        """Who has answered, in order: all that are in the job, unless some were lost since."""
        living = self.living()
        return living if len(living) == answered else range(answered)

    def note_good(self, path: Location, tables: Sequence[Table]) -> None:
        """Of these tables it is the newest checkpoint."""
        for table in tables:
            last = self.good.get(table.name)
            self.good[table.name] = GoodCheckpoint(1 if last is None else last.count + 1, path)

    def is_idle(self) -> bool:
        """No save is under way."""
        return self._last is None or self._last.done()

    def forget_taken(self) -> None:
        """Rows may be older than those that were saved: the next checkpoint of each folder has all."""
        self.consumers.clear()

    def finish(self) -> None:
        """Waits for the save under way. Raises what it ended with, if nobody has been told."""
        if self._last is not None:
            if not self._last.looked_at:
                self._last.result()
            self.join()

    def end(self) -> SaveInterruptedError | None:
        """As ``finish``; returns why there is no checkpoint where that is because a rank was lost."""
        try:
            self.finish()
        except SaveInterruptedError as problem:
            return problem
        return None

    def join(self, timeout_s: float | None = None) -> None:
        """Waits for the thread alone: the job is over, and so is the save, soon."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)


def _run_behind(run: Callable[[], None]) -> None:
    """As a thread: it writes in what the workers leave of the cores, and in a tenth of what they do not."""
    mine = 0  # on Linux, of this thread alone
    os.setpriority(os.PRIO_PROCESS, mine, min(os.getpriority(os.PRIO_PROCESS, mine) + NICER, 19))
    run()


def run_here(run: Callable[[], None]) -> None:
    """A way to ``Saves.begin``: the caller does it all."""
    run()


def _commit(path: Location, manifest: Manifest) -> Said:
    for table in manifest.tables:
        if manifest.base is None and manifest.rows(table.name) != table.num_keys:
            raise CheckpointError(
                f"table {table.name!r}: {manifest.rows(table.name)} rows were written, it has {table.num_keys}"
            )
    series.commit(path, manifest)
    return {}


def _try(do: Callable[[], Said]) -> Said:
    """What ``do`` has to say, or what kept it from that."""
    try:
        return do()
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return {"problem": f"{name}{error.strerror}" if error.strerror else str(error)}
    except Exception as error:
        return {"problem": repr(error)}


def _version() -> str:
    from importlib.metadata import version

    return version("intentpm")
