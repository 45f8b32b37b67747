"""Checkpoints: what ranks save and load, what NumPy alone reads, and what happens to files that are damaged."""

import json
import os
import random
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import intentpm
import intentpm.checkpoint
from intentpm.checkpoint.cli import checkpoint
from intentpm.checkpoint.manifest import MANIFEST, VERSION, _encode, read_manifest
from intentpm.foundation.errors import CheckpointError
from intentpm.runtime import saving
from intentpm.testing import run_ranks

TABLES: dict[str, dict[str, Any]] = {
    "plain": {"num_keys": 57, "row_shape": (5,), "dtype": "float32"},
    "numbers": {"num_keys": 9, "row_shape": (), "dtype": "int64"},
    "halves": {"num_keys": 31, "row_shape": (2, 3), "dtype": "float16"},
    "adagrad": {"num_keys": 40, "row_shape": (7,), "dtype": "float32", "optimizer": intentpm.optim.Adagrad(lr=0.1)},
    "adam": {"num_keys": 13, "row_shape": (3,), "dtype": "float64", "optimizer": intentpm.optim.Adam(lr=0.1)},
    "rowwise": {"num_keys": 5, "row_shape": (4,), "optimizer": intentpm.optim.RowwiseAdagrad(lr=1.0)},
}  # fmt: skip


def create(pm: Any, names: Any = TABLES) -> dict[str, Any]:
    return {name: pm.create_table(name, **TABLES[name]) for name in names}


def write_something(pm: Any, tables: dict[str, Any], seed: int) -> None:
    """Every rank writes to any key."""
    draw, worker = np.random.default_rng([seed, pm.rank]), pm.worker()
    for table in tables.values():
        for _ in range(3):
            keys = draw.integers(table.num_keys, size=20)
            values = draw.integers(-9, 9, size=(20, *table.row_shape)).astype(table.dtype)
            if table.optimizer is None:
                worker.push(table, keys, values)
            else:
                worker.push_grad(table, keys, values)


