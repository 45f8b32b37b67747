"""Random programs in which ranks die, and the others go on: what becomes of every write is as RankLost says.

Each worker adds 1, by plain pushes or steps of an optimizer, to a column of its own of every row (of its accumulators,
in an Adagrad's table): so a row says which writes of each worker are in it. When the ranks that are left have formed
anew, and before service goes on,

    every key has one owner; a row whose owner lives is as it was; one that is rolled back is what its source had: the
    replica named, than which no other was newer, or the table's first row. What was rolled back is what was not owned.
    That goes for weights and state; only of replicas with the same weights one may have an older accumulator.
    Those that are left are enough to go on (``may_go_on``). Where they are not, all of them end, with an error.

In the end a worker's column of a key is the number of its writes, counted anew from what it was rolled back to; where
RankLost says that writes are unsure, or was raised instead of a call's end, it is between what was there and that.
"""

import random
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from support.losses_member import TABLES, Member
from support.losses_saved import LossSaves, TogetherSteps
from support.programs import MODES
from support.simulation import Simulation, simulate

from intentpm.foundation.errors import Error, PeerLostError, RankLost
from intentpm.runtime.config import Config
from intentpm.runtime.saving import GoodCheckpoint
from intentpm.transports.sim_model import NetworkModel

LATEST_DEATH_US = 6000.0


@dataclass(frozen=True, slots=True)
class LossPlan:
    """What varies from program to program besides its steps."""

    size: int
    workers_per_rank: int
    steps: int
    keys: dict[str, int]
    config: Config
    model: NetworkModel
    deaths: tuple[tuple[float, int], ...]
    """(us after the one before, rank), in order."""
    hand_over: bool
    """Contended keys move on all the time."""
    refuses: bool
    """What is sent to a rank that is dead is refused before its loss is reported."""
    seen: bool
    """That a process has ended is known, as on one host."""

    @classmethod
    def draw(cls, seed: int, deaths: int, management: str | None = None) -> "LossPlan":
        draw = random.Random(f"losses {seed}")
        size = draw.choice((2, 3, 3, 4, 5))
        victims = draw.sample(range(size), min(deaths, size - 1))
        pauses = [draw.uniform(0, LATEST_DEATH_US)]
        pauses += [draw.choice((0.0, 20.0, 100.0, 300.0, 1000.0, LATEST_DEATH_US)) * draw.random() for _ in victims[1:]]
        return cls(
            size=size,
            workers_per_rank=draw.choice((1, 1, 2)),
            steps=draw.choice((15, 30, 60)),
            keys={name: draw.choice((1, 3, 8, 20)) for name in TABLES},
            config=Config(
                management=management or draw.choice(MODES),  # type: ignore[arg-type]
                timing=draw.choice(("adaptive", "immediate")),  # type: ignore[arg-type]
                seed=seed,
                on_loss="continue",
                peer_timeout=0.5,
            ),
            model=NetworkModel.disorderly(seed),
            deaths=tuple(zip(pauses, victims, strict=True)),
            hand_over=seed % 3 == 0,
            refuses=draw.random() < 0.4,
            seen=draw.random() < 0.7,
        )


def check_too_few(error: Error) -> None:
    """It is why a rank ends that cannot go on."""
    assert "too few to go on without them" in str(error), error


def may_go_on(before: set[int], left: set[int], ended: set[int]) -> bool:
    """Whether ``left`` may go on, of those that went on last. ended: ranks whose processes are known to have."""
    gone = before - left
    if len(before) == 2 and len(left) == 1:
        return gone <= ended
    return len(left) > len(gone) or (len(left) == len(gone) and min(before) in left)


def form_without(job: Simulation, rank: int, tell: bool = True, after_us: float = 0.0) -> dict[int, Exception]:
    """The rank dies, and the others form anew; from then on the job is theirs. tell: they are told of it.

    Returns what those raised that could not.
    """
    raised: dict[int, Exception] = {}

    def die() -> None:
        if after_us:
            job.network.pause(after_us)
        job.network.kill(rank)
        job.ranks[rank]._engine.fail("was killed")

    def form(manager: Any) -> None:
        while rank in manager.living or manager.going_on.reformer.is_due():
            try:
                manager.going_on.reformer.form()
            except Exception as error:
                raised[manager.rank] = error
                return
            job.network.pause(30.0)

    if after_us:
        job.spawn(rank, die)
    else:
        die()
    for manager in job.ranks:
        if manager.rank != rank:
            job.spawn(manager.rank, lambda manager=manager: form(manager), f"former {manager.rank}")
    job.run()
    job.lose({rank, *raised})
    for manager in job.ranks if tell else ():
        with suppress(RankLost):
            manager._collectives.tell()
    return raised


