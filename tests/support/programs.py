"""Random programs over a simulated job, with a model of what every read may return.

A program has six tables, three of them with an optimizer. All values are integers in float64, so sums are exact, and
every row is one number repeated, so a torn row shows.

    shared    any worker pushes; reads are bounded from both sides
    private   each key has one worker that writes it (push and set); that worker's reads are exact. With every other
              seed it has SGD at lr 1, and some of its pushes are gradients
    wide      as shared, rows of 96 numbers: more than one cache line, several keys per message
    stepped   as shared, with SGD at lr 1: what a push would add is pushed as a gradient, by its negative, or pushed
    gathered  as shared, with Adagrad: gradients are pushed; what is read is the accumulator, the sum of their squares
    counted   as shared, with Adam at lr 0: gradients are pushed, and what is read is the count of steps; plain pushes
              too, which the weights sum up: looked at in the end

What a read of a shared key must lie between:

    at most   initial value + every delta whose push has begun
    at least  what this worker read here before + its own pushes since (it reads its own writes, and copies only grow.
              A value from another rank is no bound: a replica granted while it was under way may be older);
              what had been synchronised (``wait_sync``) before this worker's own last ``wait_sync`` began;
              without replicas also every push that had returned (sequential consistency)

At the end every value is exact. The model adds no assumption about where keys are, so it holds in every mode.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from support.simulation import Simulation, simulate

from intentpm.runtime._native.slabs import stride_for
from intentpm.runtime._native.store import stored_bytes
from intentpm.runtime._native.tiered_rows import SEAT_BYTES_BESIDE
from intentpm.runtime.config import Config
from intentpm.runtime.optimisers import SGD, Adagrad, Adam, RowOptimiser
from intentpm.transports.sim_model import NetworkModel

OPTIMIZERS = {"stepped": SGD(lr=1.0), "gathered": Adagrad(lr=0.5), "counted": Adam(lr=0.0)}
STATE_READ = {"gathered": "sum", "counted": "step"}
ROW_ITEMS = {"shared": 2, "private": 3, "wide": 96, "stepped": 5, "gathered": 33, "counted": 7}
DEVICES = ("gpu", "tiered")
MODES = ("adaptive", "relocate", "replicate", "static", "full_replication", "adapm")
WITHOUT_REPLICAS = ("static", "relocate")


@dataclass(frozen=True, slots=True)
class Plan:
    """What varies from program to program besides its steps."""

    size: int
    workers_per_rank: int
    steps: int
    keys: dict[str, int]
    config: Config
    model: NetworkModel
    early_records: int = 1
    hands_over: bool = False
    gathering_us: float = 0.0
    private_steps: bool = False
    storages: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """By (table, rank), where rows do not lie on the host: "gpu" or "tiered", on an emulated device."""
    seats: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """Of those that are tiered: rows that the device has room for."""

    @property
    def optimizers(self) -> dict[str, RowOptimiser]:
        return OPTIMIZERS | ({"private": SGD(lr=1.0)} if self.private_steps else {})

    @classmethod
    def draw(cls, seed: int, management: str | None = None, ranks: int | None = None) -> "Plan":
        draw = random.Random(f"plan {seed}")
        size = draw.choice((2, 2, 3, 4, 5, 8))
        return cls(
            size=ranks or size,
            workers_per_rank=draw.choice((1, 1, 2)),
            steps=draw.choice((5, 15, 30)),
            keys={name: draw.choice((1, 3, 8, 20)) for name in ROW_ITEMS},
            config=Config(
                management=management or draw.choice(MODES),  # type: ignore[arg-type]
                timing=draw.choice(("adaptive", "immediate")),  # type: ignore[arg-type]
                seed=seed,
            ),
            model=NetworkModel.disorderly(seed),
            early_records=draw.choice((1, 2, 5, 256)),
            hands_over=draw.choice((False, True, True)),
            private_steps=draw.random() < 0.5,
            gathering_us=draw.choice((0.0, 100.0, 3000.0)),
        )

    def with_devices(self, seed: int, kinds: Sequence[str] = DEVICES) -> "Plan":
        """The same, with rows on emulated devices: of some tables, on some ranks, of all in some programs."""
        draw = random.Random(f"devices {seed}")
        share = draw.choice((0.3, 0.7, 1.0))
        chosen = [(name, rank) for name in ROW_ITEMS for rank in range(self.size) if draw.random() < share]
        storages = {each: draw.choice(kinds) for each in chosen}
        seats = {each: draw.choice((1, 2, 4)) for each, kind in storages.items() if kind == "tiered"}
        return replace(
            self,
            storages=storages,
            seats=seats,
            steps=5 * self.steps if seats else self.steps,
            config=replace(self.config, device=f"emulated:{seed}"),
        )

    def where(self, name: str, rank: int) -> dict[str, Any]:
        """Arguments of ``create_table``."""
        storage = self.storages.get((name, rank), "host")
        if storage != "tiered":
            return {"storage": storage}
        stored = stored_bytes(np.dtype(np.float64), (ROW_ITEMS[name],), self.optimizers.get(name))
        seat_bytes = stride_for(stored) + SEAT_BYTES_BESIDE
        return {"storage": storage, "device_memory": self.seats[name, rank] * seat_bytes}


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a worker. ``keys`` may hold duplicates; ``amounts`` are the deltas or values, one per key."""

    call: str
    table: str = ""
    keys: tuple[int, ...] = ()
    amounts: tuple[int, ...] = ()
    window: tuple[int, int] = (0, 0)
    duplicates: str = ""
    """Of ``push_grad``; empty: it is a plain push."""

    def effect(self) -> tuple[list[int], list[int]]:
        """Keys and what is added to what is read of them."""
        keys, amounts = list(self.keys), list(self.amounts)
        if self.table not in STATE_READ:
            return keys, amounts
        if self.duplicates == "sum":
            keys = sorted(set(self.keys))
            amounts = [sum(amount for other, amount in self.pairs() if other == key) for key in keys]
        if self.table == "counted":
            return keys, [int(self.duplicates != "")] * len(keys)
        return keys, [amount**2 for amount in amounts]

    def pairs(self) -> list[tuple[int, int]]:
        return list(zip(self.keys, self.amounts, strict=True))


