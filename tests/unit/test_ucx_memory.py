"""What of UCX is left out where its shared memory would not fit, and which settings are tried in a child first."""

from pathlib import Path

import pytest

from intentpm.foundation.errors import TransportUnavailableError
from intentpm.launch.ucx_trial import risky_settings
from intentpm.transports import ucx_memory
from intentpm.transports.ucx_memory import MIB, UcxPlan, bytes_per_rank, plan_ucx


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch):
    """lacking("posix", ...): these kinds of shared memory do not suffice."""

    def lack(*kinds: str) -> None:
        for kind in ("posix", "sysv"):
            why = f"there is no {kind}" if kind in kinds else ""
            monkeypatch.setattr(ucx_memory, f"_{kind}_objection", lambda *_, why=why: why)

    return lack


@pytest.mark.parametrize(
    ("kinds", "wanted", "tls"),
    [
        (["posix"], "", "^posix"),
        (["posix"], "all", "^posix"),
        (["posix", "sysv"], "", "^posix,sysv"),
        (["sysv"], "^ib", "^ib,sysv"),
        (["posix"], "^posix", None),
        (["posix"], "sysv,self", None),
        (["posix"], "tcp", None),
        (["posix"], "posix,tcp", "tcp"),
        (["sysv"], "shm,self", "posix,cma,self"),
        (["posix", "sysv"], "sm,tcp", "cma,tcp"),
        (["posix"], "rc,mm", "rc,sysv"),
    ],
)
def test_what_does_not_fit_is_left_out_of_what_is_wanted(
    lacking, kinds: list[str], wanted: str, tls: str | None
) -> None:
    lacking(*kinds)
    plan = plan_ucx(2, {"UCX_TLS": wanted} if wanted else {})
    assert plan.options == ({} if tls is None else {"TLS": tls})
    assert [f"without {kind} shared memory, because there is no {kind}" in plan.note for kind in kinds] == [
        tls is not None
    ] * len(kinds)


@pytest.mark.parametrize("wanted", ["posix,self", "shm,self", "self,cma"])
def test_no_way_left_is_said(lacking, wanted: str) -> None:
    lacking("posix", "sysv")
    with pytest.raises(TransportUnavailableError, match=f"^UCX_TLS={wanted} "):
        plan_ucx(2, {"UCX_TLS": wanted})


def test_self_alone_is_no_way_between_ranks() -> None:
    with pytest.raises(TransportUnavailableError, match="UCX_TLS=self allows ucx no way between ranks"):
        plan_ucx(2, {"UCX_TLS": "self"})


def test_more_ranks_need_more() -> None:
    folder = {"UCX_POSIX_DIR": "/dev/shm"}
    if plan_ucx(1, folder) != UcxPlan():
        pytest.skip("this machine has little shared memory itself")
    assert "posix" in plan_ucx(10**7, folder).note


def test_a_folder_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    plan = plan_ucx(2, {"UCX_POSIX_DIR": str(tmp_path / "none")})
    assert plan.options["TLS"].startswith("^posix")
    assert "is missing or not writable" in plan.note


def test_limits_of_system_v_are_read(tmp_path: Path) -> None:
    for name, value in {"shmmax": 2**40, "shmall": 2**30, "shmmni": 4096}.items():
        (tmp_path / name).write_text(f"{value}\n")
    segments = tmp_path / "segments"
    segments.write_text("key shmid perms size\n0 1 600 4096\n")
    host = ucx_memory._Host("/dev/shm", tmp_path, segments)
    assert ucx_memory._sysv_objection(host, 8, {}) == ""
    for name, value in {"shmmax": 4096, "shmall": 10, "shmmni": 8}.items():
        was = (tmp_path / name).read_text()
        (tmp_path / name).write_text(str(value))
        assert f"kernel.{name}={value}" in ucx_memory._sysv_objection(host, 8, {})
        (tmp_path / name).write_text(was)
    segments.write_text("key shmid perms size\n" + f"0 1 600 {2**42 - 4096}\n")
    assert "kernel.shmall" in ucx_memory._sysv_objection(host, 8, {})


def test_sizes_set_by_hand_count() -> None:
    assert 8 * MIB < bytes_per_rank("posix", {}) < 9 * MIB
    assert bytes_per_rank("posix", {"UCX_MM_SEG_SIZE": "64k"}) > 64 * MIB
    assert bytes_per_rank("sysv", {"UCX_POSIX_SEG_SIZE": "64k"}) == bytes_per_rank("sysv", {})
    assert bytes_per_rank("sysv", {"UCX_SYSV_FIFO_SIZE": "4096", "UCX_SYSV_SEG_SIZE": "auto"}) > 60 * MIB


def test_only_sizes_of_queues_are_worth_a_trial() -> None:
    risky = {"UCX_MM_SEG_SIZE": "64k", "UCX_SYSV_FIFO_SIZE": "2", "UCX_TCP_RX_SEG_SIZE": "1k", "UCX_SELF_SEG_SIZE": "1"}
    safe = {
        "UCX_TLS": "all",
        "UCX_NET_DEVICES": "mlx5_0:1",
        "UCX_LOG_LEVEL": "info",
        "UCX_RNDV_THRESH": "1m",
        "HOME": "/",
    }
    assert risky_settings({**risky, **safe}) == sorted(f"{name}={value}" for name, value in risky.items())
    assert risky_settings(safe) == []
