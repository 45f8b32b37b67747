"""``memory_budget``: what is refused, and what goes when room is needed. That it holds for a process is measured in
``tests/multiprocess/test_memory_budget.py``; random programs run under budgets in ``tests/protocol/test_budgets.py``.
"""

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from support.budgets import budget_of, need_of
from support.simulation import simulate

import intentpm
import intentpm.checkpoint
from intentpm.runtime.config import Config
from intentpm.testing import run_ranks

KEYS, ITEMS = 3000, 64


def needs(size: int, **options) -> list[int]:
    return [need_of(KEYS, ITEMS, rank, size, **options) for rank in range(size)]


def test_a_table_that_does_not_fit_is_refused_on_every_rank_with_the_arithmetic() -> None:
    def main(pm):
        with pytest.raises(intentpm.MemoryBudgetError) as refused:
            pm.create_table("wide", KEYS, ITEMS)
        made = pm.create_table("narrow", KEYS, 1)
        assert pm.worker().pull(made, range(KEYS)).sum() == 0
        return str(refused.value)

    budget = budget_of([max(needs(3))]) - 100
    for rank, text in enumerate(run_ranks(3, main, memory_budget=budget)):
        found = re.search(r"needs (\d+) bytes on this rank: (\d+) to know .* (\d+) for each of its (\d+) rows", text)
        assert found is not None, text
        needed, fixed, row, rows = map(int, found.groups())
        assert needed == fixed + row * rows, f"rank {rank}: {text}"
        assert str(budget) in text


