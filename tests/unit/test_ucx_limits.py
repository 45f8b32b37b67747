"""Limits of a machine are recognised where they are, and only there."""

import pathlib
import resource
import types

import pytest

from intentpm.transports import ucx_limits


def test_a_missing_folder_for_shared_memory(tmp_path: pathlib.Path) -> None:
    assert "mount a tmpfs" in ucx_limits._shared_memory(str(tmp_path / "shm"))


@pytest.mark.parametrize(("free_mib", "found"), [(8, True), (63, True), (64, False), (4096, False)])
def test_little_shared_memory(
    free_mib: int, found: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = types.SimpleNamespace(f_bavail=free_mib << 8, f_frsize=4096)
    monkeypatch.setattr(ucx_limits.os, "statvfs", lambda _: status)
    line = ucx_limits._shared_memory(str(tmp_path))
    assert (line is not None) == found
    assert not found or f"{free_mib} MiB free" in line


@pytest.mark.parametrize(
    ("device", "limit_bytes", "found"),
    [(True, 64 << 10, True), (False, 64 << 10, False), (True, resource.RLIM_INFINITY, False)],
)
def test_locked_memory_counts_only_with_rdma_devices(
    device: bool, limit_bytes: int, found: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device:
        (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr(ucx_limits.resource, "getrlimit", lambda _: (limit_bytes, limit_bytes))
    line = ucx_limits._locked_memory(str(tmp_path))
    assert (line is not None) == found
    assert not found or "64 KiB" in line


@pytest.mark.parametrize(
    ("scope", "user", "found"), [("0", 1000, False), ("1", 1000, True), ("1", 0, False), (None, 1000, False)]
)
def test_ptrace_scope(
    scope: str | None, user: int, found: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ptrace_scope"
    if scope is not None:
        path.write_text(scope + "\n")
    monkeypatch.setattr(ucx_limits.os, "geteuid", lambda: user)
    assert (ucx_limits._single_copy(str(path)) is not None) == found
