"""Files that appear whole or not at all."""

import os
import pickle
import resource
import stat
import threading
from contextlib import contextmanager

import pytest

from intentpm.foundation import whole_file
from intentpm.foundation.errors import NotWrittenError
from intentpm.foundation.whole_file import write_or_keep, write_whole

LIMIT_BYTES = 64 * 1024
TOO_MUCH = bytes(2 * LIMIT_BYTES)


@contextmanager
def small_files():
    """The system refuses what a file would have beyond LIMIT_BYTES: in the middle, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_new_file_in_a_new_folder(tmp_path):
    path = tmp_path / "a" / "b" / "results.json"
    write_whole(path, b"new")
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode == plain.stat().st_mode, "as open() would have made it"


def test_what_was_there_stays_until_all_is_written(tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(b"old")
    with small_files(), pytest.raises(OSError, match="File too large"):
        write_whole(path, TOO_MUCH)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path], "no part is left"
    path.chmod(0o640)
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "file")
    for contents in (b"made through it", b"replaced through it"):
        write_whole(tmp_path / "link", contents)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "file").read_bytes() == contents


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_whole(pipe, b"through")
    reader.join(30)
    assert got == [b"through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_folder_of_that_name_is_an_error(tmp_path):
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path, b"x")


def test_a_write_protected_file_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_bytes(b"mine")
    path.chmod(0o400)
    if os.geteuid() == 0:  # root may write everything: ask as the user would be answered
        monkeypatch.setattr(whole_file.os, "access", lambda *_: False)
    with pytest.raises(PermissionError):
        write_whole(path, b"new")
    assert path.read_bytes() == b"mine"


def test_contents_are_kept_elsewhere(tmp_path):
    (tmp_path / "taken").write_bytes(b"a file, not a folder")
    with pytest.raises(
        NotWrittenError, match=r"taken/r.json could not be written \(.*\); its contents were kept as"
    ) as e:
        write_or_keep(tmp_path / "taken" / "r.json", b"hours of work")
    assert e.value.kept.read_bytes() == b"hours of work"
    assert e.value.kept.name == "r.json"
    assert str(e.value.kept) in str(e.value)
    again = pickle.loads(pickle.dumps(e.value))
    assert (str(again), again.kept) == (str(e.value), e.value.kept)
    e.value.kept.unlink()
    e.value.kept.parent.rmdir()


def test_nowhere_to_keep_them(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("temporary", "home")]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr(whole_file.tempfile, "gettempdir", lambda: str(folders[0]))
    monkeypatch.setenv("HOME", str(folders[1]))
    with small_files(), pytest.raises(NotWrittenError, match="nor could a temporary file") as e:
        write_or_keep(tmp_path / "r.json", TOO_MUCH)
    assert e.value.kept is None
    assert sorted(tmp_path.rglob("*")) == sorted(folders), "nothing is left behind"
