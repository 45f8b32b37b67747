"""Checkpoints at URLs: what fsspec reaches, in place of a folder."""

import builtins
import json
import os
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.checkpointed import TABLES, assert_same, create, everything, load_over, read_alone, save

import intentpm
import intentpm.checkpoint
from intentpm.checkpoint import remote_tensor_file, series
from intentpm.checkpoint.cli import checkpoint
from intentpm.checkpoint.manifest import MANIFEST, read_manifest
from intentpm.checkpoint.storage import RemotePath, located
from intentpm.foundation.errors import CheckpointError
from intentpm.testing import run_ranks

fsspec = pytest.importorskip("fsspec")


object_store = pytest.importorskip("support.object_store")


@pytest.fixture(params=[object_store.PROTOCOL, "memory", "local"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of an empty folder: objects, or folders and files, in this process' memory, or files reached through fsspec."""
    if request.param == "local":
        yield f"local://{tmp_path}/saves"
        return
    object_store.register()
    folder = f"{request.param}://{uuid.uuid4().hex}/saves"
    yield folder
    fs, path = fsspec.core.url_to_fs(folder)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def files_under(url: str) -> set[str]:
    fs, path = fsspec.core.url_to_fs(url)
    return {name.removeprefix(path).lstrip("/") for name in fs.find(path)}


def write(url: str, contents: bytes) -> None:
    fs, path = fsspec.core.url_to_fs(url)
    fs.makedirs(fs._parent(path), exist_ok=True)
    fs.pipe_file(path, contents)


def read(url: str) -> bytes:
    fs, path = fsspec.core.url_to_fs(url)
    return bytes(fs.cat_file(path))


@pytest.mark.parametrize("loading", [1, 3])
def test_saved_and_loaded(url: str, loading: int) -> None:
    path, expected = run_ranks(2, save(url))[0]
    assert (str(path), path.name) == (f"{url}/000001", "000001")

    for restored, found in run_ranks(loading, load_over(url)):
        assert_same(found, expected)
        assert (restored.path, restored.number) == (path, 1)
    assert intentpm.latest(url) == path
    intentpm.checkpoint.verify(path)
    assert_same(read_alone(path), expected)


def test_only_what_is_kept_stays(url: str) -> None:
    def rank(pm: Any) -> list[str]:
        table, worker = create(pm, ["plain"])["plain"], pm.worker()
        saves = pm.periodic_saves(url, 1e-6, keep=2)
        for _ in range(3):
            worker.push(table, [pm.rank], np.ones((1, 5), np.float32))
            saves.save_now(lambda: None)
        made = [pm.save(url, incremental=True, keep=1)]
        worker.push(table, [pm.rank], np.ones((1, 5), np.float32))
        made.append(pm.save(url, incremental=True, keep=1))
        return [read_manifest(path).base for path in made]

    assert run_ranks(2, rank)[0] == [None, "000004"]
    ranks = ["begun", MANIFEST, "rank-0000.safetensors", "rank-0001.safetensors"]
    assert files_under(url) == {f"{number}/{name}" for number in ("000004", "000005") for name in ranks}
    with intentpm.checkpoint.open(url) as opened:
        assert (opened["plain"].rows([0, 1]) == 4).all()


def test_rows_are_read_in_ranges(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(1).standard_normal((50_000, 16)).astype(np.float32)
    with intentpm.init() as pm:
        pm.worker().set(pm.create_table("t", *rows.shape), range(len(rows)), rows)
        pm.save(url)
    read_bytes: list[int] = []
    real = RemotePath.read_ranges

    def counted(self: RemotePath, ranges: list[tuple[int, int]]) -> list[bytes]:
        read_bytes.extend(end - first for first, end in ranges)
        return real(self, ranges)

    monkeypatch.setattr(RemotePath, "read_ranges", counted)
    wanted = [49_999, 0, 1, 30_000, 30_000, 2, 7]
    with intentpm.checkpoint.open(url, verify=False) as opened:
        assert (opened["t"].rows(wanted) == rows[wanted]).all()
        assert sum(read_bytes) < 3 * remote_tensor_file.GAP_BYTES < rows.nbytes / 10
        assert (opened["t"].rows() == rows).all()


def test_what_was_not_ended_is_no_checkpoint(url: str) -> None:
    def rank(pm: Any) -> None:
        create(pm, ["plain"])
        first = pm.save(url)
        if pm.rank == 0:
            write(f"{url}/000002/begun", b"")  # a save that was killed
            write(f"{url}/000002/rank-0000.safetensors", b"half of")
        pm.barrier()
        assert intentpm.latest(url) == first
        assert pm.save(url).name == "000003"
        pm.barrier()
        if pm.rank == 0:
            write(f"{url}/000003/{MANIFEST}", read(f"{url}/000003/{MANIFEST}")[:-9])
        pm.barrier()
        assert intentpm.latest(url) == first

    run_ranks(2, rank)
    assert not any(name.startswith("000002") for name in files_under(url))


def test_two_saves_take_two_numbers(url: str) -> None:
    """Whatever a listing said before: the number is taken by who makes its first object."""
    fs = located(url).fs  # type: ignore[union-attr]
    with intentpm.init() as pm:
        create(pm, ["plain"])
        pm.save(url)
        listing = type(fs).ls

        def of_before(self: Any, path: str, detail: bool = True, **options: Any) -> Any:
            found = listing(self, path, detail=detail, **options)
            return [entry for entry in found if "000002" not in (entry["name"] if detail else entry)]

        write(f"{url}/000002/begun", b"")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(type(fs), "ls", of_before)
            assert pm.save(url).name == "000003"


def test_damage_is_found(url: str) -> None:
    path, _ = run_ranks(2, save(url))[0]
    victim = f"{path}/rank-0001.safetensors"
    whole = read(victim)
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1], whole[:3], b"", bytes([whole[9] ^ 4]) + whole[1:]):
        write(victim, damaged)
        with pytest.raises(CheckpointError, match=f"^{victim}: "):
            intentpm.checkpoint.open(url)

        def load(pm: Any) -> str:
            tables = create(pm)
            with pytest.raises(CheckpointError) as error:
                pm.load(url)
            pm.barrier()
            assert not any(rows.any() for rows in everything(pm, tables).values())
            return str(error.value)

        assert all(victim in told for told in run_ranks(2, load))
    fsspec.core.url_to_fs(victim)[0].rm(fsspec.core.url_to_fs(victim)[1])
    with pytest.raises(CheckpointError, match=f"^{victim}: "):
        intentpm.checkpoint.open(url)


class StoreError(Exception):
    """Of a store's own client: no OSError."""


class UnlikeOthersError(OSError):
    """Of a client, too; made otherwise than an OSError is."""

    def __init__(self) -> None:
        super().__init__("the store is closed")


def test_a_store_that_fails_is_an_error_on_every_rank(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = located(url).fs  # type: ignore[union-attr]

    def rank(pm: Any) -> list[str]:
        create(pm, ["plain"])
        first = pm.save(url)
        told = []
        for failing, problem in (("put_file", StoreError("the store is closed")), ("pipe_file", UnlikeOthersError())):
            pm.barrier()
            if pm.rank == 0:
                monkeypatch.setattr(type(fs), failing, failing_with(problem))
            pm.barrier()
            with pytest.raises(CheckpointError) as error:
                pm.save(url)
            told.append(str(error.value))
            pm.barrier()
            if pm.rank == 0:
                monkeypatch.undo()
            pm.barrier()
            assert intentpm.latest(url) == first
        pm.save(url)
        return told

    def failing_with(problem: Exception) -> Any:
        def fails(*_: Any, **__: Any) -> None:
            raise problem

        return fails

    told = run_ranks(2, rank)
    assert told[0] == told[1]
    assert all(f"{url}/" in one and "the store is closed" in one for one in told[0])


def test_a_store_that_cannot_be_reached_is_not_an_empty_one(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with intentpm.init() as pm:
        create(pm, ["plain"])
        for _ in range(3):
            pm.save(url)
    there, real = files_under(url), type(located(url).fs).info  # type: ignore[union-attr]

    def fails(self: Any, path: str, **options: Any) -> Any:
        if calls or os.fspath(path).endswith(f"000001/{MANIFEST}"):
            raise StoreError("the store is closed")
        return real(self, path, **options)

    calls: list[int] = []
    monkeypatch.setattr(type(located(url).fs), "info", fails)  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match="the store is closed"):
        series.prune(located(url), 1)
    calls.append(1)
    for use in (intentpm.latest, intentpm.checkpoint.open):
        with pytest.raises(CheckpointError, match="the store is closed"):
            use(url)
    monkeypatch.undo()
    assert files_under(url) == there


def test_a_store_that_fails_when_rows_are_loaded_already(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ranks hear that rows were overwritten, and of which file."""
    run_ranks(2, save(url))
    real, calls, lock = RemotePath.read_bytes, [0], threading.Lock()

    def fails_late(self: RemotePath, *arguments: Any) -> bytes:
        with lock:
            calls[0] += 1
            fails = calls[0] > calls_to_look
        if fails:
            raise OSError(5, "gone", str(self))
        return real(self, *arguments)

    def load(pm: Any) -> str:
        create(pm)
        with pytest.raises(CheckpointError) as error:
            pm.load(url)
        pm.barrier()
        return str(error.value)

    calls_to_look = 2**30
    monkeypatch.setattr(RemotePath, "read_bytes", fails_late)
    with intentpm.checkpoint.open(url) as opened:  # what each rank does before the first row
        for name in TABLES:
            opened[name].check()
    calls_to_look, calls[0] = 2 * calls[0], 0
    told = run_ranks(2, load)
    assert told[0] == told[1]
    assert "rows were overwritten in part" in told[0]
    assert "rank-000" in told[0]


def test_the_commands(url: str, tmp_path: Path) -> None:
    _, expected = run_ranks(2, save(url))[0]

    def command(*arguments: Any) -> Any:
        return CliRunner().invoke(checkpoint, [str(argument) for argument in arguments])

    assert json.loads(command("inspect", url, "--json").output)["path"] == f"{url}/000001"
    assert command("verify", f"{url}/000001").exit_code == 0
    assert command("export", url, "--out", tmp_path / "rows", "--table", "plain").exit_code == 0
    assert (np.load(tmp_path / "rows" / "plain.npy") == expected["plain"]).all()
    assert "holds no checkpoint" in str(command("verify", f"{url}/nothing").exception)
    assert "needs a folder of this machine" in command("export", url, "--out", f"{url}/rows").output


def test_a_path_of_this_machine_needs_no_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == "fsspec":
            raise ImportError("No module named 'fsspec'", name="fsspec")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [name for name in sys.modules if name.split(".")[0] == "fsspec"]:
        monkeypatch.delitem(sys.modules, name)

    def rank(pm: Any) -> None:
        create(pm, ["plain"])
        assert pm.save(f"file://{tmp_path}") == tmp_path / "000001"
        pm.load(f"file://{tmp_path}")
        for use in (pm.save, pm.load):
            with pytest.raises(CheckpointError, match=r"cannot be reached.*pip install 'intentpm\[fsspec\]'"):
                use("s3://bucket/runs")

    run_ranks(2, rank)
    with pytest.raises(CheckpointError, match=r"pip install 'intentpm\[fsspec\]'"):
        intentpm.latest("s3://bucket/runs")


def test_a_protocol_that_nothing_knows() -> None:
    with pytest.raises(CheckpointError, match=r"^nonsense://x: cannot be reached"):
        intentpm.checkpoint.open("nonsense://x")