@pytest.mark.parametrize("writes_before", [False, True])
def test_copies_go_when_a_table_needs_their_room(writes_before: bool) -> None:
    """As many as need be; of copies that were written to all, for what they kept goes back to the system together."""
    room = 2000
    budget = budget_of([max(needs(2, copies=room)) + 2048])
    with simulate(2, 5, Config(memory_budget=budget)) as job:
        tables = job.create_table("first", KEYS, ITEMS)
        workers = job.on_every_rank(lambda pm: pm.worker())

        def write(pm):
            workers[pm.rank].push(tables[pm.rank], np.arange(KEYS), np.ones((KEYS, ITEMS), np.float32))

        def intend(pm):
            workers[pm.rank].intent(tables[pm.rank], np.arange(KEYS), 0, 1000)
            workers[pm.rank].wait_sync()
            if writes_before:
                write(pm)
            return len(tables[pm.rank].replica_keys()) + len(tables[pm.rank].owned_keys())

        held = job.on_every_rank(intend)
        assert sum(held) > KEYS + 100
        second = job.create_table("second", KEYS // 2, ITEMS)
        job.settle()
        left = sum(len(t.replica_keys()) + len(t.owned_keys()) for t in tables)
        assert left < sum(held)
        if not writes_before:
            assert left > KEYS + 500
            job.on_every_rank(write)
        job.on_every_rank(lambda pm: workers[pm.rank].wait_sync())
        for pm in job.ranks:
            assert pm._memory.taken() <= pm._engine.budget.table_bytes
        rows = job.on_every_rank(lambda pm: workers[pm.rank].pull(tables[pm.rank], np.arange(KEYS)))
        assert all((found == 2).all() for found in rows)
        assert len(second) == 2


def test_a_save_that_has_no_room_fails_alone(tmp_path: Path) -> None:
    """Rank 1 makes its cut late: all that rank 0 writes until then is set apart, and too much of it."""

    def main(pm):
        table = pm.create_table("t", KEYS, ITEMS)
        worker = pm.worker()
        mine = table.owned_keys()
        if pm.rank == 1:
            pm.allgather(b"")
        saving = pm.save(tmp_path / "saved", wait=False)
        if pm.rank == 0:
            worker.push(table, mine, np.ones((len(mine), ITEMS), np.float32))
            pm.allgather(b"")
        with pytest.raises(intentpm.CheckpointError, match=r"written to faster .*memory_budget"):
            saving.result(60)
        assert intentpm.latest(tmp_path / "saved") is None
        pm.barrier()
        pm.save(tmp_path / "saved")
        return float(worker.pull(table, range(KEYS)).sum()), len(mine)

    found = run_ranks(2, main, memory_budget=budget_of([max(needs(2))]))
    assert [total for total, _ in found] == [found[0][1] * ITEMS] * 2


def test_intents_that_have_no_room_are_forgotten() -> None:
    def main(pm):
        table = pm.create_table("t", KEYS, ITEMS)
        worker = pm.worker()
        for start in range(1000, 1100):
            worker.intent(table, range(KEYS), start)
        refused = pm.stats()["intents"]["refused"]
        assert pm._memory.report()["intents"] <= budget // 32
        worker.close()
        assert pm._memory.report()["intents"] == 0
        pm.barrier()
        return refused

    budget = budget_of([max(needs(2))])
    assert all(refused > 50 * KEYS for refused in run_ranks(2, main, memory_budget=budget))


def test_what_is_kept_for_who_asks_for_changes_has_to_fit() -> None:
    with intentpm.init(memory_budget=budget_of([need_of(KEYS, 1), 4 * KEYS])) as pm:
        table = pm.create_table("t", KEYS, 1)
        assert sum(len(keys) for keys, _ in pm.changed_since("one", table)) == KEYS
        with pytest.raises(intentpm.MemoryBudgetError, match=r"changed_since\('two'\) .* needs 12000 bytes"):
            next(pm.changed_since("two", table))


def test_what_a_load_knows_of_keys_has_to_fit_while_it_lasts(tmp_path: Path) -> None:
    """On every rank: one alone has no room."""

    def saved(pm):
        return pm.save(tmp_path, [pm.create_table("t", KEYS, 1, init=1.0)])

    def load(pm):
        table = pm.create_table("t", KEYS, 1)
        pm.barrier()
        if pm.rank == 1:
            pm._memory.keep("a test", pm._engine.budget.table_bytes - pm._memory.taken() - 2 * KEYS + 1)
        taken = pm._memory.taken()
        with pytest.raises(intentpm.CheckpointError, match=r"rank 1: load.* needs 6000 bytes .*memory_budget"):
            pm.load(path)
        pm.barrier()
        assert not pm.worker().pull(table, range(KEYS)).any()
        assert pm._memory.taken() == taken
        if pm.rank == 1:
            pm._memory.keep("a test", 0)
            taken = pm._memory.taken()
        pm.load(path)
        pm.barrier()
        assert pm._memory.taken() == taken
        return bool((pm.worker().pull(table, range(KEYS)) == 1).all())

    path = run_ranks(2, saved)[0]
    need = max(need_of(KEYS, 1, rank, 2) for rank in range(2))
    assert run_ranks(2, load, memory_budget=budget_of([need, 2 * KEYS])) == [True, True]


def test_a_load_knows_of_keys_what_is_counted(tmp_path: Path) -> None:
    """Beside that a piece at a time."""
    keys, piece_bytes = 1_000_000, 2 << 20
    with intentpm.init() as pm:
        path = pm.save(tmp_path, [pm.create_table("t", keys, 1)])
    table = intentpm.checkpoint.open(path)["t"]
    wanted, read = np.ones(keys, np.bool_), 0
    assert table.check_bytes == keys
    tracemalloc.start()
    try:
        for some, _ in table.stretches(1 << 16, wanted):
            read += len(some)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read == keys
    assert peak < 2 * keys + piece_bytes


def test_rows_that_are_packed_while_changes_are_told_are_told() -> None:
    config = Config(management="relocate", memory_budget=budget_of([max(needs(2, copies=KEYS))]))
    with simulate(2, 3, config) as job:
        tables = job.create_table("t", KEYS, ITEMS)
        workers = job.on_every_rank(lambda pm: pm.worker())
        gone = tables[0].owned_keys()[:500]  # from the lowest slots

        def take(pm):
            if pm.rank == 1:
                workers[1].intent(tables[1], gone, 0, 1000)
            workers[pm.rank].wait_sync()

        job.on_every_rank(take)
        told = job.ranks[0].changed_since("a server", tables[0], rows_at_once=100)
        keys = set(next(told)[0].tolist())
        job.ranks[0]._engine.budget.table_bytes = 0
        job.on_every_rank(lambda pm: workers[pm.rank].wait_sync())  # a step looks, and packs
        job.settle()
        for some, _ in told:
            keys |= set(some.tolist())
        assert keys == set(tables[0].owned_keys().tolist())


def test_ranks_take_the_narrowest_window_of_all() -> None:
    with simulate(3, 1, Config(memory_budget=8 << 20)) as job:
        job.ranks[1]._memory.narrow(job.ranks[1]._memory.peer_bytes() // 16)
        widest = job.ranks[0]._engine.budget.window_requests
        job.create_table("t", 10)
        found = [pm._engine.budget.window_requests for pm in job.ranks]
        assert len(set(found)) == 1
        assert found[0] < widest