@dataclass(slots=True)
class SharedTable:
    """The model of a table anybody may push to. All int64 [num_keys]."""

    initial: np.ndarray
    begun: np.ndarray = field(init=False)
    returned: np.ndarray = field(init=False)
    synchronised: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.begun = self.initial.copy()
        self.returned = self.initial.copy()
        self.synchronised = self.initial.copy()


class WorkerProgram:
    """One worker's steps, checked against the model as they happen. Runs inside the task of that worker."""

    def __init__(self, program: "Program", rank: int, number: int) -> None:
        self.program = program
        self.rank = rank
        self.number = number
        self.worker = program.job.ranks[rank].worker()
        self.tables = {name: program.tables[name][rank] for name in ROW_ITEMS}
        self.known = {name: model.initial.copy() for name, model in program.shared.items()}
        self.unsynchronised = {name: np.zeros_like(model.initial) for name, model in program.shared.items()}
        self.private = program.private_initial.copy()
        """Exact for the keys this worker owns the right to write."""
        self.futures: list[tuple[Any, Callable[[], None]]] = []
        self.last_window_end = 0

    def my_private_keys(self) -> list[int]:
        return list(range(self.number, len(self.private), self.program.worker_count))

    def do(self, step: Step) -> None:
        """Makes the call and checks what it returns; then the invariants."""
        getattr(self, f"_{step.call}")(step)
        self.program.after_step()

    # -- reads -------------------------------------------------------------------------------------------------------

    def _pull(self, step: Step) -> None:
        at_least = self._lower_bound(step)
        table = self.tables[step.table]
        remote_before = self.worker.access_counts(table.table_id)[2]
        rows = self._read(step)
        self._check_read(step, at_least, rows)
        if step.table != "private" and self.worker.access_counts(table.table_id)[2] == remote_before:
            np.maximum.at(self.known[step.table], list(step.keys), rows[:, 0].astype(np.int64))

    def _read(self, step: Step) -> np.ndarray:
        table, keys = self.tables[step.table], np.array(step.keys, np.int64)
        if step.table not in STATE_READ:
            return self.worker.pull(table, keys)
        return self.worker.pull_state(table, keys)[STATE_READ[step.table]].reshape(len(keys), -1)

    def _pull_async(self, step: Step) -> None:
        if step.table in STATE_READ:
            self._pull(step)
            return
        at_least = self._lower_bound(step)
        future = self.worker.pull_async(self.tables[step.table], np.array(step.keys, np.int64))
        # Later writes of this worker may show in it, so only the bounds can be checked.
        self.futures.append((future, lambda: self._check_read(step, at_least, future.result(), exact=False)))

    def _lower_bound(self, step: Step) -> np.ndarray | None:
        if step.table == "private":
            return None
        bound = self.known[step.table]
        if self.program.config.management in WITHOUT_REPLICAS:
            bound = np.maximum(bound, self.program.shared[step.table].returned)
        return bound[list(step.keys)]

    def _check_read(self, step: Step, at_least: np.ndarray | None, rows: np.ndarray, exact: bool = True) -> None:
        read = rows[:, 0]
        assert (rows == read[:, None]).all(), f"{self}: torn row in {step}: {rows.tolist()}"
        assert (read == np.floor(read)).all(), f"{self}: {step} read {read.tolist()}, no sum of whole numbers"
        keys = list(step.keys)
        if step.table == "private":
            self._check_private(step, keys, read, exact)
            return
        assert at_least is not None
        at_most = self.program.shared[step.table].begun[keys]
        assert (read >= at_least).all(), f"{self}: {step} read {read.tolist()}, must be at least {at_least.tolist()}"
        assert (read <= at_most).all(), f"{self}: {step} read {read.tolist()}, must be at most {at_most.tolist()}"

    def _check_private(self, step: Step, keys: list[int], read: np.ndarray, exact: bool) -> None:
        for key, value in zip(keys, read.tolist(), strict=True):
            if exact and key % self.program.worker_count == self.number:
                assert value == self.private[key], (
                    f"{self}: {step} read {value} of its own key, wrote {self.private[key]}"
                )
            known = value in self.program.private_values[key] or value in self.program.private_sums[key]
            assert known, f"{self}: {step} read {value}, which key {key} never was"

    # -- writes ------------------------------------------------------------------------------------------------------

    def _push(self, step: Step) -> None:
        self._begin_push(step)
        table, keys = self.tables[step.table], np.array(step.keys, np.int64)
        if step.duplicates:
            self.worker.push_grad(table, keys, self._gradients(step), duplicates=step.duplicates)
        else:
            self.worker.push(table, keys, self._rows(step))
        self.program.note_written(self, step)
        self._end_push(step)

    def _push_async(self, step: Step) -> None:
        self._begin_push(step)
        table, keys = self.tables[step.table], np.array(step.keys, np.int64)
        if step.duplicates:
            future = self.worker.push_grad_async(table, keys, self._gradients(step), duplicates=step.duplicates)
        else:
            future = self.worker.push_async(table, keys, self._rows(step))
        self.program.note_written(self, step)
        self.futures.append((future, lambda: (future.wait(), self._end_push(step))[1]))

    def _set(self, step: Step) -> None:
        self._begin_set(step)
        self.worker.set(self.tables[step.table], np.array(step.keys, np.int64), self._rows(step))
        self.program.note_written(self, step)

    def _set_async(self, step: Step) -> None:
        self._begin_set(step)
        future = self.worker.set_async(self.tables[step.table], np.array(step.keys, np.int64), self._rows(step))
        self.program.note_written(self, step)
        self.futures.append((future, future.wait))

    def _rows(self, step: Step) -> np.ndarray:
        return np.repeat(np.array(step.amounts, np.float64)[:, None], ROW_ITEMS[step.table], axis=1)

    def _gradients(self, step: Step) -> np.ndarray:
        return -self._rows(step) if step.table in ("stepped", "private") else self._rows(step)

    def _begin_push(self, step: Step) -> None:
        if step.table == "private":
            for key in set(step.keys):
                amounts = [amount for other, amount in zip(step.keys, step.amounts, strict=True) if other == key]
                self.program.private_sums[key] |= _partial_sums(int(self.private[key]), amounts)
                self._write_private(key, int(self.private[key]) + sum(amounts))
            return
        if step.table == "counted" and not step.duplicates:
            np.add.at(self.program.counted_weights, list(step.keys), step.amounts)
        keys, amounts = step.effect()
        np.add.at(self.program.shared[step.table].begun, keys, amounts)
        np.add.at(self.known[step.table], keys, amounts)
        np.add.at(self.unsynchronised[step.table], keys, amounts)

    def _end_push(self, step: Step) -> None:
        if step.table != "private":
            keys, amounts = step.effect()
            np.add.at(self.program.shared[step.table].returned, keys, amounts)

    def _begin_set(self, step: Step) -> None:
        for key, amount in zip(step.keys, step.amounts, strict=True):
            self._write_private(key, amount)

    def _write_private(self, key: int, value: int) -> None:
        self.private[key] = value
        self.program.private_values[key].add(value)
        self.program.private_final[key] = value

    # -- intent and time ---------------------------------------------------------------------------------------------

    def _intent(self, step: Step) -> None:
        start, end = (self.worker.clock + offset for offset in step.window)
        self.worker.intent(self.tables[step.table], np.array(step.keys, np.int64), start, end)
        self.last_window_end = max(self.last_window_end, end)

    def _advance_clock(self, step: Step) -> None:
        self.worker.advance_clock()

    def _wait_sync(self, step: Step) -> None:
        self._finish_futures()
        before = {name: model.synchronised.copy() for name, model in self.program.shared.items()}
        self.worker.wait_sync()
        for name, model in self.program.shared.items():
            np.maximum(self.known[name], before[name], out=self.known[name])
            model.synchronised += self.unsynchronised[name]
            self.unsynchronised[name][:] = 0

    def _wait_futures(self, step: Step) -> None:
        self._finish_futures()

    def _finish_futures(self) -> None:
        futures, self.futures = self.futures, []
        for _future, finish in futures:
            finish()

    def finish(self) -> None:
        """The program's end: no write open, no intent left, everything at the owners."""
        self._finish_futures()
        while self.worker.clock < self.last_window_end:
            self.worker.advance_clock()
        self._wait_sync(Step("wait_sync"))

    def check_state(self) -> None:
        """Everybody has stopped writing: accumulators and counts are exact."""
        for table, name in STATE_READ.items():
            model = self.program.shared[table].begun
            read = self.worker.pull_state(self.tables[table], np.arange(len(model)))[name].reshape(len(model), -1)
            assert (read == model[:, None]).all(), f"{self}: {name} is {read.tolist()}, must be {model.tolist()}"

    def __str__(self) -> str:
        return f"worker {self.number} of rank {self.rank}"


