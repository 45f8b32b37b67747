"""``intentpm doctor`` on this machine, and the verdicts of its checks on machines that are not well."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("rich", reason="rich is not installed: pip install 'intentpm[cli]'")

from click.testing import CliRunner

from intentpm.launch import doctor, doctor_machine, doctor_software, doctor_transports
from intentpm.launch.findings import Finding, format_bytes, run_tool

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def report() -> dict[str, dict[str, object]]:
    """The findings of a real run, by name."""
    done = subprocess.run(
        [sys.executable, "-m", "intentpm", "doctor", "--json"], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    findings = json.loads(done.stdout)
    by_name = {finding["name"]: finding for finding in findings}
    assert len(by_name) == len(findings), "two findings of one name cannot be told apart"
    return by_name


def test_report_covers_this_machine(report: dict[str, dict[str, object]]) -> None:
    assert {finding["verdict"] for finding in report.values()} <= {"ok", "warn", "missing"}
    for name in ("Python", "intentpm", "CPU cores", "Ports (IPv4)", "Launcher detected", "Transport tcp"):
        assert report[name]["verdict"] in ("ok", "warn"), report[name]
    assert report["CPU cores"]["facts"]["affinity"] == len(os.sched_getaffinity(0))
    assert report["Python"]["facts"]["executable"] == sys.executable
    assert report["Launcher detected"]["facts"]["launcher"] == "alone"


def test_what_is_not_ok_says_what_to_do_or_is_optional(report: dict[str, dict[str, object]]) -> None:
    for finding in report.values():
        assert finding["found"], finding
        assert finding["fix"] or finding["verdict"] != "warn", finding


def test_transports_carried_real_bytes(report: dict[str, dict[str, object]]) -> None:
    facts = report["Transport tcp"]["facts"]
    assert 1 < facts["round_trip_us"] < 100_000
    assert facts["gigabytes_per_s"] > 0.001
    assert report["Transport auto takes"]["facts"]["transport"] in ("ucx", "tcp")


def test_mpi_ranks_were_really_started(report: dict[str, dict[str, object]]) -> None:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'intentpm[mpi]'")
    if not report["mpirun"]["facts"]:
        pytest.skip("no mpirun")
    assert [answer[1:3] for answer in report["mpirun"]["facts"]["answers"]] == [["3", "2"]] * 2


def test_every_mpirun_was_tried(report: dict[str, dict[str, object]]) -> None:
    """A system's Open MPI beside the one that fits this Python: its ranks answer, or it is said what does not fit."""
    if "mpirun on PATH" not in report:
        pytest.skip("one mpirun only (Debian: openmpi-bin)")
    first, second = (report[name] for name in doctor_software.MPIRUN_NAMES)
    assert first["facts"]["path"] != second["facts"]["path"]
    answers = [answer[1:3] for answer in second["facts"]["answers"]]
    assert second["fix"] if second["verdict"] == "warn" else answers == [["3", "2"]] * 2, second


def test_one_mpirun_of_two_names_is_one_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/mpirun").write_text("#!/bin/sh\n")
    (tmp_path / "a/mpirun").chmod(0o755)
    (tmp_path / "b/mpirun").symlink_to("../a/mpirun")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "b/python"))
    monkeypatch.setenv("PATH", str(tmp_path / "a"))
    assert doctor_software._mpi_launchers() == [str(tmp_path / "b/mpirun")]


def test_answers_of_ranks_whose_output_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'intentpm[mpi]'")
    real = doctor_software._mpi_launchers()
    if not real:
        pytest.skip("no mpirun")
    mpirun = tmp_path / "mpirun"
    mpirun.write_text(f'#!/bin/sh\n[ $1 = --version ] && exec {real[0]} "$@"\n{real[0]} "$@" > /dev/null 2>&1\n')
    mpirun.chmod(0o755)
    monkeypatch.setattr(doctor_software, "_mpi_launchers", lambda: [str(mpirun)])
    _, finding = doctor_software.check_mpi()
    assert finding.verdict == "ok", finding


def run_doctor(monkeypatch: pytest.MonkeyPatch, findings: list[Finding], *args: str):
    monkeypatch.setattr(doctor, "CHECKS", {"the check": lambda: findings})
    return CliRunner().invoke(doctor.doctor, args)


def test_exit_code_is_1_only_for_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = [
        Finding("a", "ok", "there"),
        Finding("b", "warn", "slow [red]"),
        Finding("c", "missing", "not there", "get it"),
    ]
    done = run_doctor(monkeypatch, fine)
    assert done.exit_code == 0
    assert all(word in done.output for word in ("slow [red]", "missing", "get it"))
    assert run_doctor(monkeypatch, [*fine, Finding("d", "broken", "no sockets")]).exit_code == 1
    assert run_doctor(monkeypatch, [Finding("d", "broken", "no sockets")], "--json").exit_code == 1


def test_check_that_raises_is_a_finding() -> None:
    def broken() -> Finding:
        raise OSError("no /proc")

    (finding,) = doctor.examine({"Memory": broken})
    assert (finding.name, finding.verdict, finding.found) == (
        "Memory",
        "warn",
        "could not be checked: OSError: no /proc",
    )


