"""Saves that fail, that ranks come to at different times, and that go on beside training."""

import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpointed import create

import intentpm
import intentpm.checkpoint
from intentpm.checkpoint import series
from intentpm.checkpoint.long_file import LongFile
from intentpm.checkpoint.manifest import MANIFEST, read_manifest
from intentpm.checkpoint.tensor_file import TensorFileWriter
from intentpm.foundation.errors import CheckpointError
from intentpm.runtime import save_order, saving
from intentpm.testing import run_ranks


def test_a_save_that_fails_in_its_last_step_leaves_the_one_before(tmp_path: Path, monkeypatch: Any) -> None:
    """Rank 1 gives up when rank 0 has put the new checkpoint in place already."""
    steps: dict[int, int] = {}
    take_part = saving._try

    def give_up_in_the_last(do: Any) -> Any:
        said, me = take_part(do), threading.get_ident()
        if me in steps:
            steps[me] += 1
        return {"problem": "gave up"} if steps.get(me) == saving.STAGES else said

    def rank(pm: Any) -> Path:
        create(pm, ["plain"])
        first: Path = pm.save(tmp_path, keep=1)
        if pm.rank == 1:
            steps[threading.get_ident()] = 0
        with pytest.raises(CheckpointError, match="because of rank 1: gave up"):
            pm.save(tmp_path, keep=1)
        return first

    monkeypatch.setattr(saving, "_try", give_up_in_the_last)
    first, _ = run_ranks(2, rank)
    assert list(steps.values()) == [saving.STAGES]
    assert intentpm.latest(tmp_path) == first


def test_a_save_that_cannot_begin_does_not_stop_the_next(tmp_path: Path, monkeypatch: Any) -> None:
    class NoMoreThreads(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with intentpm.init() as pm:
        create(pm, ["plain"])
        with monkeypatch.context() as patched:
            patched.setattr(saving.threading, "Thread", NoMoreThreads)
            with pytest.raises(RuntimeError, match="new thread"):
                pm.save(tmp_path, wait=False)
        assert pm.save(tmp_path, timeout=20) == intentpm.latest(tmp_path)


def test_periodic_saves_go_on_after_one_that_failed(tmp_path: Path) -> None:
    folder = tmp_path / "in the way"
    folder.write_text("")
    with intentpm.init() as pm:
        create(pm, ["plain"])
        saves = pm.periodic_saves(folder, 1e-6)
        saves.step(lambda: None)
        with pytest.raises(CheckpointError):
            saves.finish(lambda: None)
        folder.unlink()
        assert saves.save_now(lambda: None) == intentpm.latest(folder)


def test_an_old_checkpoint_that_is_damaged_does_not_fail_a_new_one(tmp_path: Path) -> None:
    """It is only found when old ones are to be removed, by rank 0 alone."""

    def rank(pm: Any) -> Path:
        create(pm, ["plain"])
        first, second = pm.save(tmp_path, incremental=True), pm.save(tmp_path, incremental=True)
        assert read_manifest(second).base == first.name
        if pm.rank == 0:
            (first / MANIFEST).write_bytes(b"{}")
        pm.barrier()
        return pm.save(tmp_path, keep=2)

    assert run_ranks(2, rank) == [tmp_path / "000003"] * 2


def test_numbers_that_are_taken_by_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "000001").touch()
    with intentpm.init() as pm:
        create(pm, ["plain"])
        monkeypatch.setattr(series, "MOST_TAKEN", 1)
        with pytest.raises(CheckpointError, match="the numbers from 1 to 1 are taken"):
            pm.save(tmp_path)
        monkeypatch.undo()
        assert pm.save(tmp_path) == tmp_path / "000002"