class Program:
    """A job with its workers and the model of its tables."""

    def __init__(self, job: Simulation, plan: Plan, check_every: int = 1) -> None:
        self.job = job
        self.plan = plan
        self.config = plan.config
        self.worker_count = plan.size * plan.workers_per_rank
        self.check_every = check_every
        self.steps_done = 0
        initial = {name: np.arange(plan.keys[name], dtype=np.int64) * 1000 for name in ROW_ITEMS}
        self.counted_weights = initial["counted"].copy()
        zeros = {name: np.zeros_like(initial[name]) for name in STATE_READ}
        self.shared = {name: SharedTable((initial | zeros)[name]) for name in ROW_ITEMS if name != "private"}
        self.private_initial = initial["private"]
        self.private_final = initial["private"].copy()
        self.private_written = initial["private"].copy()
        self.written = [{name: np.zeros_like(initial[name]) for name in self.shared} for _ in range(plan.size)]
        """Per rank, what calls of its workers that have returned have added; of ``private``, what keys are by them."""
        self.private_values = [{int(value)} for value in initial["private"]]
        self.private_sums: list[set[int]] = [set() for _ in initial["private"]]
        """What a key may be while a push that has it several times is under way: its deltas come in any order."""
        self.tables = {name: self._make_table(name, initial[name]) for name in ROW_ITEMS}
        self.workers = [
            WorkerProgram(self, rank, rank * plan.workers_per_rank + i)
            for rank in range(plan.size)
            for i in range(plan.workers_per_rank)
        ]

    def note_written(self, worker: WorkerProgram, step: Step) -> None:
        """A call that writes has returned."""
        if step.table == "private":
            self.private_written[list(step.keys)] = worker.private[list(step.keys)]
        else:
            keys, amounts = step.effect()
            np.add.at(self.written[worker.rank][step.table], keys, amounts)

    def _make_table(self, name: str, initial: np.ndarray) -> list[Any]:
        rows = np.repeat(initial.astype(np.float64)[:, None], ROW_ITEMS[name], axis=1)
        return self.job.on_every_rank(
            lambda manager: manager.create_table(
                name, len(rows), ROW_ITEMS[name], dtype="float64", init=rows, optimizer=self.plan.optimizers.get(name),
                **self.plan.where(name, manager.rank),
            )
        )  # fmt: skip

    def check_devices(self) -> None:
        """Nothing was used on a device before the event that says it is there; seats are as they should be."""
        for (name, rank), storage in self.plan.storages.items():
            tier = self.tables[name][rank].tier
            defects = tier.rows.device.defects + (tier.audit() if storage == "tiered" else [])
            assert not defects, f"table {name} of rank {rank}: {defects[0]} ({len(defects)} in all)"

    def after_step(self) -> None:
        self.steps_done += 1
        self.job.trim()
        if self.steps_done % self.check_every == 0:
            self.job.checker.check()
            self.check_devices()

    def end(self) -> None:
        """All workers finish; then every value must be exact, every copy the same, and no replica left."""
        for worker in self.workers:
            self.job.spawn(worker.rank, worker.finish, f"end of {worker}")
        self.job.run()
        # Only now has everybody stopped writing: one more wait_sync each refreshes what others wrote meanwhile.
        for worker in self.workers:
            self.job.spawn(worker.rank, worker.finish, f"last wait_sync of {worker}")
        self.job.run()
        for worker in self.workers:
            self.job.spawn(worker.rank, worker.check_state, f"last look of {worker}")
        self.job.on_every_rank(lambda manager: manager.barrier())
        self.job.settle()
        values = {name: model.begun for name, model in self.shared.items()}
        values |= {"private": self.private_final, "counted": self.counted_weights}
        expected = {
            name: np.repeat(values[name].astype(np.float64)[:, None], ROW_ITEMS[name], axis=1)
            for name in values
            if name != "gathered"
        }
        none = np.empty(0, np.int64)
        everywhere = {name: [none] * self.plan.size for name in ROW_ITEMS}
        intended = None if self.config.management == "full_replication" else everywhere
        self.job.checker.check()
        self.job.checker.check_quiet(expected, intended)
        self.check_devices()


