"""Checks of what ranks are started with and talk through: MPI, Slurm, torch, UCX."""

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from intentpm.launch.findings import Finding, last_line, run_tool, version_of
from intentpm.launch.launchers import detect_launcher
from intentpm.transports.ucx_limits import has_rdma_devices

RDMA_TRANSPORTS = ("rc", "dc", "ud", "srd", "gga")
MPIRUN_NAMES = ("mpirun", "mpirun on PATH")
"""Of the one that fits this Python, and of another that its user would start."""
_HELLO_S = 60.0
# Answers through files: mpirun 4.1 loses the output of ranks that end soon, and exits with 0.
_HELLO = (
    "import os, sys; from mpi4py import MPI; c = MPI.COMM_WORLD; "
    "said = 'sum', c.allreduce(c.rank + 1), c.size, MPI.Get_library_version().splitlines()[0]; "
    "print(*said, sep='|', file=open(f'{sys.argv[1]}/{os.getpid()}', 'w'))"
)


def check_launcher() -> Finding:
    launcher = detect_launcher(os.environ)
    said = {
        "alone": "none: intentpm.init() here makes a job of one rank",
        "local": "intentpm run",
        "mpi": "an MPI launcher",
        "slurm": "Slurm's srun",
        "torchrun": "torchrun",
    }[launcher]
    return Finding("Launcher detected", "ok", said, facts={"launcher": launcher})


def check_mpi() -> list[Finding]:
    """mpi4py, each mpirun there is, and whether two ranks of it see each other."""
    package = version_of("mpi4py")
    if package is None:
        return [Finding("mpi4py", "missing", "not installed", "for mpirun: pip install 'intentpm[mpi]'")]
    findings = [Finding("mpi4py", "ok", package, facts={"version": package})]
    launchers = _mpi_launchers()
    if not launchers:
        fix = "pip install 'intentpm[mpi]', or load the cluster's MPI module; `intentpm run` needs none"
        findings.append(Finding("mpirun", "missing", "not found", fix))
    return findings + [_check_mpirun(name, path) for name, path in zip(MPIRUN_NAMES, launchers, strict=False)]


def _mpi_launchers() -> list[str]:
    """The mpirun beside this Python, and the one on PATH where that is another."""
    beside = str(Path(sys.executable).parent)
    found = [shutil.which("mpirun", path=beside), shutil.which("mpirun") or shutil.which("mpiexec")]
    return list({os.path.realpath(path): path for path in reversed(found) if path}.values())[::-1]


def _check_mpirun(title: str, path: str) -> Finding:
    said = run_tool([path, "--version"], 15).stdout.strip()
    name = said.splitlines()[0].strip() if said else "unknown version"
    options = ["--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])] if "Open MPI" in said else []
    with tempfile.TemporaryDirectory(prefix="intentpm-doctor-") as folder:
        hello = run_tool([path, *options, "-n", "2", sys.executable, "-c", _HELLO, folder], _HELLO_S)
        answers = [file.read_text(errors="replace").strip().split("|") for file in Path(folder).iterdir()]
    facts = {"path": path, "version": name, "exit_code": hello.returncode, "answers": answers}
    if hello.returncode == 0 and [answer[1:3] for answer in answers] == [["3", "2"]] * 2:
        return Finding(title, "ok", f"{name}, 2 ranks added up ({path})", facts=facts)
    if answers and all(answer[2:3] == ["1"] for answer in answers):
        fix = f"mpi4py uses {answers[0][3]}: use the mpirun of that, or set MPI4PY_LIBMPI to this one's libmpi.so"
        return Finding(title, "warn", f"{name}: each rank saw itself alone ({path})", fix, facts)
    why = last_line(hello.stderr) or f"exit code {hello.returncode}"
    return Finding(title, "warn", f"{name}: 2 ranks failed: {why} ({path})", "see the output of mpirun itself", facts)


def check_slurm() -> Finding:
    path = shutil.which("srun")
    if path is None:
        return Finding("Slurm", "missing", "no srun on PATH")
    # Without a configuration it prints an error, and no version.
    said = run_tool([path, "--version"], 15)
    found = said.stdout.strip() or f"srun does not run: {last_line(said.stderr)}"
    if not said.stdout.strip():
        return Finding("Slurm", "warn", f"{found} ({path})", "is this machine part of the cluster?", {"path": path})
    return Finding("Slurm", "ok", f"{found} ({path})", facts={"path": path, "version": found})


def check_torch() -> Finding:
    found = version_of("torch")
    if found is None:
        return Finding(
            "torch", "missing", "not installed", "for torchrun and torch training: pip install 'intentpm[torch]'"
        )
    return Finding("torch", "ok", found, facts={"version": found})


def check_ucx() -> Finding:
    """The UCX library's version and the devices it would use."""
    tool = _ucx_info()
    if tool is None:
        return Finding("UCX", "missing", "no UCX library found", "for fast networks: pip install 'intentpm[ucx]'")
    argv, variables = tool
    said = run_tool([*argv, "-v"], 20, **variables).stdout
    devices = _ucx_devices(run_tool([*argv, "-d"], 30, **variables).stdout)
    name = next((line.lstrip("# ").strip() for line in said.splitlines() if "ersion" in line), "unknown version")
    facts = {"tool": argv[0], "version": name, "transports": devices, "ucxx": version_of("ucxx-cu12", "ucxx-cu13")}
    if not devices:
        return Finding("UCX", "warn", f"{name}: found no device", f"see the output of {argv[0]} -d", facts)
    listed = ", ".join(f"{transport} ({' '.join(names)})" for transport, names in devices.items())
    if has_rdma_devices() and not any(transport.startswith(RDMA_TRANSPORTS) for transport in devices):
        fix = (
            "this host has RDMA devices that this UCX cannot use (the wheel is built without): ranks of other hosts "
            "are reached over TCP. Take the cluster's own: INTENTPM_UCX_LIBRARY=system"
        )
        return Finding("UCX", "warn", f"{name}: {listed}", fix, facts)
    return Finding("UCX", "ok", f"{name}: {listed}", facts=facts)


def _ucx_info() -> tuple[list[str], dict[str, str]] | None:
    """The ucx_info of the libucx wheel, else of the system, and the variables it needs."""
    spec = importlib.util.find_spec("libucx")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        tool = Path(folder) / "bin" / "ucx_info"
        if tool.exists():
            return [str(tool)], {"LD_LIBRARY_PATH": str(Path(folder) / "lib")}
    system = shutil.which("ucx_info")
    return ([system], {}) if system else None


def ucx_devices() -> dict[str, list[str]]:
    """Transport -> devices of the UCX there is; empty without one."""
    tool = _ucx_info()
    return _ucx_devices(run_tool([*tool[0], "-d"], 30, **tool[1]).stdout) if tool is not None else {}


def _ucx_devices(listing: str) -> dict[str, list[str]]:
    """Transport -> devices, from the output of ``ucx_info -d``."""
    devices: dict[str, list[str]] = {}
    transport = ""
    for line in listing.splitlines():
        key, _, value = line.lstrip("# ").partition(":")
        if key.strip() == "Transport":
            transport = value.strip()
        elif key.strip() == "Device" and transport:
            devices.setdefault(transport, []).append(value.strip())
    return devices