def test_nothing_else_saves_until_periodic_saves_are_finished(tmp_path: Path) -> None:
    """Ranks come to them at different times: who is called for one could take it for another."""

    def rank(pm: Any) -> list[Path]:
        create(pm, ["plain"])
        first = pm.periodic_saves(tmp_path / "first", 1e-6, keep=None)
        if pm.rank == 0:
            first.step(lambda: None)  # it calls for one; rank 1 has not made it
        with pytest.raises(CheckpointError, match=r"/second'\): the ranks are not done with periodic_saves.*/first'\)"):
            pm.periodic_saves(tmp_path / "second", 1e-6)
        with pytest.raises(CheckpointError, match="are not done with"):
            pm.save(tmp_path / "third")
        first.finish(lambda: None)
        made = [pm.save(tmp_path / "third")]
        second = pm.periodic_saves(tmp_path / "second", 1e-6)
        for use in (first.step, first.finish, first.save_now):
            with pytest.raises(CheckpointError, match=r"/first'\): the ranks are not done with .*/second'\)"):
                use(lambda: None)
        made.append(second.save_now(lambda: None))
        made.append(first.save_now(lambda: None))
        return made

    for made in run_ranks(2, rank):
        assert made == [
            tmp_path / "third" / "000001",
            tmp_path / "second" / "000001",
            tmp_path / "first" / "000002",
        ]


def test_clocks_are_saved(tmp_path: Path) -> None:
    with intentpm.init() as pm:
        table = create(pm, ["plain"])
        first, second = pm.worker(), pm.worker()
        for _ in range(3):
            second.advance_clock()
        pm.save(tmp_path)
        assert pm.load(tmp_path).clocks == [{first.worker_id: 0, second.worker_id: 3}]
        del table


@pytest.mark.parametrize("transport", ["loopback", "tcp"])
def test_no_push_straddles_the_cut(tmp_path: Path, transport: Any) -> None:
    """Every call adds 1 to all keys of a table, wherever they are by now: then all are equal, in a checkpoint too."""
    saves = 4

    def train(pm: Any, tables: list[Any], pushed: list[int], stop: threading.Event) -> None:
        with pm.worker() as worker:
            draw, keys = np.random.default_rng([pm.rank, len(pushed)]), np.arange(300)
            at = len(pushed)
            pushed.append(0)
            while not stop.is_set():
                some = draw.integers(300, size=30)
                worker.intent(tables[0], some, worker.clock + 1, worker.clock + 3)
                push = worker.push if draw.random() < 0.5 else worker.push_async
                push(tables[0], draw.permutation(keys), np.ones((300, 4), np.float32))
                worker.push_grad(tables[1], keys, np.full((300, 4), -1, np.float32))
                pushed[at] += 1
                worker.advance_clock()

    def rank(pm: Any) -> list[tuple[int, int]]:
        optimizer = intentpm.optim.SGD(lr=1.0)
        tables = [pm.create_table("plain", 300, 4), pm.create_table("stepped", 300, 4, optimizer=optimizer)]
        pushed: list[int] = []
        stop = threading.Event()
        threads = [threading.Thread(target=train, args=(pm, tables, pushed, stop)) for _ in range(2)]
        for thread in threads:
            thread.start()
        bounds = []
        try:
            for _ in range(saves):
                time.sleep(0.05 * (1 + pm.rank))
                before = sum(pushed)
                saving = pm.save(tmp_path, wait=False)
                bounds.append((before, sum(pushed) + len(threads)))
                saving.wait(60)
                assert saving.done()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        return bounds

    of_ranks = run_ranks(3, rank, transport)
    for number in range(saves):
        with intentpm.checkpoint.open(tmp_path / f"{number + 1:06d}") as opened:
            for name in opened.tables:
                rows = opened[name].rows()
                assert (rows == rows[0, 0]).all(), name
                assert sum(of[number][0] for of in of_ranks) <= rows[0, 0] <= sum(of[number][1] for of in of_ranks)


