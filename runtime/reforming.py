"""``init(on_loss="continue")``: the ranks that are left form anew, and go on without those that were lost.

docs/membership.md says what is agreed on and why. One thread of a rank does it, of its own (going_on.py); with virtual
time a task.

    drain     nobody sends of its own accord: until no message is under way between the ranks that are left
    survey    who owns what, who has replicas of what nobody owns; what else must be the same on all from now on
    restore   each takes what it owns from now on
    tell      what came back from where; then service goes on

Guarantees
    * Ranks that come to the end of a view have done the same, from the same facts. One that could not begins again with
      the next view: each step may be made again, whatever came of it before.
    * What was rolled back is reported, also what was in a view that did not come to its end.
Assumption: one thread at a time runs ``form``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from intentpm.checkpoint import series
from intentpm.checkpoint.reader import Checkpoint, open_checkpoint
from intentpm.checkpoint.storage import Location, located
from intentpm.foundation.deadlines import wait_ns
from intentpm.foundation.errors import ClosedError, Error, PeerLostError, RankLost
from intentpm.foundation.losses import how_it_failed
from intentpm.runtime._native.engine import Engine
from intentpm.runtime._native.reforming import Reforming, ViewChangedError
from intentpm.runtime._native.store import Table
from intentpm.runtime.loading import check_table, stored_rows
from intentpm.runtime.rank_file import rows_at_once
from intentpm.runtime.rank_losses import (
    Loss,
    RolledBack,
    Told,
    as_error,
    latest,
    pack,
    pack_entries,
    unpack,
    unpack_entries,
)
from intentpm.runtime.saving import STAGES, GoodCheckpoint, Saves

Keys = npt.NDArray[np.int64]
NO_KEYS = np.empty(0, np.int64)
VERSION_MASK = 0xFFFFFFF
STATE_LAGS = 0x80000000
"""replicas.pxd"""
DRAIN_POLL_S = 0.0002
SAVE_POLL_S = 0.001
PROCESS_POLL_S = 0.005
LONGEST_PEER_TIMEOUTS = 30
"""Far longer than the end of what is under way can take."""


class Rows(Protocol):
    """A table's first rows."""

    def rows_of(self, keys: Keys) -> npt.NDArray[Any]: ...


@dataclass(frozen=True, slots=True)
class Survey:
    """What one rank has said of itself."""

    facts: Mapping[str, Any]
    owned: Mapping[int, npt.NDArray[np.bool_]]
    """Table id -> [num_keys]."""
    replicas: Mapping[int, npt.NDArray[np.bool_]]
    moved: Mapping[int, npt.NDArray[np.bool_]]
    """It has heard of their having moved."""
    restored: Mapping[int, npt.NDArray[np.bool_]]
    """It owns them since a view that did not come to its end: others may have replicas that it does not know of."""
    epochs: Mapping[int, int]
    """Table id -> the newest of its keys."""
    result: bytes