def test_small_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    status = SimpleNamespace(f_blocks=16384, f_frsize=4096, f_bavail=16384)
    monkeypatch.setattr(os, "statvfs", lambda _: status)
    finding = doctor_machine.check_shared_memory()
    assert (finding.verdict, finding.found) == ("warn", "64 MiB free of 64 MiB in /dev/shm")
    assert "--shm-size" in finding.fix


def test_no_shared_memory(tmp_path: Path) -> None:
    assert doctor_machine.check_shared_memory(str(tmp_path / "none")).verdict == "warn"


@pytest.mark.parametrize(
    ("soft", "has_rdma", "verdict"), [(8 << 20, True, "warn"), (8 << 20, False, "ok"), (-1, True, "ok")]
)
def test_locked_memory(monkeypatch: pytest.MonkeyPatch, soft: int, has_rdma: bool, verdict: str) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    monkeypatch.setattr(doctor_machine, "has_rdma_devices", lambda: has_rdma)
    assert doctor_machine.check_memlock().verdict == verdict


def test_machine_that_cannot_listen_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("socket.create_server", refuse)
    verdicts = {finding.name: finding.verdict for finding in doctor_machine.check_ports()}
    assert verdicts["Ports (IPv4)"] == "broken"
    assert verdicts.get("Ports (IPv6)", "missing") == "missing"


def test_transport_that_fails_between_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nTransportError: no route\nintentpm run: rank 1 ended\n")
    monkeypatch.setattr(doctor_transports, "run_tool", lambda *_, **__: failed)
    monkeypatch.setattr(doctor_transports, "survey_transports", lambda: {"ucx": "not installed", "tcp": ""})
    ucx, tcp, auto = doctor_transports.check_transports()
    assert (ucx.verdict, tcp.verdict, auto.verdict) == ("missing", "broken", "broken")
    assert "TransportError: no route" in tcp.found


def test_mpirun_of_another_library_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpirun = tmp_path / "mpirun"
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'intentpm[mpi]'")
    real = doctor_software._mpi_launchers()
    if not real:
        pytest.skip("no mpirun")
    # Starts two programs that know nothing of each other.
    alone = f'{real[0]} {"--allow-run-as-root" if os.geteuid() == 0 else ""} -n 1 "$@"'
    mpirun.write_text(f"#!/bin/sh\n[ $1 = --version ] && echo HYDRA && exit\nshift 2\n{alone}\n{alone}\n")
    mpirun.chmod(0o755)
    monkeypatch.setattr(doctor_software, "_mpi_launchers", lambda: [str(mpirun)])
    _, finding = doctor_software.check_mpi()
    assert finding.verdict == "warn"
    assert "HYDRA: each rank saw itself alone" in finding.found
    assert "mpi4py uses Open MPI v" in finding.fix


def test_ucx_devices_are_read() -> None:
    listing = "# Transport: tcp\n#   Device: eth0\n#  x\n# Transport: tcp\n#   Device: lo\n#   Transport: cma\n"
    assert doctor_software._ucx_devices(listing) == {"tcp": ["eth0", "lo"]}


def test_tools_are_ended_at_their_deadline_with_their_children(tmp_path: Path) -> None:
    done = run_tool(["sh", "-c", f"sleep 50 & echo $! > {tmp_path}/pid; wait"], 0.5)
    assert done.returncode == 124
    assert "no end within 0.5 s" in done.stderr
    deadline = time.monotonic() + 20
    while _is_running(child := (tmp_path / "pid").read_text().strip()):  # a signal sent is not yet a process ended
        assert time.monotonic() < deadline, f"child {child} of the tool still runs"
        time.sleep(0.01)
    assert run_tool(["/no/such/program"], 1).returncode == 127


def _is_running(pid: str) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it ended: ProcessLookupError while we read, FileNotFoundError before
        return False


def test_tools_do_not_see_our_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INTENTPM_RANK", "OMPI_COMM_WORLD_SIZE", "RANK", "SLURM_PROCID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    listed = run_tool(["env"], 10, EXTRA="yes").stdout
    assert "EXTRA=yes" in listed
    assert "SLURM_CONF=" in listed
    assert not any(line.startswith(("INTENTPM_", "OMPI_", "RANK", "SLURM_PROCID")) for line in listed.splitlines())


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (8 << 20, "8 MiB"), (3 << 40, "3 TiB")])
def test_sizes(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(("has_rdma_device", "transport", "verdict"), [
    (True, "tcp", "warn"), (True, "rc_mlx5", "ok"), (False, "tcp", "ok"),
])  # fmt: skip
def test_a_ucx_that_cannot_use_this_host_s_rdma_is_pointed_out(
    monkeypatch: pytest.MonkeyPatch, has_rdma_device: bool, transport: str, verdict: str
) -> None:
    said = subprocess.CompletedProcess(
        [], 0, f"# Library version: 1.21.0\n# Transport: {transport}\n# Device: x0\n", ""
    )
    monkeypatch.setattr(doctor_software, "_ucx_info", lambda: (["ucx_info"], {}))
    monkeypatch.setattr(doctor_software, "run_tool", lambda *_, **__: said)
    monkeypatch.setattr(doctor_software, "has_rdma_devices", lambda: has_rdma_device)
    finding = doctor_software.check_ucx()
    assert finding.verdict == verdict
    assert ("INTENTPM_UCX_LIBRARY" in finding.fix) == (verdict == "warn")
