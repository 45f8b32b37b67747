"""Checkpoints: what ranks save and load, what NumPy alone reads, and what does not fit."""

import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.checkpointed import (
    TABLES,
    assert_same,
    create,
    everything,
    load_over,
    read_alone,
    save,
    write_something,
)

import intentpm
import intentpm.checkpoint
from intentpm.checkpoint.cli import checkpoint
from intentpm.checkpoint.manifest import MANIFEST, VERSION, _encode, read_manifest
from intentpm.foundation.errors import CheckpointError
from intentpm.testing import run_ranks


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    return run_ranks(3, save(tmp_path / "saves"))[0]


# -- saved and loaded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("loading", [1, 3, 8])
def test_any_number_of_ranks_loads_what_any_other_saved(tmp_path: Path, ranks: int, loading: int) -> None:
    path, expected = run_ranks(ranks, save(tmp_path))[0]
    assert path == tmp_path / "000001"

    for restored, found in run_ranks(loading, load_over(tmp_path)):
        assert_same(found, expected)
        assert (restored.path, restored.number) == (path, 1)
        assert restored.extra == [{"rank": rank, "seed": 0} for rank in range(ranks)]
    assert_same(read_alone(path), expected)


@pytest.mark.parametrize(("saving", "loading"), [*itertools.permutations(("host", "gpu", "tiered"), 2)])
def test_tables_load_what_lay_elsewhere(tmp_path: Path, saving: str, loading: str) -> None:
    path, expected = run_ranks(4, save(tmp_path), storage=saving, device="emulated")[0]
    assert_same(read_alone(path), expected)

    for _, found in run_ranks(3, load_over(tmp_path), storage=loading, device="emulated"):
        assert_same(found, expected)


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
        assert_same(read_alone(path), expected)
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
            assert_same(read_alone(opened.path), expected)


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


def test_each_table_is_exported_into_a_file_of_its_own(tmp_path: Path) -> None:
    names = ["table-1", "a/b", "a.b", "a%2Fb", "..", "ü", "a b", "../c"]
    with intentpm.init() as pm:
        worker = pm.worker()
        for number, name in enumerate(names):
            worker.set(pm.create_table(name, 1, 1), [0], [[number]])
        pm.save(tmp_path / "saves")
    done = command("export", tmp_path / "saves", "--out", tmp_path / "rows", "--table", "ü", *every_table(names))
    assert done.exit_code == 0, done.exception
    files = [Path(line) for line in done.output.splitlines()]
    assert sorted(files) == sorted((tmp_path / "rows").iterdir())
    assert [np.load(file)[0, 0] for file in files] == [5, 0, 1, 2, 3, 4, 6, 7]


def every_table(names: list[str]) -> list[str]:
    return [argument for name in names for argument in ("--table", name)]