class Reformer:
    """Of one rank. ``loss_between`` is for workers, any thread."""

    def __init__(
        self,
        engine: Engine,
        saves: Saves,
        inits: Mapping[str, Rows],
        forget: Callable[[bool], None],
        has_ended: Callable[[int], bool],
        peer_timeout_s: float,
    ) -> None:
        """inits: of each table, by name. forget: what was told to whoever asks for changes is not so any more; given
        whether the newest collective call of this rank has an answer, wherever.
        has_ended: ``Transport.has_ended``.
        """
        self._native = Reforming(engine, self.loss_between, 2 * LONGEST_PEER_TIMEOUTS * peer_timeout_s)
        self._engine, self._saves, self._inits, self._forget = engine, saves, inits, forget
        self._has_ended, self._peer_timeout_s = has_ended, peer_timeout_s
        self._losses: list[Loss] = []
        """As many as there are ``formed``, on every rank."""
        self._untaken: dict[str, list[Keys]] = {}
        """Of views that did not come to their end, too."""
        self._carried: list[tuple[int, RolledBack]] = []
        """By the view, ``Reforming.view``, in which they were rolled back; of such views."""
        self._opened: dict[str, Checkpoint] = {}
        """Looked at whole, while ranks form."""
        self._ended = 0
        """The view that this rank has ended last."""
        self._known_lost: set[int] = set()

    def loss_between(self, told: int, formed: int) -> RankLost:
        """What a worker raises that was told of the first ``told`` times, and is to be told of ``formed``."""
        return as_error(self._losses[told:formed], self._saves.rank)

    def all_told(self, formed: int) -> None:
        """Every worker was, of the first ``formed`` times."""
        self._native.all_told(formed)

    def formed(self) -> int:
        """How often the ranks have formed anew."""
        return self._native.formed()

    def wake_by(self, event_fd: int) -> None:
        """An eventfd that is written to when ``form`` is to be called; -1: none any more."""
        self._native.wake_by(event_fd)

    # -- when ----------------------------------------------------------------------------------------------------------

    def is_due(self) -> bool:
        return self._native.is_due()

    def form(self) -> None:
        """Until the ranks are whole again, or this one has failed: its calls raise why then."""
        while self._native.is_due():
            try:
                self._form()
            except ViewChangedError:
                continue
            except (PeerLostError, ClosedError):
                return
            except BaseException as problem:
                self._engine.fail(how_it_failed(problem))
                raise
            finally:
                self._opened.clear()

    def _form(self) -> None:
        native = self._native
        native.begin()
        self._drain()
        # Once: calls that end meanwhile may add and remove tables.
        here = sorted({_measures(table): table for table in native.tables()}.items())
        names = {table.table_id: table.name for _, table in here}
        for table_id, keys in native.give_up():
            if not native.has_defect("unsure untold"):
                self._untaken.setdefault(names[table_id], []).append(keys)
        self._end_save()
        own = [table for _, table in here]
        surveys = {rank: self._read(said, own) for rank, said in native.exchange(self._survey(own)).items()}
        self._check_quorum(surveys)
        tables = self._common(surveys, own)
        lost = {table.table_id: self._lost_keys(table, surveys) for table in tables}
        versions = native.exchange(pack({}, [native.versions(table, lost[table.table_id]) for table in tables]))
        candidates = {rank: unpack(said)[1] for rank, said in versions.items()}
        self._count_anew(surveys)
        for at, table in enumerate(tables):
            found = {rank: arrays[at] for rank, arrays in candidates.items()}
            self._restore(table, surveys, lost[table.table_id], found)
        said = native.exchange(pack_entries(self._rolled_back(surveys)))
        self._end(surveys, {rank: unpack_entries(data) for rank, data in said.items()})

    # -- drain ---------------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Until each has received what was sent to it. Who sends does so because something came: so nobody will."""
        end_ns = self._end_ns()
        while True:
            sent, received = self._native.counts()
            said = {rank: unpack(data)[1] for rank, data in self._native.exchange(pack({}, [sent, received])).items()}
            pairs = [(one, two) for one in said for two in said if one != two]
            missing = [(one, two) for one, two in pairs if said[one][0][two] != said[two][1][one]]
            if not missing:
                return
            if self._engine.now_ns() > end_ns:
                raise Error(f"messages do not arrive, from and to ranks {missing}")
            self._native.pause(DRAIN_POLL_S)

    def _end_ns(self) -> int:
        """When what is waited for now has to have come: far longer than it can take."""
        return self._engine.now_ns() + LONGEST_PEER_TIMEOUTS * wait_ns(self._peer_timeout_s)

    def _end_save(self) -> None:
        """A save under way fails, and ends: what it holds is taken from it."""
        end_ns = self._end_ns()
        while not self._saves.is_idle():
            if self._engine.now_ns() > end_ns:
                raise Error("a save that was under way when a rank was lost does not end")
            self._native.pause(SAVE_POLL_S)

    # -- survey --------------------------------------------------------------------------------------------------------

    def _survey(self, tables: Sequence[Table]) -> bytes:
        result, flags, answered = self._native.last_result()
        moves = [self._native.moves(table) for table in tables]
        facts = {
            "tables": [[*_measures(table), moves[at][0]] for at, table in enumerate(tables)],
            "numbers": self._native.numbers(),
            "result": [flags, answered],
            "members": self._engine.living(),
            "checkpoints": {name: [good.count, str(good.path)] for name, good in self._saves.good.items()},
            "formed": self._native.formed(),
            "ended": self._ended,
        }
        arrays: list[npt.NDArray[Any]] = []
        for at, table in enumerate(tables):
            arrays += [_bits(table.num_keys, table.owned_keys()), _bits(table.num_keys, table.replica_keys())]
            restored = [entry.keys for _, entry in self._carried if entry.table == table.name]
            arrays += [np.packbits(moves[at][1]), _bits(table.num_keys, np.concatenate([NO_KEYS, *restored]))]
        return pack(facts, [*arrays, np.array(bytearray(result), np.uint8)])

    def _read(self, said: bytes, tables: Sequence[Table]) -> Survey:
        facts, arrays = unpack(said)
        theirs = {tuple(table[:3]): at for at, table in enumerate(facts["tables"])}
        here = [(theirs[_measures(table)], table) for table in tables if _measures(table) in theirs]
        owned, replicas, moved, restored = (
            {table.table_id: _unpacked(arrays[4 * at + i], table.num_keys) for at, table in here} for i in range(4)
        )
        return Survey(
            facts,
            owned,
            replicas,
            moved,
            restored,
            {table.table_id: facts["tables"][at][3] for at, table in here},
            arrays[-1].tobytes(),
        )

    def _check_quorum(self, surveys: Mapping[int, Survey]) -> None:
        """Ranks that cannot be reached may live, and think the same of us: never do both go on."""
        before = sorted({rank for survey in surveys.values() for rank in survey.facts["members"]})
        gone = [rank for rank in before if rank not in surveys]
        if len(surveys) > len(gone):
            return
        if self._native.is_over():
            raise ClosedError("all ranks have closed, or were lost")
        if len(surveys) == len(gone) == 1 and self._await_end(gone[0]):
            return
        if len(surveys) == len(gone) > 1 and before[0] in surveys:
            return
        raise Error(
            f"ranks {gone} cannot be reached any more, but may live and go on; ranks {sorted(surveys)} are too few to "
            "go on without them"
        )

    def _await_end(self, rank: int) -> bool:
        """Of its process, a little after that of its connection. False: it is not known to have ended."""
        end_ns = self._engine.now_ns() + wait_ns(self._peer_timeout_s)
        while not self._has_ended(rank):
            if self._engine.now_ns() > end_ns:
                return False
            self._native.pause(PROCESS_POLL_S)
        return True

    def _common(self, surveys: Mapping[int, Survey], tables: Sequence[Table]) -> list[Table]:
        """The tables that all ranks have told of, in the same order on all. One that not all have will not be made."""
        ids = set.intersection(*(set(survey.owned) for survey in surveys.values()))
        return [table for table in tables if table.table_id in ids]

    def _lost_keys(self, table: Table, surveys: Mapping[int, Survey]) -> Keys:
        return _keys(~np.any([survey.owned[table.table_id] for survey in surveys.values()], axis=0))

    # -- restore -------------------------------------------------------------------------------------------------------

    def _count_anew(self, surveys: Mapping[int, Survey]) -> None:
        """Collective calls, cuts and saves: all go on with the same numbers. A call that one has the answer of is over
        on all; what else is under way fails."""
        numbers = {rank: survey.facts["numbers"] for rank, survey in surveys.items()}
        entered, answered, cuts, called = (max(of[i] for of in numbers.values()) for i in range(4))
        mine = numbers[self._saves.rank]
        if mine[1] < answered == mine[0]:
            who = min(rank for rank, of in numbers.items() if of[1] == answered)
            self._native.take_result(surveys[who].result, *surveys[who].facts["result"])
        made = max(cuts, called)
        self._native.admit(entered, made, (made + 1) * STAGES)
        self._saves.good = _newest_checkpoints(surveys)
        self._saves.forget_taken()
        self._forget(answered == mine[0])

    def _restore(
        self,
        table: Table,
        surveys: Mapping[int, Survey],
        lost: Keys,
        versions: Mapping[int, npt.NDArray[np.int64]],
    ) -> None:
        """versions: of each rank's replicas of the lost keys."""
        native, here = self._native, self._saves.rank
        homes = native.move_homes(table)
        owners = homes.copy()
        for rank, survey in surveys.items():
            owners[survey.owned[table.table_id]] = rank
        chosen, newest = _choose(versions, native.has_defect("older replica"))
        owners[lost] = np.where(chosen >= 0, chosen, owners[lost])
        mine = lost[chosen == here]
        native.forget_replicas(table, lost[chosen != here])
        restored = np.any([survey.restored[table.table_id] for survey in surveys.values()], axis=0)
        native.forget_replicas(table, _keys(restored))
        native.promote(table, mine, (newest[chosen == here] & VERSION_MASK).astype(np.uint32))
        if len(mine) and not native.has_defect("rollback untold"):
            self._carry(RolledBack(table.name, mine, "replica", here))
        without = lost[(chosen < 0) & (owners[lost] == here)]
        if len(without) and not native.has_defect("key left lost"):
            self._restore_rows(table, without)
        epoch = 1 + max(survey.epochs[table.table_id] for survey in surveys.values())
        moved = np.any([survey.moved[table.table_id] for survey in surveys.values()], axis=0)
        native.agree_on_owners(table, owners, moved.view(np.uint8), epoch)
        for rank in native.lost():
            native.forget_holder(table, rank)
        for rank, survey in surveys.items():
            if rank != here:
                native.forget_holder(table, rank, survey.replicas[table.table_id].astype(np.uint8))

    def _restore_rows(self, table: Table, keys: Keys) -> None:
        """Of keys that nobody has: from the last checkpoint that any rank knows, else the first rows.

        Raises MemoryBudgetError: this rank has no room for them.
        """
        self._saves.memory.check_rows(table, len(keys))
        left = np.zeros(table.num_keys, np.bool_)
        left[keys] = True
        good = self._saves.good.get(table.name)
        for checkpoint in [] if good is None else self._checkpoints(good.path):
            with suppress(Error, OSError):  # it is damaged, or gone by now, or without this table
                if str(checkpoint) not in self._opened:
                    self._opened[str(checkpoint)] = open_checkpoint(checkpoint)
                opened = self._opened[str(checkpoint)]
                check_table(opened, table)
                self._adopt_saved(table, left, checkpoint, opened)
        for some in self._adopt(table, _keys(left), self._inits[table.name].rows_of):
            self._carry(RolledBack(table.name, some, "init"))

    def _adopt_saved(self, table: Table, left: npt.NDArray[np.bool_], checkpoint: Location, opened: Checkpoint) -> None:
        """left: keys that nobody has yet; afterwards those of which no row could be read, either."""
        before = left.copy()
        try:
            for keys, columns in opened[table.name].stretches(rows_at_once(table), left):
                self._native.adopt(table, keys, stored_rows(table, columns))
                left[keys] = False
        finally:
            taken = _keys(before & ~left)
            if len(taken):
                self._carry(RolledBack(table.name, taken, "checkpoint", None, checkpoint, opened.clocks))

    def _adopt(self, table: Table, keys: Keys, rows_of: Callable[[Keys], npt.NDArray[Any]]) -> Iterator[Keys]:
        """Part by part: what this rank owns from now on."""
        most = rows_at_once(table)
        for first in range(0, len(keys), most):
            some = keys[first : first + most]
            self._native.adopt(table, some, rows_of(some))
            yield some

    def _checkpoints(self, newest: Location) -> list[Location]:
        """That one, and those that the job made before it, newest first."""
        found = [newest]
        with suppress(OSError, ValueError):
            before = [path for path in series.numbered(newest.parent) if int(path.name) < int(newest.name)]
            found += reversed([path for path in before if series.is_whole(path)])
        return found[::-1] if self._native.has_defect("older checkpoint") else found

    # -- tell ----------------------------------------------------------------------------------------------------------

    def _carry(self, entry: RolledBack) -> None:
        self._carried.append((self._native.view(), entry))

    def _rolled_back(self, surveys: Mapping[int, Survey]) -> list[Told]:
        """Also what another rank has not told, interrupted just before it ended a view that this one has ended."""
        formed = [survey.facts["formed"] for survey in surveys.values()]
        ended = max(survey.facts["ended"] for survey in surveys.values())
        told = [
            (at, 0, entry) for at in range(min(formed), len(self._losses)) for entry in self._losses[at].rolled_back
        ]
        return told + [(max(formed), view, entry) for view, entry in self._carried if view > ended]

    def _end(self, surveys: Mapping[int, Survey], said: Mapping[int, list[Told]]) -> None:
        here, newest = len(self._losses), max(survey.facts["formed"] for survey in surveys.values())
        for at in range(here, newest):
            who = min(rank for rank, survey in surveys.items() if survey.facts["formed"] > at)
            missed = [entry for of, _, entry in said[who] if of == at]
            self._losses.append(Loss([], [], sorted(surveys), missed, {}))
        anew = [(view, entry) for entries in said.values() for of, view, entry in entries if of == newest]
        by_view = [entry for _, entry in sorted(anew, key=lambda one: one[0])]
        before = [entry for missed in self._losses[here:] for entry in missed.rolled_back]
        loss = self._loss(sorted(surveys), latest(by_view), before)
        self._losses.append(loss)
        if not self._native.resume(newest + 1):
            del self._losses[here:]
            raise ViewChangedError
        self._ended = self._native.view()
        self._known_lost.update(loss.ranks)
        self._untaken.clear()
        self._carried.clear()

    def _loss(self, living: list[int], rolled_back: list[RolledBack], before: list[RolledBack]) -> Loss:
        """before: what was rolled back in views that other ranks have ended, and this one had not."""
        whys = {rank: why for rank, why in self._native.lost().items() if rank not in self._known_lost}
        sure = {name: [NO_KEYS] for name in self._untaken}
        for entry in rolled_back + before:
            sure.setdefault(entry.table, []).append(entry.keys)
        unsure = {
            name: np.setdiff1d(np.concatenate(keys), np.concatenate(sure[name])) for name, keys in self._untaken.items()
        }
        unsure = {name: keys for name, keys in unsure.items() if len(keys)}
        return Loss(list(whys), list(whys.values()), living, rolled_back, unsure)


