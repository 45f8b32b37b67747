"""Races: threads of one process on the same rows, tables and connections, in as many interleavings as time allows.

Values are whole numbers, so sums are exact; every row is one number repeated, so a torn row shows. Short in the normal
suite; ``make sanitize`` runs the same under AddressSanitizer and ThreadSanitizer. INTENTPM_RACE_S sets the seconds each
test races for.
"""

import faulthandler
import gc
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.network import together

import intentpm
import intentpm.checkpoint
from intentpm.foundation.errors import ClosedError, PeerLostError
from intentpm.testing import run_ranks

RACE_S = float(os.environ.get("INTENTPM_RACE_S", "0.4"))
DEADLINE_S = 40.0 + 5 * RACE_S
SIZE = 3
WORKERS = 2
"""Per rank."""
SUM_KEYS = 24
OWN_KEYS = 6
"""Per worker."""
HOT_KEYS = np.arange(8)
OUTSTANDING = 8
MODES = ("adaptive", "adapm", "relocate", "replicate", "static", "full_replication")
WITH_REPLICAS = ("adaptive", "adapm", "replicate", "full_replication")

pytestmark = pytest.mark.timeout(DEADLINE_S + 20)


@pytest.fixture(autouse=True)
def no_hang(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """A thread that hangs without looking at signals (in a lock, say) takes the process with it and shows where."""
    with capsys.disabled():
        standard_error = os.dup(2)
    faulthandler.dump_traceback_later(DEADLINE_S + 40, exit=True, file=standard_error)
    yield
    faulthandler.cancel_dump_traceback_later()
    os.close(standard_error)


def uniform_rows(values: np.ndarray, items: int, dtype: str) -> np.ndarray:
    """Rows [len(values), items] of one number each."""
    return np.repeat(np.asarray(values)[:, None], items, axis=1).astype(dtype)


def assert_not_torn(rows: np.ndarray) -> None:
    torn = np.flatnonzero((rows != rows[:, :1]).any(axis=1))
    assert not len(torn), f"a row was read while it was written: {rows[torn[0]]}"


# -- one rank, many threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("items", "dtype"), [(3, "float32"), (96, "float32"), (40, "int64"), (24, "float16")])
def test_threads_pull_push_and_set_the_same_rows(items: int, dtype: str) -> None:
    threads, num_keys = 4, 6
    pushed = np.zeros((threads, num_keys), np.int64)
    most = 2 if dtype == "float16" else 9
    with intentpm.init() as pm:
        sums = pm.create_table("sums", num_keys, items, dtype)
        last = pm.create_table("last", num_keys, items, dtype)

        def race(position: int) -> None:
            worker, draw = pm.worker(), np.random.default_rng([position, items])
            stop_at, calls = time.monotonic() + RACE_S, 0
            # float16 is exact up to 2048: the calls are limited there.
            while time.monotonic() < stop_at and (dtype != "float16" or calls < 100):
                keys = draw.integers(0, num_keys, draw.integers(1, 40))
                deltas = draw.integers(0, most, len(keys)) if dtype != "float16" else np.zeros(len(keys), np.int64)
                deltas[0] = 1
                np.add.at(pushed[position], keys, deltas)
                worker.push(sums, keys, uniform_rows(deltas, items, dtype))
                worker.set(last, keys, np.full((len(keys), items), position + 1, dtype))
                assert_not_torn(worker.pull(sums, keys))
                assert_not_torn(worker.pull(last, keys))
                assert_not_torn(sums.rows_here(keys))
                calls += 1

        together(*(lambda position=position: race(position) for position in range(threads)), timeout_s=DEADLINE_S)
        worker, everything = pm.worker(), np.arange(num_keys)
        assert np.array_equal(worker.pull(sums, everything), uniform_rows(pushed.sum(axis=0), items, dtype))
        final = worker.pull(last, everything)
        assert_not_torn(final)
        assert set(final[:, 0].astype(int)) <= set(range(1, threads + 1))
        assert pm.stats()["tables"]["sums"]["local"] > 0


# -- several ranks ---------------------------------------------------------------------------------------------------


@dataclass
class Board:
    """What the ranks of one process know of each other, outside the job under test."""

    racers: list["Racer"] = field(default_factory=list)

    def expected_sums(self) -> np.ndarray:
        return sum((racer.pushed for racer in self.racers), np.zeros(SUM_KEYS, np.int64))


class Racer:
    """One worker thread: random calls on ``sums`` (all push) and on its own keys of ``own`` (exact at any time)."""

    def __init__(self, pm: Any, tables: Sequence[Any], seed: int) -> None:
        self.worker = pm.worker()
        self.sums, self.own = tables
        position = pm.rank * WORKERS + self.worker.worker_id
        self.draw = np.random.default_rng([seed, position])
        self.own_keys = np.arange(OWN_KEYS) + position * OWN_KEYS
        self.own_values = np.zeros(OWN_KEYS, np.int64)
        self.pushed = np.zeros(SUM_KEYS, np.int64)
        self.flying: deque[Any] = deque()
        self.calls = 0
        self.steps: list[Callable[[], None]] = [
            self.push, self.push, self.pull, self.overwrite, self.overwrite, self.intend, self.intend, self.abandon,
        ]  # fmt: skip

    def race(self, stop_at: float) -> None:
        while self.calls == 0 or time.monotonic() < stop_at:
            self.steps[self.draw.integers(len(self.steps))]()
            self.worker.advance_clock()
            if self.draw.random() < 0.02:
                self.worker.wait_sync()
            while len(self.flying) > OUTSTANDING:
                self.flying.popleft().wait()
            self.calls += 1
        self.settle()

    def settle(self) -> None:
        """Ends with a long intent for the hot keys at every rank, so that replicas exist where the mode has any."""
        while self.flying:
            self.flying.popleft().wait()
        self.worker.intent(self.sums, HOT_KEYS, self.worker.clock, self.worker.clock + 1000)
        self.worker.wait_sync()

    def some_keys(self) -> np.ndarray:
        return self.draw.integers(0, SUM_KEYS, self.draw.integers(1, 12))

    def push(self) -> None:
        keys = self.some_keys()
        deltas = self.draw.integers(-9, 10, len(keys))
        np.add.at(self.pushed, keys, deltas)
        rows = uniform_rows(deltas, 5, "float64")
        if self.draw.random() < 0.5:
            self.flying.append(self.worker.push_async(self.sums, keys, rows))
        else:
            self.worker.push(self.sums, keys, rows)

    def pull(self) -> None:
        assert_not_torn(self.worker.pull(self.sums, self.some_keys()))
        assert_not_torn(self.worker.pull(self.own, self.draw.integers(0, self.own.num_keys, 8)))

    def overwrite(self) -> None:
        """Sets and adds to own keys, and reads its own writes while they are under way."""
        which = self.draw.permutation(OWN_KEYS)[: self.draw.integers(1, OWN_KEYS + 1)]
        values = self.draw.integers(-999, 1000, len(which))
        call = self.draw.choice(["set", "set_async", "push", "push_async"])
        self.own_values[which] = values + (self.own_values[which] if call.startswith("push") else 0)
        future = getattr(self.worker, call)(self.own, self.own_keys[which], uniform_rows(values, 17, "float32"))
        if future is not None and self.draw.random() < 0.5:
            self.flying.append(future)
        read = self.worker.pull(self.own, self.own_keys)
        wrong = np.flatnonzero((read != uniform_rows(self.own_values, 17, "float32")).any(axis=1))
        assert not len(wrong), (
            f"after {call}({self.own_keys[which]}, {values}) key {self.own_keys[wrong[0]]} reads {read[wrong[0]]}, "
            f"its only writer wrote {self.own_values[wrong[0]]}"
        )

    def intend(self) -> None:
        first = self.worker.clock + self.draw.integers(0, 4)
        last = first + self.draw.integers(1, 9)
        luck = self.draw.random()
        if luck < 0.05:
            self.worker.intent(self.sums, self.some_keys(), -(2**63), last)
            self.worker.intent(self.sums, self.some_keys(), 2**63 - 2)
        elif luck < 0.5:
            self.worker.intent(self.sums, self.some_keys(), first, last)
        else:
            self.worker.intent(self.own, self.draw.integers(0, self.own.num_keys, 6), first, last)

    def abandon(self) -> None:
        """Pulls that nobody waits for, dropped or lost in a garbage cycle: their answers must not be written."""
        self.worker.pull_async(self.sums, self.some_keys())
        if self.draw.random() < 0.1:
            cycle: list[Any] = [self.worker.pull_async(self.sums, self.some_keys())]
            cycle.append(cycle)
            del cycle
            gc.collect(0)
        self.flying.append(self.worker.pull_async(self.sums, self.some_keys()))


def create_tables(pm: Any) -> tuple[Any, Any]:
    sums = pm.create_table("sums", SUM_KEYS, 5, "float64")
    return sums, pm.create_table("own", SIZE * WORKERS * OWN_KEYS, 17)


def check_rank(pm: Any, tables: Sequence[Any], board: Board) -> int:
    """After all have raced, every copy of every key must be exact. Returns the number of replicas here."""
    pm.barrier()
    sums, own = tables
    worker = pm.worker()
    expected = {
        "sums": uniform_rows(board.expected_sums(), 5, "float64"),
        "own": uniform_rows(own_values_of(board, own.num_keys), 17, "float32"),
    }
    replicas = 0
    for table in (sums, own):
        held = table.replica_keys()
        assert np.array_equal(table.rows_here(held), expected[table.name][held]), f"replicas of {table.name}: {held}"
        assert np.array_equal(worker.pull(table, np.arange(table.num_keys)), expected[table.name]), table.name
        replicas += len(held)
        wait_for_owners(pm, table)
    return replicas


def own_values_of(board: Board, num_keys: int) -> np.ndarray:
    values = np.zeros(num_keys, np.int64)
    for racer in board.racers:
        values[racer.own_keys] = racer.own_values
    return values


def wait_for_owners(pm: Any, table: Any) -> None:
    """Relocations offered at the end may be under way: then every key must have one owner.

    Ranks do not look at the same moment: a key that moves meanwhile is seen at neither of two, or at both.
    """
    deadline = time.monotonic() + 10
    while True:
        owned = [np.frombuffer(keys, np.int64) for keys in pm.allgather(table.owned_keys().tobytes())]
        owners = np.bincount(np.concatenate(owned), minlength=table.num_keys)
        if (owners == 1).all():
            return
        # All ranks see the same owners, so all decide alike, except for the deadline: rank 0's counts.
        late = pm.allgather(bytes([time.monotonic() > deadline]))[0] == b"\1"
        none, several = np.flatnonzero(owners == 0), np.flatnonzero(owners > 1)
        assert not late, f"keys {none} of {table.name} have no owner, {several} have several"


@pytest.mark.parametrize("management", MODES)
@pytest.mark.parametrize("kind", ["loopback", "tcp"])
def test_workers_of_three_ranks(kind: str, management: str) -> None:
    board = Board()
    seed = MODES.index(management)

    def rank(pm: Any) -> int:
        tables = create_tables(pm)
        racers = [Racer(pm, tables, seed) for _ in range(WORKERS)]
        board.racers += racers
        pm.barrier()
        stop_at = time.monotonic() + RACE_S
        together(*(lambda racer=racer: racer.race(stop_at) for racer in racers), timeout_s=DEADLINE_S)
        return check_rank(pm, tables, board)

    # Spinning, so that workers drive; without, so that they and the progress thread sleep and are woken.
    spin_us = 100 if kind == "loopback" else 0
    replicas = run_ranks(SIZE, rank, kind, timeout=DEADLINE_S, management=management, spin_us=spin_us)
    assert all(racer.calls > 0 for racer in board.racers)
    assert (sum(replicas) > 0) == (management in WITH_REPLICAS), "the race did not exercise what it is about"


@pytest.mark.parametrize("kind", ["loopback", "tcp"])
def test_intents_acted_on_at_once(kind: str) -> None:
    """timing="immediate", a tiny sync interval and a sync threshold: more rounds, more records withheld."""
    board = Board()

    def rank(pm: Any) -> int:
        tables = create_tables(pm)
        racers = [Racer(pm, tables, 77) for _ in range(WORKERS)]
        board.racers += racers
        pm.barrier()
        stop_at = time.monotonic() + RACE_S
        together(*(lambda racer=racer: racer.race(stop_at) for racer in racers), timeout_s=DEADLINE_S)
        return check_rank(pm, tables, board)

    run_ranks(SIZE, rank, kind, timeout=DEADLINE_S, timing="immediate", sync_interval=1e-6, sync_threshold=20.0)


@pytest.mark.parametrize("kind", ["loopback", "tcp"])
def test_any_thread_may_wait_for_a_future(kind: str) -> None:
    """Futures of one worker are waited for and dropped by another thread while the worker goes on."""

    def rank(pm: Any) -> None:
        sums, own = create_tables(pm)
        racer = Racer(pm, (sums, own), 5)
        handed: deque[Any] = deque()
        ended = threading.Event()

        def issue() -> None:
            stop_at = time.monotonic() + RACE_S
            while time.monotonic() < stop_at:
                keys = racer.some_keys()
                handed.append(racer.worker.pull_async(sums, keys))
                handed.append(racer.worker.push_async(sums, keys, np.ones((len(keys), 5))))
                while len(handed) > 64:
                    time.sleep(0)
            ended.set()

        def wait() -> None:
            while handed or not ended.is_set():
                if handed:
                    handed.popleft().wait()

        together(issue, wait, timeout_s=DEADLINE_S)
        pm.barrier()

    run_ranks(SIZE, rank, kind, timeout=DEADLINE_S)


@pytest.mark.parametrize("kind", ["loopback", "tcp"])
def test_a_write_reaches_the_owner_without_help(kind: str) -> None:
    """Written to a replica, after a wait_sync of another thread may have collected earlier writes meanwhile."""
    tables: dict[int, Any] = {}

    def wait_for(value: float, key: int) -> None:
        deadline = time.monotonic() + 10
        while (row := tables[0].rows_here(np.array([key]))[0])[0] != value:
            assert time.monotonic() < deadline, f"key {key} of the owner is {row}, not {value}"
            time.sleep(0.0005)

    def rank(pm: Any) -> None:
        tables[pm.rank] = pm.create_table("t", 40, 2, "float64")
        pm.barrier()
        if pm.rank == 0:
            pm.barrier()
            return
        (key, *_) = tables[0].owned_keys()
        writer, other = pm.worker(), pm.worker()
        writer.intent(tables[1], [key], 0, 10**9)
        writer.wait_sync()
        pushes, written, stop_at = 10, 0, time.monotonic() + RACE_S
        while time.monotonic() < stop_at:
            together(
                lambda: [writer.push(tables[1], [key], np.ones((1, 2))) for _ in range(pushes)],
                lambda: [other.wait_sync() for _ in range(3)],
            )
            time.sleep(0.005)
            writer.push(tables[1], [key], np.ones((1, 2)))
            written += pushes + 1
            wait_for(written, key)
        assert list(tables[1].replica_keys()) == [key]
        pm.barrier()

    run_ranks(2, rank, kind, timeout=DEADLINE_S, management="replicate")


# -- tables, statistics and the end, while workers work --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["loopback", "tcp"])
def test_tables_workers_and_statistics_while_workers_work(kind: str) -> None:
    def rank(pm: Any) -> None:
        tables = create_tables(pm)
        racers = [Racer(pm, tables, 9) for _ in range(WORKERS)]
        stop_at = time.monotonic() + RACE_S

        def create() -> None:
            for number in range(8):
                table = pm.create_table(f"t{number}", 10, 3, init=float(number))
                worker = pm.worker()
                assert (worker.pull(table, np.arange(10)) == number).all()
                pm.barrier()

        def look() -> None:
            while time.monotonic() < stop_at:
                stats = pm.stats()
                assert stats["tables"]["sums"]["rows"] >= 0
                for table in tables:
                    assert not set(table.owned_keys()) - set(range(table.num_keys))
                    table.replica_keys()
                    repr(racers[0].worker)

        together(create, look, *(lambda racer=racer: racer.race(stop_at) for racer in racers), timeout_s=DEADLINE_S)

    run_ranks(SIZE, rank, kind, timeout=DEADLINE_S)


def work_until_closed(racer: Racer) -> None:
    """Races until the manager is closed under it; anything but an error that says so is a failure."""
    try:
        while True:
            racer.steps[racer.draw.integers(len(racer.steps))]()
            racer.worker.advance_clock()
            racer.flying.clear()
    except (ClosedError, PeerLostError):
        pass


@pytest.mark.parametrize("kind", ["alone", "loopback", "tcp"])
def test_close_while_workers_work(kind: str) -> None:
    def rank(pm: Any) -> None:
        tables = create_tables(pm)
        racers = [Racer(pm, tables, 13) for _ in range(WORKERS)]
        pm.barrier()

        def close() -> None:
            time.sleep(RACE_S / 4)
            pm.close()

        together(close, *(lambda racer=racer: work_until_closed(racer) for racer in racers), timeout_s=DEADLINE_S)

    run_ranks(1 if kind == "alone" else SIZE, rank, "tcp" if kind == "tcp" else "loopback", timeout=DEADLINE_S)


@pytest.mark.parametrize("kind", ["loopback", "tcp"])
def test_saves_are_called_for_while_workers_work(kind: str, tmp_path: Path) -> None:
    """Rank 0 calls, the progress threads hear of it, and a thread of each rank looks, cuts and saves meanwhile."""
    board = Board()

    def rank(pm: Any) -> int:
        tables = create_tables(pm)
        saves = pm.periodic_saves(tmp_path, 1e-6, keep=1)
        racers = [Racer(pm, tables, 17) for _ in range(WORKERS)]
        board.racers += racers
        pm.barrier()
        stop_at = time.monotonic() + RACE_S

        def save() -> None:
            saves.step(lambda: None)
            while time.monotonic() < stop_at:
                saves.step(lambda: None)

        together(save, *(lambda racer=racer: racer.race(stop_at) for racer in racers), timeout_s=DEADLINE_S)
        last = saves.save_now(lambda: None)
        check_rank(pm, tables, board)
        return int(last.name)

    made = run_ranks(SIZE, rank, kind, timeout=DEADLINE_S)
    assert len(set(made)) == 1
    assert made[0] > 1
    with intentpm.checkpoint.verify(tmp_path) as opened:
        assert opened.number == made[0]


# -- a lost rank -----------------------------------------------------------------------------------------------------


def loop(call: Callable[[], Any]) -> None:
    while True:
        call()


@pytest.mark.parametrize("kind", ["loopback", "tcp"])
def test_a_lost_rank_ends_every_wait(kind: str) -> None:
    """While the threads of two ranks pull, flood, synchronise and meet at a barrier, the third gives up."""
    lost: dict[str, int] = {}

    def expect_loss(name: str, call: Callable[[], Any]) -> None:
        with pytest.raises(PeerLostError) as caught:
            loop(call)
        lost[name] = caught.value.rank

    def rank(pm: Any) -> None:
        sums, own = create_tables(pm)
        pm.barrier()
        if pm.rank == SIZE - 1:
            time.sleep(RACE_S / 2)
            pm.abort("gave up, as the test wants")
            return
        workers = [pm.worker() for _ in range(4)]

        def pull_all() -> None:
            rows = workers[0].pull(own, np.arange(own.num_keys), out=np.full((own.num_keys, 17), -1, np.float32))
            assert (rows >= 0).all(), "a pull that could not read all rows did not say so"

        keys, rows, ones = np.arange(SUM_KEYS), np.ones((SUM_KEYS, 5)), np.ones((1, 17), np.float32)
        waits = {
            "pull": pull_all,
            "flood": lambda: workers[1].push_async(sums, keys, rows),
            "sync": lambda: (workers[2].intent(sums, keys, workers[2].advance_clock()), workers[2].wait_sync()),
            "intend": lambda: (
                workers[3].intent(own, keys, workers[3].advance_clock()),
                workers[3].push(own, [3], ones),
            ),
            "barrier": pm.barrier,
        }
        together(
            *(lambda name=name, call=call: expect_loss(f"{name} {pm.rank}", call) for name, call in waits.items()),
            timeout_s=DEADLINE_S,
        )
        pm.abort("lost a rank")

    run_ranks(SIZE, rank, kind, timeout=DEADLINE_S, peer_timeout=5.0)
    assert len(lost) == 2 * 5
    assert set(lost.values()) == {SIZE - 1}, f"the wrong rank is blamed: {lost}"