def _partial_sums(start: int, amounts: Sequence[int]) -> set[int]:
    sums = {start}
    for amount in amounts:
        sums |= {value + amount for value in sums}
    return sums


def draw_step(draw: random.Random, worker: WorkerProgram) -> Step:
    """A random call this worker may make."""
    intents, clocks = (15, 15) if not worker.program.plan.seats else (45, 60)  # windows come and end, and rows give way
    call = draw.choices(
        ("pull", "pull_async", "push", "push_async", "set", "set_async", "intent", "advance_clock", "wait_sync",
         "wait_futures"),
        (20, 6, 20, 8, 6, 4, intents, clocks, 4, 3),
    )[0]  # fmt: skip
    if call in ("advance_clock", "wait_sync", "wait_futures"):
        return Step(call)
    table = "private" if call.startswith("set") else draw.choice(tuple(ROW_ITEMS))
    keys = _draw_keys(draw, worker, table, call)
    if call == "intent":
        start = draw.randint(-2, 12 if not worker.program.plan.seats else 3)
        return Step(call, table, keys, window=(start, start + draw.randint(1, 6)))
    if call.startswith("set"):
        value = draw.randint(1, 10**6)
        return Step(call, table, keys, (value,) * len(keys))
    amounts = tuple(draw.randint(1, 9) for _ in keys)
    return Step(call, table, keys, amounts, duplicates=_draw_duplicates(draw, worker.program.plan, call, table))


