"""The checkpoints of one folder: which is the newest, what is built on which, what is removed."""

import errno
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpointed import create

import intentpm
import intentpm.checkpoint
from intentpm.checkpoint import series, tensor_file
from intentpm.checkpoint.manifest import MANIFEST, VERSION
from intentpm.foundation.errors import CheckpointError


def make_newer(path: Path) -> None:
    text = (path / MANIFEST).read_text()
    assert f'"version":{VERSION}' in text
    (path / MANIFEST).write_text(text.replace(f'"version":{VERSION}', f'"version":{VERSION + 1}'))


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_newest_of_a_later_version_is_not_passed_over(tmp_path: Path) -> None:
    with intentpm.init() as pm:
        create(pm, ["plain"])
        first, second = pm.save(tmp_path), pm.save(tmp_path)
        make_newer(second)
        for look in (intentpm.latest, intentpm.checkpoint.open, pm.load, pm.save):
            with pytest.raises(CheckpointError, match=rf"000002/{MANIFEST}: has version {VERSION + 1} .*upgrade"):
                look(tmp_path)
        assert pm.load(first).number == 1


@pytest.mark.parametrize("spoil", [make_newer, lambda path: flip_a_bit(path / MANIFEST)])
def test_what_cannot_be_read_is_not_taken_for_nothing(tmp_path: Path, spoil: Any) -> None:
    """Nor removed: a new job in that folder would begin anew, and keep its own alone."""
    with intentpm.init() as pm:
        create(pm, ["plain"])
        spoil(pm.save(tmp_path))
    with intentpm.init() as pm:
        create(pm, ["plain"])
        for look in (intentpm.latest, intentpm.checkpoint.open, pm.load, lambda folder: pm.save(folder, keep=1)):
            with pytest.raises(CheckpointError, match=rf"000001/{MANIFEST}: (is damaged|has version)"):
                look(tmp_path)
    assert names(tmp_path) == ["000001"]


def test_only_what_can_be_read_is_removed(tmp_path: Path) -> None:
    with intentpm.init() as pm:
        create(pm, ["plain"])
        first, second, _ = pm.save(tmp_path), pm.save(tmp_path), pm.save(tmp_path)
        make_newer(first)
        flip_a_bit(second / MANIFEST)
        pm.save(tmp_path, keep=1)
        assert names(tmp_path) == ["000001", "000002", "000004"]


def test_nothing_is_built_on_what_is_damaged(tmp_path: Path) -> None:
    with intentpm.init() as pm:
        table, worker = pm.create_table("t", 10_000, 8), pm.worker()
        pm.save(tmp_path, keep=2)
        base = pm.save(tmp_path, incremental=True, keep=2)
        flip_a_bit(base / "rank-0000.safetensors")
        for _ in range(3):
            worker.push(table, [0], np.ones((1, 8), np.float32))
            newest = pm.save(tmp_path, incremental=True, keep=2)
        assert intentpm.checkpoint.verify(newest).number == 5
        assert series.chain(newest)[-1].name == "000003"


def test_what_a_killed_save_left_makes_room_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the next one fails, too."""

    def full(*written: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with intentpm.init() as pm:
        create(pm, ["plain"])
        pm.save(tmp_path)
        (tmp_path / "000002").mkdir()
        (tmp_path / "000002" / "rank-0000.safetensors").write_bytes(bytes(1000))
        monkeypatch.setattr(tensor_file.TensorFileWriter, "append", full)
        with pytest.raises(CheckpointError, match="No space left"):
            pm.save(tmp_path)
        assert names(tmp_path) == ["000001"]


def test_a_load_meanwhile_does_not_make_it_another_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    with intentpm.init() as pm:
        create(pm, ["plain"])
        pm.save(there)
    writing, loaded, finish = threading.Event(), threading.Event(), tensor_file.TensorFileWriter.finish

    def finish_late(file: Any) -> None:
        writing.set()
        assert loaded.wait(30.0)
        finish(file)

    with intentpm.init() as pm:
        create(pm, ["plain"])
        pm.save(here, incremental=True)
        monkeypatch.setattr(tensor_file.TensorFileWriter, "finish", finish_late)
        saving = pm.save(here, incremental=True, wait=False)
        assert writing.wait(30.0)
        pm.load(there)
        loaded.set()
        assert intentpm.checkpoint.verify(saving.result()).number == 2