def test_a_save_that_fails_is_told_at_the_end_at_the_latest(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    pm = intentpm.init()
    create(pm, ["plain"])
    pm.save(tmp_path / "file" / "saves", wait=False)
    with pytest.raises(CheckpointError, match="Not a directory"):
        pm.close()


def test_a_rank_that_does_not_save(tmp_path: Path) -> None:
    def rank(pm: Any) -> str:
        create(pm, ["plain"])
        told = ""
        if pm.rank == 0:
            with pytest.raises(intentpm.WaitTimeoutError) as error:
                pm.save(tmp_path, timeout=0.2)
            told = str(error.value)
            with pytest.raises(intentpm.WaitTimeoutError, match="given up here"):
                pm.save(tmp_path, timeout=0.2)
        pm.barrier()
        if pm.rank == 1:
            with pytest.raises(CheckpointError, match="because of rank 0: gave up"):
                pm.save(tmp_path)
        assert pm.save(tmp_path).name == "000001"
        return told

    told = run_ranks(2, rank)[0]
    assert re.search(r"save\(.*\) \(step 1 of 4\): ranks \[1\] have not come", told)


@pytest.mark.parametrize("hasty", [0, 1])
def test_a_save_that_one_rank_gave_up_while_another_failed(tmp_path: Path, monkeypatch: Any, hasty: int) -> None:
    """In the same exchange: nobody comes to the one in which the others were to hear of the first."""
    gave_up, late, take_part = threading.Event(), set[int](), saving._try

    def fail_late(do: Any) -> Any:
        if threading.get_ident() not in late:
            return take_part(do)
        assert gave_up.wait(30.0)
        late.clear()
        return {"problem": "the disk is full"}

    def rank(pm: Any) -> None:
        create(pm, ["plain"])
        pm.barrier()
        if pm.rank == hasty:
            with pytest.raises(intentpm.WaitTimeoutError):
                pm.save(tmp_path, timeout=0.1)
            gave_up.set()
        else:
            late.add(threading.get_ident())
            with pytest.raises(CheckpointError, match="the disk is full"):
                pm.save(tmp_path)
        assert pm.save(tmp_path).name == "000001"

    monkeypatch.setattr(saving, "_try", fail_late)
    run_ranks(2, rank)


@pytest.mark.parametrize("hasty", [0, 1])
def test_nothing_is_kept_of_saves_that_a_rank_gave_up(tmp_path: Path, hasty: int) -> None:
    def rank(pm: Any) -> int:
        create(pm, ["plain"])
        for _ in range(5):
            if pm.rank == hasty:
                with pytest.raises(intentpm.WaitTimeoutError):
                    pm.save(tmp_path, timeout=0.01)
            pm.barrier()
            if pm.rank != hasty:
                with pytest.raises(CheckpointError, match="gave up"):
                    pm.save(tmp_path)
            pm.save(tmp_path, keep=1)
        pm.barrier()
        return int(pm._saves.snapshot.exchanges_held())

    assert run_ranks(2, rank) == [0, 0]


@pytest.mark.parametrize("leaver", [0, 1])
def test_a_rank_that_leaves_without_saving(tmp_path: Path, leaver: int) -> None:
    def rank(pm: Any) -> str:
        create(pm, ["plain"])
        if pm.rank == leaver:
            return ""
        with pytest.raises(CheckpointError) as error:
            pm.save(tmp_path)
        return str(error.value)

    told = run_ranks(3, rank)
    del told[leaver]
    assert told[0] == told[1]
    assert f"because of rank {leaver}: it has closed its parameter manager without saving" in told[0]


def test_a_save_beside_training_runs_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that writes, and nobody else, has less of the processor; without training nobody has."""
    levels = []
    real = saving.write_rank_file

    def write(*arguments: Any) -> Any:
        levels.append(os.getpriority(os.PRIO_PROCESS, 0))
        return real(*arguments)

    monkeypatch.setattr(saving, "write_rank_file", write)

    def save(pm: Any) -> int:
        create(pm, ["plain"])
        pm.save(tmp_path)
        pm.save(tmp_path, wait=False).result()
        return os.getpriority(os.PRIO_PROCESS, 0)

    usual = os.getpriority(os.PRIO_PROCESS, 0)
    assert run_ranks(1, save) == [usual]
    assert levels == [usual, min(usual + saving.NICER, 19)]


def test_rows_that_come_and_go_while_one_rank_ends_its_save_last_are_not_set_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 removes old checkpoints, for which nobody waits. What others send it meanwhile is in the checkpoint."""
    turn, over = threading.Barrier(2, timeout=30.0), threading.Event()
    monkeypatch.setattr(saving.series, "prune", lambda *_: over.wait(30.0))
    keys = np.arange(16)

    def take(pm: Any, worker: Any, table: Any, rank: int) -> None:
        """The keys become that rank's, and are written to."""
        if pm.rank == rank:
            worker.intent(table, keys, worker.clock)
            worker.wait_sync()
            assert (table.owned_keys() == keys).all()
            worker.push(table, keys, np.ones((len(keys), 3), np.float32))
            worker.advance_clock()
            worker.wait_sync()
        turn.wait()

    def move(pm: Any) -> int:
        table, worker = pm.create_table("t", len(keys), 3), pm.worker()
        take(pm, worker, table, 0)
        pm.barrier()
        save = pm.save(tmp_path, wait=False)
        if pm.rank == 1:
            save.result()
        turn.wait()
        for _ in range(5):
            take(pm, worker, table, 1)
            take(pm, worker, table, 0)
        set_apart = pm._memory.report()["apart"] if pm.rank == 0 else 0
        over.set()
        save.result()
        pm.barrier()
        return set_apart

    assert max(run_ranks(2, move)) <= len(keys) * 64, "a copy of each row at most"


@pytest.mark.parametrize(("budget", "most"), [(None, 8 << 20), ("64MiB", 512 << 10)])
def test_rows_are_written_in_long_pieces_that_a_budget_has_room_for(
    tmp_path: Path, monkeypatch: Any, budget: str | None, most: int
) -> None:
    """Few steps, because the GIL is taken after each; short ones where memory is short."""
    written: list[int] = []
    write = LongFile.write

    def note(file: LongFile, rows: Any, offset: int) -> memoryview:
        written.append(rows.nbytes)
        return write(file, rows, offset)

    monkeypatch.setattr(LongFile, "write", note)
    with intentpm.init(memory_budget=budget) as pm:
        pm.create_table("t", 16 << 12, 128)
        pm.save(tmp_path)
    assert sorted(written)[-(32 << 20) // most :] == [most] * ((32 << 20) // most)
    assert len(written) == 1 + 2 * (32 << 20) // most  # the header, and keys beside each


@pytest.mark.parametrize("wait", [True, False])
def test_a_disk_that_hangs_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool) -> None:
    """By all ranks, which go on; a disk that hangs holds the thread that writes."""
    answers, append = threading.Event(), TensorFileWriter.append

    def append_never(file: TensorFileWriter, name: str, rows: Any) -> None:
        if file.path.name == "rank-0001.safetensors":
            answers.wait(60.0)
        append(file, name, rows)

    def rank(pm: Any) -> str:
        create(pm, ["plain"])
        save = pm.save if wait else lambda folder: pm.save(folder, wait=False).result()
        with pytest.raises(CheckpointError) as error:
            save(tmp_path)
        pm.barrier()
        if pm.rank == 1:
            answers.set()
            monkeypatch.undo()
        pm.barrier()
        assert pm.save(tmp_path) == intentpm.latest(tmp_path)
        return str(error.value)

    monkeypatch.setattr(save_order, "STALL_S", 5.0)
    monkeypatch.setattr(TensorFileWriter, "append", append_never)
    told = run_ranks(2, rank)
    assert told[0] == told[1]
    assert re.search(
        r"because of rank 1: writing .*/rank-0001.safetensors: nothing came of it for 5 s: the disk, or who", told[0]
    )