def everything(pm: Any, tables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Weights and state of all keys, by "table" and "table.state"."""
    worker, found = pm.worker(), {}
    for name, table in tables.items():
        keys = np.arange(table.num_keys)
        found[name] = worker.pull(table, keys)
        if table.optimizer is not None:
            found |= {f"{name}.{state}": rows for state, rows in worker.pull_state(table, keys).items()}
    return found


def save(folder: Path, seed: int = 0, **options: Any) -> Any:
    """What a rank does that trains a little and saves."""

    def rank(pm: Any) -> tuple[Path, dict[str, np.ndarray]]:
        tables = create(pm)
        write_something(pm, tables, seed)
        path = pm.save(folder, extra={"rank": pm.rank, "seed": seed}, **options)
        pm.barrier()
        return path, everything(pm, tables)

    return rank


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert found[name].tobytes() == expected[name].tobytes(), name


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    return run_ranks(3, save(tmp_path / "saves"))[0]


# -- saved and loaded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("loading", [1, 3, 8])
def test_any_number_of_ranks_loads_what_any_other_saved(tmp_path: Path, ranks: int, loading: int) -> None:
    path, expected = run_ranks(ranks, save(tmp_path))[0]
    assert path == tmp_path / "000001"

    def load(pm: Any) -> tuple[Any, dict[str, np.ndarray]]:
        tables = create(pm)
        write_something(pm, tables, 99)
        restored = pm.load(tmp_path)
        pm.barrier()
        return restored, everything(pm, tables)

    for restored, found in run_ranks(loading, load):
        assert_same(found, expected)
        assert (restored.path, restored.number) == (path, 1)
        assert restored.extra == [{"rank": rank, "seed": 0} for rank in range(ranks)]


@pytest.mark.parametrize("management", ["full_replication", "relocate", "static"])
def test_rows_that_are_replicated_or_away_from_home(tmp_path: Path, management: str) -> None:
    names = ["plain", "halves"]

    def rank(pm: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        tables = create(pm, names)
        worker = pm.worker()
        for table in tables.values():
            worker.intent(table, np.arange(table.num_keys), 0, 100)
        worker.wait_sync()
        write_something(pm, tables, 1)
        pm.save(tmp_path)
        worker.wait_sync()
        pm.barrier()
        before = everything(pm, tables)
        pm.barrier()
        write_something(pm, tables, 2)
        pm.barrier()
        pm.load(tmp_path)
        return before, everything(pm, tables)

    for before, after in run_ranks(3, rank, management=management):
        assert_same(after, before)


def test_numpy_alone_reads_it(saved: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, expected = saved
    with intentpm.checkpoint.open(path) as opened:
        assert sorted(opened.tables) == sorted(TABLES)
        assert opened.extra[2] == {"rank": 2, "seed": 0}
        found = {name: opened[name].rows() for name in TABLES}
        for name in TABLES:
            found |= {f"{name}.{state}": opened[name].state(state) for state in opened[name].state_names}
        assert_same(found, expected)
        some = [3, 3, 30, 0]
        assert (opened["plain"].rows(some) == expected["plain"][some]).all()
        with pytest.raises(intentpm.KeyRangeError, match="key 57"):
            opened["plain"].rows([57])
        with pytest.raises(CheckpointError, match="no state 'sum'"):
            opened["plain"].state("sum")
        with pytest.raises(CheckpointError, match="no table 'other'"):
            opened["other"]


def test_any_safetensors_library_reads_the_files(saved: tuple[Path, dict[str, np.ndarray]]) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    path, expected = saved
    rows = np.full_like(expected["adagrad"], np.nan)
    for file in sorted(path.glob("*.safetensors")):
        tensors = numpy.load_file(file)
        rows[tensors["adagrad.keys"]] = tensors["adagrad.weights"]
    assert (rows == expected["adagrad"]).all()


def test_chosen_tables(tmp_path: Path) -> None:
    with intentpm.init() as pm:
        tables = create(pm, ["plain", "numbers"])
        assert read_manifest(pm.save(tmp_path, ["numbers"])).rows("numbers") == 9
        assert intentpm.checkpoint.open(tmp_path).tables == ("numbers",)
        assert intentpm.checkpoint.open(pm.save(tmp_path, [tables["plain"]])).tables == ("plain",)
        with pytest.raises(CheckpointError, match="there is no table 'other'"):
            pm.save(tmp_path, ["other"])
        with pytest.raises(CheckpointError, match="has no table 'numbers'"):
            pm.load(tmp_path)


def test_only_the_last_are_kept(tmp_path: Path) -> None:
    with intentpm.init() as pm:
        create(pm, ["plain"])
        paths = [pm.save(tmp_path, keep=2) for _ in range(4)]
        assert sorted(tmp_path.iterdir()) == paths[2:]
        assert intentpm.latest(tmp_path) == paths[3]
        with pytest.raises(CheckpointError, match="keep=0"):
            pm.save(tmp_path, keep=0)
        with pytest.raises(CheckpointError, match=r"extra: .* what JSON can hold"):
            pm.save(tmp_path, extra={1, 2})


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


# -- what has changed --------------------------------------------------------------------------------------------------


def test_an_incremental_save_has_what_has_changed(tmp_path: Path) -> None:
    def rank(pm: Any) -> list[tuple[Path, dict[str, np.ndarray]]]:
        tables, worker, saved = create(pm), pm.worker(), []
        for number in range(5):
            if number == 1:
                worker.push(tables["plain"], [pm.rank, 40], np.ones((2, 5), np.float32))
            elif number == 2:
                worker.push_grad(tables["adagrad"], [7], np.ones((1, 7), np.float32))
            elif number == 4:
                worker.intent(tables["plain"], range(57), worker.clock, worker.clock + 1)
                worker.wait_sync()
            pm.barrier()
            path = pm.save(tmp_path, incremental=True)
            pm.barrier()
            saved.append((path, everything(pm, tables)))
            pm.barrier()
        return saved

    saved = run_ranks(3, rank)[0]
    assert [read_manifest(path).base for path, _ in saved[:4]] == [None, "000001", "000002", "000003"]
    assert [read_manifest(path).rows("plain") for path, _ in saved[:4]] == [57, 4, 0, 0]
    assert [read_manifest(path).rows("adagrad") for path, _ in saved[:4]] == [40, 0, 1, 0]
    for path, expected in saved:
        with intentpm.checkpoint.verify(path) as opened:
            found = {name: opened[name].rows() for name in TABLES}
            for name in TABLES:
                found |= {f"{name}.{state}": opened[name].state(state) for state in opened[name].state_names}
            assert_same(found, expected)


def test_a_chain_is_kept_whole_and_does_not_grow_for_ever(tmp_path: Path) -> None:
    with intentpm.init() as pm:
        table = create(pm, ["plain"])["plain"]
        worker = pm.worker()
        bases = []
        for number in range(12):
            worker.push(table, range(15), np.ones((15, 5), np.float32))
            bases.append(read_manifest(pm.save(tmp_path, incremental=True, keep=1)).base)
            with intentpm.checkpoint.open(tmp_path) as opened:
                assert (opened["plain"].rows(range(15)) == number + 1).all()
        anew = [number for number, base in enumerate(bases) if base is None]
        assert len(anew) > 1  # every so often every row is written
        assert len(list(tmp_path.iterdir())) == 12 - anew[-1]
        whole, newest = pm.save(tmp_path), pm.save(tmp_path, incremental=True)
        while (base := read_manifest(newest).base) is None:
            newest = pm.save(tmp_path, incremental=True)
        assert base != whole.name  # which was made for others
        shutil.rmtree(tmp_path / base)
        with pytest.raises(CheckpointError, match="which is not there"):
            intentpm.checkpoint.open(newest)
        shutil.rmtree(newest)
        assert read_manifest(pm.save(tmp_path, incremental=True)).base is None


def test_changes_are_told_once_to_each_who_asks(tmp_path: Path) -> None:
    def told(pm: Any, name: str, table: Any) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {}
        for keys, rows in pm.changed_since(name, table, rows_at_once=7):
            found |= dict(zip(keys.tolist(), rows.tolist(), strict=True))
        return found

    def rank(pm: Any) -> None:
        table = create(pm, ["adagrad"])["adagrad"]
        worker = pm.worker()
        mine = set(table.home_keys().tolist())
        assert told(pm, "a", table).keys() == mine
        assert told(pm, "a", table) == {}
        pm.barrier()
        worker.push(table, [pm.rank, 39], np.ones((2, 7), np.float32))
        pm.barrier()
        assert told(pm, "a", table).keys() == mine & {0, 1, 39}
        assert told(pm, "b", table).keys() == mine
        assert told(pm, "a", table) == {}
        if 39 in mine:
            worker.push(table, [39], np.ones((1, 7), np.float32))
            assert told(pm, "b", table) == {39: [3.0] * 7}
        pm.barrier()

    run_ranks(2, rank)


# -- what does not fit -------------------------------------------------------------------------------------------------


def test_tables_that_are_others(saved: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, _ = saved

    def load(pm: Any) -> str:
        pm.create_table("plain", **{**TABLES["plain"], "num_keys": 58})
        with pytest.raises(CheckpointError) as error:
            pm.load(path)
        return str(error.value)

    for told in run_ranks(2, load):
        assert "table 'plain' is another one: num_keys is 58 here and 57 there" in told


def test_checkpoints_of_another_job_are_not_touched(saved: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, _ = saved
    before = path.joinpath(MANIFEST).read_bytes()
    with intentpm.init() as pm:
        create(pm)
        with pytest.raises(CheckpointError, match="of another job"):
            pm.save(path.parent, keep=1)
        assert path.joinpath(MANIFEST).read_bytes() == before
        pm.load(path)
        assert pm.save(path.parent).name == "000002"


def test_a_manifest_of_a_newer_version(saved: tuple[Path, dict[str, np.ndarray]]) -> None:
    manifest = saved[0] / MANIFEST
    body = json.loads(manifest.read_bytes())["manifest"]
    manifest.write_bytes(_encode({**body, "version": VERSION + 1, "more": "fields"}))
    with pytest.raises(CheckpointError, match=rf"{MANIFEST}: has version {VERSION + 1} .*: upgrade intentpm"):
        intentpm.checkpoint.open(saved[0])


def test_ranks_that_are_asked_for_different_things(tmp_path: Path) -> None:
    def rank(pm: Any) -> str:
        create(pm, ["plain", "numbers"])
        with pytest.raises(CheckpointError) as error:
            pm.save(tmp_path, ["plain"] if pm.rank else None)
        return str(error.value)

    assert len({*run_ranks(2, rank)}) == 1
    assert intentpm.latest(tmp_path) is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a small disk: needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_on_every_rank(small_disk: Path) -> None:
    def rank(pm: Any) -> str:
        pm.create_table("small", 10)
        first = pm.save(small_disk, ["small"])
        pm.create_table("large", 50_000)
        with pytest.raises(CheckpointError) as error:
            pm.save(small_disk)
        assert intentpm.latest(small_disk) == first
        pm.barrier()
        assert pm.save(small_disk, ["small"]).name == "000002"  # nothing is left of the one that failed
        return str(error.value)

    told = run_ranks(2, rank)
    assert told[0] == told[1]
    assert re.search(r"rank [01]: .*/000002/rank-000[01].safetensors: No space left on device", told[0])


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    def rank(pm: Any) -> str:
        create(pm, ["plain"])
        with pytest.raises(CheckpointError) as error:
            pm.save(tmp_path / "file" / "saves")
        return str(error.value)

    assert all("Not a directory" in told and "rank 0" in told for told in run_ranks(2, rank))


# -- files that are damaged --------------------------------------------------------------------------------------------


def damage(path: Path, draw: random.Random) -> str:
    """Flips a bit or cuts the file short; says what was done."""
    data = bytearray(path.read_bytes())
    if draw.random() < 0.3:
        left = draw.randrange(len(data))
        path.write_bytes(data[:left])
        return f"{path.name} cut to {left} of {len(data)} bytes"
    at = draw.randrange(len(data))
    data[at] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return f"{path.name} byte {at} of {len(data)}"


def test_no_damage_goes_unnoticed(saved: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    path, _ = saved
    draw = random.Random(1)
    files = sorted(path.iterdir())
    for _ in range(1000):
        broken = tmp_path / "broken" / "000001"
        shutil.copytree(path, broken)
        victim = broken / draw.choice(files).name
        done = damage(victim, draw)
        with pytest.raises(CheckpointError) as error:
            intentpm.checkpoint.open(broken)
        assert str(victim) in str(error.value), done
        shutil.rmtree(broken)


def test_ranks_refuse_a_damaged_file_together(saved: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, _ = saved
    victim = path / "rank-0001.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)

    def load(pm: Any) -> tuple[str, bool]:
        tables = create(pm)
        with pytest.raises(CheckpointError) as error:
            pm.load(path)
        pm.barrier()
        return str(error.value), all(not rows.any() for rows in everything(pm, tables).values())

    for told, untouched in run_ranks(2, load):
        assert f"{victim}: its tensor " in told
        assert untouched


def test_the_last_good_one_is_found(tmp_path: Path) -> None:
    with intentpm.init() as pm:
        create(pm, ["plain"])
        first, second = pm.save(tmp_path), pm.save(tmp_path)
        (second / MANIFEST).write_bytes(b"{}")
        assert intentpm.latest(tmp_path) == first
        (tmp_path / "000003").mkdir()  # a save that was killed
        assert intentpm.latest(tmp_path) == first
        assert pm.save(tmp_path).name == "000004"
        assert not (tmp_path / "000003").exists()
    assert intentpm.latest(tmp_path / "nothing") is None
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        intentpm.checkpoint.open(tmp_path / "nothing")


# -- the command -------------------------------------------------------------------------------------------------------


def command(*arguments: Any) -> Any:
    return CliRunner().invoke(checkpoint, [str(argument) for argument in arguments])


def test_inspect_and_verify(saved: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, _ = saved
    told = json.loads(command("inspect", path.parent, "--json").output)
    assert (told["number"], told["ranks"], told["needs"]) == (1, 3, ["000001"])
    assert {table["name"]: table["rows_written"] for table in told["tables"]}["adagrad"] == 40
    assert "adagrad: 40 rows of (7,) float32" in command("inspect", path).output
    assert command("verify", path).exit_code == 0
    victim = path / "rank-0002.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    failed = command("verify", path)
    assert failed.exit_code != 0
    assert str(victim) in str(failed.exception)


@pytest.mark.parametrize("form", ["npy", "safetensors", "torch"])
def test_export(saved: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, form: str) -> None:
    path, expected = saved
    options = [] if form == "npy" else ["--state"]
    if form == "torch":
        torch = pytest.importorskip("torch")
    done = command("export", path, "--out", tmp_path / "rows", "--format", form, "--table", "adam", *options)
    assert done.exit_code == 0, done.exception
    (file,) = (tmp_path / "rows").iterdir()
    assert done.output == f"{file}\n"
    if form == "npy":
        found = {"weights": np.load(file)}
    elif form == "torch":
        found = {name: rows.numpy() for name, rows in torch.load(file).items()}
    else:
        found = dict(pytest.importorskip("safetensors.numpy").load_file(file))
    assert (found["weights"] == expected["adam"]).all()
    if options:
        assert {"weights", "step"} < set(found)
        assert (found["step"] == expected["adam.step"]).all()


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
