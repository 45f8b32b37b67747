"""Checks of what ranks are started with and talk through: MPI, Slurm, torch, UCX, GPU."""

import importlib.util
import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from intentpm.launch.findings import Finding, last_line, run_tool
from intentpm.launch.launchers import detect_launcher
from intentpm.transports.ucx_limits import has_rdma_devices

RDMA_TRANSPORTS = ("rc", "dc", "ud", "srd", "gga")
_HELLO_S = 60.0
_HELLO = (
    "from mpi4py import MPI; c = MPI.COMM_WORLD; "
    "print('sum', c.allreduce(c.rank + 1), c.size, MPI.Get_library_version().splitlines()[0], sep='|')"
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
    try:
        package = version("mpi4py")
    except PackageNotFoundError:
        return [Finding("mpi4py", "missing", "not installed", "for mpirun: pip install 'intentpm[mpi]'")]
    findings = [Finding("mpi4py", "ok", package, facts={"version": package})]
    launchers = _mpi_launchers()
    if not launchers:
        fix = "pip install 'intentpm[mpi]', or load the cluster's MPI module; `intentpm run` needs none"
        findings.append(Finding("mpirun", "missing", "not found", fix))
    return findings + [_check_mpirun(path) for path in launchers]


def _mpi_launchers() -> list[str]:
    """The mpirun beside this Python, and the one on PATH."""
    beside = str(Path(sys.executable).parent)
    found = [shutil.which("mpirun", path=beside), shutil.which("mpirun") or shutil.which("mpiexec")]
    return list(dict.fromkeys(path for path in found if path))


def _check_mpirun(path: str) -> Finding:
    said = run_tool([path, "--version"], 15).stdout.strip()
    name = said.splitlines()[0].strip() if said else "unknown version"
    options = ["--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])] if "Open MPI" in said else []
    hello = run_tool([path, *options, "-n", "2", sys.executable, "-c", _HELLO], _HELLO_S)
    answers = [line.split("|") for line in hello.stdout.splitlines() if line.startswith("sum|")]
    facts = {"path": path, "version": name, "exit_code": hello.returncode, "answers": answers}
    if hello.returncode == 0 and [answer[1:3] for answer in answers] == [["3", "2"]] * 2:
        return Finding("mpirun", "ok", f"{name}, 2 ranks added up ({path})", facts=facts)
    if answers and all(answer[2] == "1" for answer in answers):
        fix = f"mpi4py uses {answers[0][3]}: use the mpirun of that, or set MPI4PY_LIBMPI to this one's libmpi.so"
        return Finding("mpirun", "warn", f"{name}: each rank saw itself alone ({path})", fix, facts)
    why = last_line(hello.stderr) or f"exit code {hello.returncode}"
    return Finding(
        "mpirun", "warn", f"{name}: 2 ranks failed: {why} ({path})", "see the output of mpirun itself", facts
    )


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
    try:
        found = version("torch")
    except PackageNotFoundError:
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
    facts = {"tool": argv[0], "version": name, "transports": devices, "ucxx": _version_of("ucxx-cu12", "ucxx-cu13")}
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


def check_gpu() -> Finding:
    driver = Path("/proc/driver/nvidia/version")
    cupy = _version_of("cupy-cuda12x", "cupy-cuda13x", "cupy")
    if not driver.exists():
        return Finding("GPU", "missing", "no NVIDIA driver", facts={"cupy": cupy})
    listed = run_tool(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"], 20)
    gpus = [line.strip() for line in listed.stdout.splitlines() if line.strip()]
    facts = {"gpus": gpus, "cupy": cupy}
    if not gpus:
        return Finding("GPU", "warn", f"driver, but no device: {last_line(listed.stderr)}", "check nvidia-smi", facts)
    if cupy is None:
        fix = "for tables in GPU memory: pip install 'intentpm[gpu]'"
        return Finding("GPU", "warn", f"{'; '.join(gpus)}; CuPy is not installed", fix, facts)
    code = "import cupy; a = cupy.arange(10); print('sum', int(a.sum()))"
    tried = run_tool([sys.executable, "-c", code], 60)
    if tried.stdout.strip() != "sum 45":
        return Finding("GPU", "warn", f"{'; '.join(gpus)}; CuPy {cupy} fails: {last_line(tried.stderr)}", "", facts)
    return Finding("GPU", "ok", f"{'; '.join(gpus)}; CuPy {cupy} works", facts=facts)


def _version_of(*packages: str) -> str | None:
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None