def _draw_duplicates(draw: random.Random, plan: Plan, call: str, table: str) -> str:
    if table not in plan.optimizers or not call.startswith("push"):
        return ""
    return draw.choice(("sum", "each") if table == "gathered" else ("", "sum", "each"))


def _draw_keys(draw: random.Random, worker: WorkerProgram, table: str, call: str) -> tuple[int, ...]:
    writes = call.startswith(("push", "set"))
    candidates: Sequence[int] = range(worker.program.plan.keys[table])
    if table == "private" and writes:
        candidates = worker.my_private_keys()
    if not candidates:
        return ()
    return tuple(draw.choices(candidates, k=draw.choice((1, 1, 2, 5, 12))))


def run_seed(
    seed: int,
    management: str | None = None,
    check_every: int = 8,
    prepare: Any = None,
    ranks: int | None = None,
    devices: Sequence[str] = (),
) -> str:
    """Runs the program of a seed; returns its trace hash. prepare: called with the job before the first step.

    management, ranks: in place of what the seed would draw. devices: how rows of some tables lie on emulated devices.
    """
    plan = Plan.draw(seed, management, ranks)
    if devices:
        plan = plan.with_devices(seed, devices)
    with simulate(plan.size, seed, plan.config, plan.model, max_virtual_s=60.0) as job:
        job.ask_early(plan.early_records)
        job.hand_over(plan.hands_over)
        job.gather(plan.gathering_us)
        program = Program(job, plan, check_every)
        if prepare is not None:
            prepare(job)
        for worker in program.workers:
            job.spawn(worker.rank, lambda worker=worker: run_worker(program, worker), str(worker))
        job.run()
        program.end()
        trace: str = job.network.trace_hash
    return trace


def run_worker(program: Program, worker: WorkerProgram, then: Callable[[], None] = lambda: None) -> None:
    """Its steps, and what comes ``then`` after each."""
    draw = random.Random(f"steps {program.job.seed} {worker.number}")
    for _ in range(program.plan.steps):
        worker.do(draw_step(draw, worker))
        then()
        if draw.random() < 0.7:
            program.job.network.pause(draw.choice((0.0, 1.0, 20.0, 500.0)))