def _newest_checkpoints(surveys: Mapping[int, Survey]) -> dict[str, GoodCheckpoint]:
    """Of each table, as the rank knows that knows of most."""
    known = [(name, *good) for survey in surveys.values() for name, good in survey.facts["checkpoints"].items()]
    return {name: GoodCheckpoint(count, located(path)) for name, count, path in sorted(known, key=lambda one: one[1])}


def _measures(table: Table) -> tuple[int, str, int]:
    """What makes it the same one on two ranks: one that is not to be may have left its id to another already."""
    return table.table_id, table.name, table.num_keys


def _keys(marks: npt.NDArray[np.bool_]) -> Keys:
    return np.flatnonzero(marks).astype(np.int64, copy=False)


def _bits(num_keys: int, keys: Keys) -> npt.NDArray[np.uint8]:
    marks = np.zeros(num_keys, np.bool_)
    marks[keys] = True
    return np.packbits(marks)


def _unpacked(bits: npt.NDArray[np.uint8], num_keys: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(bits, count=num_keys).view(np.bool_)


def _choose(versions: Mapping[int, npt.NDArray[np.int64]], oldest: bool) -> tuple[npt.NDArray[np.int64], Keys]:
    """The rank with the newest replica of each key, one whose optimizer state is as new before others, the lowest of
    several; -1: there is none. And its version.

    Versions wrap (state.pxd), and those of a key never lie half the range apart. oldest: a planted defect.
    """
    ranks = np.array(sorted(versions), np.int64)
    known = np.stack([versions[rank] for rank in ranks])
    base = known.max(axis=0)
    ahead = (known - base + (VERSION_MASK + 1) // 2 & VERSION_MASK) - (VERSION_MASK + 1) // 2
    least = np.iinfo(np.int64).min  # of those that have none
    lags = (known & STATE_LAGS) != 0
    ahead = np.where(known < 0, least, -ahead if oldest else 2 * ahead - lags)
    best = ahead.argmax(axis=0)
    return np.where(base >= 0, ranks[best], -1), np.take_along_axis(known, best[None], axis=0)[0]