class Watched:
    """The native side of a rank's ``Reformer``: has the program look at what happens between its steps."""

    def __init__(self, native: Any, program: "LossProgram", rank: int) -> None:
        self._native, self._program, self._rank = native, program, rank

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def give_up(self) -> Any:
        untaken = self._native.give_up()
        self._program.note_still(self._rank)
        return untaken

    def last_result(self) -> Any:
        """Of the survey: saves have ended by then."""
        self._program.good[self._rank] = dict(self._program.managers[self._rank]._saves.good)
        return self._native.last_result()

    def admit(self, *numbers: int) -> None:
        self._program.check_admitted(self._rank, set(range(self._program.plan.size)) - set(self._native.lost()))
        self._native.admit(*numbers)

    def resume(self, formed: int) -> bool:
        self._program.check_formed(self._rank)
        return bool(self._native.resume(formed))


class LossProgram:
    """A job whose ranks die, its workers, and what their writes must have led to."""

    def __init__(self, job: Simulation, plan: LossPlan, folder: Path | None = None) -> None:
        """folder: where it is saved; None: it is not."""
        self.job, self.plan, self.managers = job, plan, list(job.ranks)
        self.dead: set[int] = set()
        self.workers = plan.size * plan.workers_per_rank
        self.rank_of = np.repeat(np.arange(plan.size), plan.workers_per_rank)
        self.tables = {
            name: job.create_table(name, plan.keys[name], self.workers, dtype="float64", init=0.0, optimizer=optimizer)
            for name, optimizer in TABLES.items()
        }
        shapes = {name: (count, self.workers) for name, count in plan.keys.items()}
        self.least = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        self.most = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        self.synchronised = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        self.doubts = {name: np.zeros((plan.size, count), np.int64) for name, count in plan.keys.items()}
        """Per rank, of a key: how often its writes were unsure."""
        self.resets = {name: np.zeros(count, np.int64) for name, count in plan.keys.items()}
        """Of a key: how often what was written to it counts anew."""
        self.at_owner = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        self.began = np.zeros((2, *shapes["gathered"]))
        """Of the Adagrad's table: weights and accumulators from which what was written counts."""
        self.still: dict[int, dict[str, tuple[Any, Any, Any, Any]]] = {}
        """Per rank: as ``_rows``, when nothing was under way any more."""
        self.checked: set[frozenset[int]] = set()
        self.kept: list[Any] = []
        """Workers: their intents hold until the end."""
        self.last = frozenset(range(plan.size))
        """Those that went on last, of which one at least has ended the view."""
        self.admitted = {rank: set(range(plan.size)) for rank in range(plan.size)}
        """Per rank: who is in the job, as it has agreed with the others last."""
        self.failed: set[int] = set()
        """Those that ended because they were too few."""
        self.forming: set[int] = set()
        self.told = 0
        self.came_from_checkpoint = False
        self.saves = LossSaves(self, folder) if folder is not None else None
        self.good: dict[int, dict[str, GoodCheckpoint]] = {}
        """Per rank: the last checkpoints that it knew."""
        self.save_draws = [random.Random(f"saves {job.seed} {rank}") for rank in range(plan.size)]
        self.together = TogetherSteps(self)
        for manager in job.ranks:
            assert manager.going_on is not None
            manager.going_on.reformer._native = Watched(manager.going_on.reformer._native, self, manager.rank)
            if not plan.seen:
                manager.going_on.reformer._has_ended = lambda rank: False

    def living(self) -> list[Any]:
        return [manager for manager in self.job.ranks if manager.rank not in self.dead]

    # -- deaths --------------------------------------------------------------------------------------------------------

    def kill(self, rank: int) -> None:
        self.dead.add(rank)
        self.job.network.kill(rank, refuses=self.plan.refuses)
        self.job.ranks[rank]._engine.fail("was killed")
        for manager in self.living():
            self.job.spawn(manager.rank, lambda manager=manager: self._form(manager, rank), f"former {manager.rank}")

    def _form(self, manager: Any, lost: int) -> None:
        while lost in manager.living and not self.is_out(manager.rank):
            if manager.going_on.reformer.is_due() and manager.rank not in self.forming:
                self.forming.add(manager.rank)  # one task at a time
                try:
                    manager.going_on.reformer.form()
                except Error as error:
                    if manager.rank not in self.dead:
                        self._note_failed(manager, error)
                self.forming.discard(manager.rank)
            else:
                self.job.network.pause(30.0)

    def _note_failed(self, manager: Any, error: Error) -> None:
        check_too_few(error)
        left = set(range(self.plan.size)) - set(manager.going_on.reformer._native.lost())
        if not self.failed:  # the others hear that it has ended, and count anew
            assert not may_go_on(set(self.last), left, self.known_ended()), f"of {set(self.last)}, {left} were enough"
        self.failed.add(manager.rank)

    def known_ended(self) -> set[int]:
        return self.dead if self.plan.seen else set()

    def is_out(self, rank: int) -> bool:
        """It is dead, or has failed."""
        return rank in self.dead or bool(self.managers[rank]._engine.has_failed())

    def run_deaths(self) -> None:
        for pause_us, rank in self.plan.deaths:
            self.job.network.pause(pause_us)
            self.kill(rank)

    # -- what must be when they have formed ----------------------------------------------------------------------------

    def check_admitted(self, rank: int, left: set[int]) -> None:
        """``rank`` is to go on with ``left``: they must be enough of those that they were with."""
        before = set().union(*(self.admitted[who] for who in left))
        assert may_go_on(before, left, self.known_ended()), f"of {before}, {left} go on; of {self.dead} that are dead"
        self.admitted[rank] = left

    def _rows(self, rank: int, name: str) -> tuple[Any, Any, Any, Any]:
        """What counts writes [K, W], which keys are owned, which are replicas; and, stacked, weights and what counts.

        What counts is whole, but where an accumulator came back from a copy that had the mean of the row's.
        """
        table = self.tables[name][rank]
        stored = np.full((2, table.num_keys, self.workers), -1.0)
        owned, replicas = table.owned_keys(), table.replica_keys()
        for keys in (owned, replicas):
            stored[0, keys] = table.rows_here(keys)
            stored[1, keys] = stored[0, keys] if name != "gathered" else table.rows_here(keys, stored=True)["sum"]
        return stored[1].astype(np.int64), owned, replicas, stored

    def note_still(self, rank: int) -> None:
        self.still[rank] = {name: self._rows(rank, name) for name in TABLES}

    def check_formed(self, rank: int) -> None:
        """Called when ``rank`` has come to the end: all that are left have done their part by then."""
        reformer = self.job.ranks[rank].going_on.reformer
        lost = frozenset(reformer._native.lost())
        left = [who for who in range(self.plan.size) if who not in lost]
        self.last = frozenset(left)
        for name in TABLES if lost not in self.checked else ():
            entries = [entry for entry in reformer._losses[-1].rolled_back if entry.table == name]
            self._check_table(name, left, lost, entries)
        self.checked.add(lost)
        for loss in reformer._losses:
            told = [(entry.table, int(key)) for entry in loss.rolled_back for key in entry.keys]
            assert len(told) == len(set(told)), f"told twice: {sorted(told)}"
        for name in TABLES:
            self._note_unsure(name, rank, reformer._losses[-1].unsure.get(name, ()))

    def _check_table(self, name: str, left: list[int], lost: frozenset[int], entries: list[Any]) -> None:
        count = self.plan.keys[name]
        sources = {int(key): entry for entry in entries for key in entry.keys}
        now = {who: self._rows(who, name) for who in left}
        for key in range(count):
            owners = [who for who in left if key in now[who][1]]
            assert len(owners) == 1, f"key {key} of {name}: ranks {owners} own it, of {left}"
            row, stored = now[owners[0]][0][key], now[owners[0]][3][:, key]
            kept = [who for who in left if key in self.still[who][name][1]]
            if kept:
                assert (stored == self.still[kept[0]][name][3][:, key]).all(), (
                    f"key {key} of {name} was kept, and has changed"
                )
            else:
                assert key in sources, f"key {key} of {name} had no owner, and nobody says that it was rolled back"
                self._check_source(name, key, stored, left, sources[key])
            if name == "gathered" and (not kept or key in sources):
                self.began[:, key] = stored
            if not kept or key in sources:
                self.least[name][key] = self.most[name][key] = row
                self.resets[name][key] += 1
                self.synchronised[name][key] = np.minimum(self.synchronised[name][key], row)
            for worker in np.flatnonzero(np.isin(self.rank_of, list(lost))):
                assert (
                    self.synchronised[name][key, worker] <= row[worker] <= self.most[name][key, worker]
                    or key in sources
                )
                self.least[name][key, worker] = self.most[name][key, worker] = row[worker]
                self.synchronised[name][key, worker] = row[worker]
            self.at_owner[name][key] = row

    def _check_source(self, name: str, key: int, now: Any, left: list[int], entry: Any) -> None:
        """now: of the key, its weights and what counts its writes."""
        holders = [who for who in left if key in self.still[who][name][2]]
        if not holders:
            known = [self.good[who][name] for who in left if name in self.good[who]]
            path = max(known, key=lambda good: good.count).path if known else None
            source = "init" if path is None else "checkpoint"
            assert (entry.source, entry.path) == (source, path), f"key {key} of {name}: {entry}, expected {path}"
            saved = np.zeros((2, self.workers))
            if path is not None and self.saves is not None:
                saved = self.saves.stored_in(path)[name][:, key]
                self.came_from_checkpoint = True
            assert (now == saved).all(), f"key {key} of {name} is {now}, in {path} {saved}"
            return
        assert entry.source == "replica", f"key {key} of {name}: {entry}, holders {holders}"
        assert entry.rank in holders, f"key {key} of {name}: {entry}, holders {holders}"
        source = self.still[entry.rank][name][3][:, key]
        assert (now == source).all(), f"key {key} of {name} is {now}, its replica was {source}"
        for who in holders:
            others = ~np.isin(self.rank_of, [who, entry.rank])
            older = now[0, others] < self.still[who][name][3][0, key][others]
            assert not older.any(), f"key {key} of {name}: the replica of rank {who} is newer than that of {entry.rank}"

    def _note_unsure(self, name: str, rank: int, keys: Any) -> None:
        columns = np.flatnonzero(self.rank_of == rank)
        for key in keys:
            self.doubts[name][rank, key] += 1
            at_owner = self.at_owner[name][key, columns]
            self.least[name][key, columns] = np.minimum(self.least[name][key, columns], at_owner)
            self.synchronised[name][key, columns] = np.minimum(self.synchronised[name][key, columns], at_owner)

    # -- workers -------------------------------------------------------------------------------------------------------

    def run_worker(self, rank: int, number: int) -> None:
        if rank in self.dead:
            return
        worker = self.job.ranks[rank].worker()
        self.kept.append(worker)
        draw = random.Random(f"steps {self.job.seed} {number}")
        member = Member(self, worker, rank, number, draw)
        is_first = number == self.plan.workers_per_rank * rank
        for step in range(self.plan.steps):
            if self.is_out(rank):
                return
            if is_first:
                self._do_first(member, step)
            self._do(member, member.step)
            if draw.random() < 0.7:
                self.job.network.pause(draw.choice((0.0, 1.0, 20.0, 500.0)))
        while any(death not in self.dead for _, death in self.plan.deaths):
            self.job.network.pause(500.0)
        for _ in range(3):  # a loss may interrupt each of them
            if not self.is_out(rank):
                self._do(member, member.finish)
        saves = self.saves
        if is_first and saves is not None and not self.is_out(rank):
            self._do(member, lambda: saves.finish(rank))

    def _do_first(self, member: Member, step: int) -> None:
        """What a rank's first worker does besides its own steps."""
        saves, rank = self.saves, member.rank
        if saves is not None:
            self._do(member, lambda: saves.step(rank, self.save_draws[rank]))
        for number in (number for number, at in enumerate(self.together.steps) if at == step):
            self._do(member, lambda number=number: self.together.make(rank, number))

    def _do(self, member: Member, what: Any) -> None:
        try:
            what()
        except RankLost as loss:
            self.note_told(loss)
        except PeerLostError as error:
            if member.rank not in self.dead:
                check_too_few(error)
        except Error:
            if member.rank not in self.dead:
                raise

    def note_told(self, loss: RankLost) -> None:
        assert loss.ranks, loss
        assert loss.living, loss
        self.told += 1

    def end(self) -> None:
        """Those that are left finish; then every value must be as it was said."""
        if self.failed:
            self._end_failed()
            return
        for manager in self.living():
            self.job.spawn(manager.rank, lambda manager=manager: self._wait_until_formed(manager), "waits")
        self.job.run()
        for manager in self.living():
            with suppress(RankLost):  # whose workers had ended before
                manager._collectives.tell()
        self._on_living(self._synchronise)
        self._on_living(self._synchronise)
        self._on_living(lambda manager: manager.barrier())
        self.job.settle()
        self.job.checker.check()
        self.job.checker.check_quiet()
        left = [manager.rank for manager in self.living()]
        for manager in self.living():
            assert manager.living == left, f"rank {manager.rank} knows {manager.living}, left are {left}"
        for name in TABLES:
            self._check_values(name)
        if self.saves is not None:
            self.saves.check()

    def _end_failed(self) -> None:
        """Those that are left were too few, and all of them have ended."""
        left = {manager.rank for manager in self.living()}
        assert left <= self.failed, f"of {left}, {self.failed} have ended, and the others have gone on"
        self.job.lose(left)

    def _on_living(self, function: Any) -> None:
        for manager in self.living():
            self.job.spawn(manager.rank, lambda manager=manager: function(manager), f"end of rank {manager.rank}")
        self.job.run()

    def _wait_until_formed(self, manager: Any) -> None:
        while not self.is_out(manager.rank) and (set(manager.living) & self.dead or manager.going_on.reformer.is_due()):
            self.job.network.pause(100.0)

    def _synchronise(self, manager: Any) -> None:
        with manager.worker() as worker:
            worker.wait_sync()

    def _check_values(self, name: str) -> None:
        for manager in self.living():
            rows, owned, _, stored = self._rows(manager.rank, name)
            least, most = self.least[name][owned], self.most[name][owned]
            wrong = (rows[owned] < least) | (rows[owned] > most)
            assert not wrong.any(), (
                f"rank {manager.rank}, table {name}, keys {owned[wrong.any(axis=1)]}: "
                f"{rows[owned][wrong.any(axis=1)]}, must be from {least[wrong.any(axis=1)]} to "
                f"{most[wrong.any(axis=1)]}"
            )
            if name == "gathered":
                self._check_steps(manager.rank, stored[:, owned], owned)

    def _check_steps(self, rank: int, stored: Any, keys: Any) -> None:
        """Each step of an Adagrad is as long as if they had come one by one, or shorter where several are one block."""
        moved, steps = stored - self.began[:, keys]
        steps = np.rint(steps)  # each adds 1, to accumulators that may have begun as the mean of some
        shortest = steps / np.sqrt(np.maximum(stored[1], 1e-9))
        longest = np.zeros_like(shortest)
        for at in range(int(steps.max(initial=0))):
            longest += np.where(at < steps, 1 / np.sqrt(self.began[1, keys] + at + 1), 0.0)
        wrong = (moved < shortest - 1e-6) | (moved > longest + 1e-6)
        assert not wrong.any(), (
            f"rank {rank}, keys {keys[wrong.any(axis=1)]}: {moved[wrong]}, must be from {shortest[wrong]} to "
            f"{longest[wrong]}"
        )


def run_loss_seed(
    seed: int, deaths: int = 1, management: str | None = None, folder: Path | None = None, **changes: Any
) -> LossProgram:
    """Runs the program of a seed, in which ``deaths`` ranks die. folder: it is saved there, now and then."""
    plan = replace(LossPlan.draw(seed, deaths, management), **changes)
    with simulate(plan.size, seed, plan.config, plan.model, max_virtual_s=120.0) as job:
        job.hand_over(plan.hand_over)
        job.gather((0.0, 100.0, 3000.0)[seed % 3])
        program = LossProgram(job, plan, None if folder is None else folder / str(seed))
        for number in range(program.workers):
            rank = int(program.rank_of[number])
            job.spawn(rank, lambda rank=rank, number=number: program.run_worker(rank, number), f"worker {number}")
        job.spawn(0, program.run_deaths, "deaths")
        job.run()
        job.lose(program.dead)
        program.end()
    return program
