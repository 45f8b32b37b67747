"""Checks of Python, the package and the machine."""

import importlib
import os
import platform
import resource
import socket
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from intentpm.launch.cores import cgroup_cores, usable_cores
from intentpm.launch.findings import Finding, Verdict, format_bytes
from intentpm.transports.ucx_limits import has_rdma_devices

SMALL_SHM_BYTES = 1 << 30
SMALL_MEMLOCK_BYTES = 1 << 30
NATIVE_MODULES = ("intentpm.runtime._native.engine", "intentpm.runtime._native.store", "intentpm.transports.tcp")


def check_python() -> Finding:
    found = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    return Finding("Python", "ok", found, facts={"version": platform.python_version(), "executable": sys.executable})


def check_package() -> Finding:
    """The installed version, and that the compiled modules load."""
    import numpy

    for module in NATIVE_MODULES:
        try:
            importlib.import_module(module)
        except ImportError as error:
            return Finding("intentpm", "broken", f"{module} does not load: {error}", "reinstall: pip install intentpm")
    try:
        package = distribution("intentpm")
    except PackageNotFoundError:
        return Finding("intentpm", "broken", "not installed", "pip install intentpm")
    native = Path(sys.modules[NATIVE_MODULES[0]].__file__ or "")
    editable = '"editable": true' in (package.read_text("direct_url.json") or "")
    found = f"{package.version}{' (editable)' if editable else ''}, numpy {numpy.__version__}, {native.parent}"
    return Finding(
        "intentpm", "ok", found, facts={"version": package.version, "native": str(native), "editable": editable}
    )


def check_cores() -> Finding:
    online, allowed, quota = os.cpu_count() or 1, len(os.sched_getaffinity(0)), cgroup_cores()
    limits = [f"affinity {allowed}"] if allowed < online else []
    limits += [f"cgroup quota {quota:g}"] if quota is not None else []
    found = f"{usable_cores()} usable of {online}, {', '.join([*limits, platform.machine()])}"
    facts = {"online": online, "affinity": allowed, "cgroup_quota": quota, "usable": usable_cores()}
    if usable_cores() == 1:
        return Finding("CPU cores", "warn", found, "ranks and their progress threads will share one core", facts)
    return Finding("CPU cores", "ok", found, facts=facts)


def check_memory() -> Finding:
    total, free = _memory_bytes()
    limit = _cgroup_memory_bytes()
    found = f"{format_bytes(free)} available of {format_bytes(total)}"
    found += f" (cgroup limit {format_bytes(limit)})" if limit is not None and limit < total else ""
    return Finding("Memory", "ok", found, facts={"total_bytes": total, "available_bytes": free, "cgroup_bytes": limit})


def check_overcommit() -> Finding:
    mode = int(Path("/proc/sys/vm/overcommit_memory").read_text())
    names = {0: "heuristic", 1: "always", 2: "never"}
    found = f"{mode} ({names.get(mode, 'unknown')})"
    if mode == 2:
        fix = "tables are reserved before they are touched; allow it with: sysctl vm.overcommit_memory=0"
        return Finding("Memory overcommit", "warn", found, fix, {"mode": mode})
    return Finding("Memory overcommit", "ok", found, facts={"mode": mode})


def check_shared_memory(folder: str = "/dev/shm") -> Finding:
    try:
        status = os.statvfs(folder)
    except OSError as error:
        fix = "mount it: ucx uses it between ranks of one host"
        return Finding("Shared memory", "warn", f"{folder}: {error.strerror}", fix)
    size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    found, facts = (
        f"{format_bytes(free)} free of {format_bytes(size)} in {folder}",
        {"size_bytes": size, "free_bytes": free},
    )
    if free < SMALL_SHM_BYTES:
        fix = "ucx needs room between ranks of one host; in a container: docker run --shm-size=8g"
        return Finding("Shared memory", "warn", found, fix, facts)
    return Finding("Shared memory", "ok", found, facts=facts)


def check_memlock() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    has_rdma = has_rdma_devices()
    found = "unlimited" if soft == resource.RLIM_INFINITY else format_bytes(soft)
    facts = {"soft_bytes": soft, "hard_bytes": hard, "has_rdma": has_rdma}
    if not has_rdma:
        return Finding("Locked memory limit", "ok", f"{found} (no RDMA device needs it)", facts=facts)
    if soft != resource.RLIM_INFINITY and soft < SMALL_MEMLOCK_BYTES:
        fix = "RDMA pins memory: ulimit -l unlimited (/etc/security/limits.conf; Slurm: PropagateResourceLimits)"
        return Finding("Locked memory limit", "warn", found, fix, facts)
    return Finding("Locked memory limit", "ok", found, facts=facts)


def check_interfaces() -> Finding:
    """Addresses at which other hosts could reach a rank here."""
    from intentpm.transports.interfaces import list_interface_addresses

    entries = list_interface_addresses()
    outward = [entry for entry in entries if not entry.is_loopback]
    found = ", ".join(f"{entry.interface} {entry.address}" for entry in outward) or "loopback only"
    facts = {"addresses": [{"interface": entry.interface, "address": entry.address} for entry in entries]}
    if not outward:
        fix = "ranks on other hosts cannot be reached; all ranks on this host can"
        return Finding("Network", "warn", found, fix, facts)
    return Finding("Network", "ok", found, facts=facts)


def check_ports() -> list[Finding]:
    """That a rank can listen and be connected to, on each kind of address."""
    findings = [_check_listen("IPv4", socket.AF_INET, "127.0.0.1", "broken")]
    if socket.has_ipv6:
        findings.append(_check_listen("IPv6", socket.AF_INET6, "::1", "missing"))
    return findings


def _check_listen(kind: str, family: socket.AddressFamily, host: str, otherwise: Verdict) -> Finding:
    name = f"Ports ({kind})"
    try:
        with socket.create_server((host, 0), family=family) as server:
            server.settimeout(5)
            with socket.create_connection(server.getsockname()[:2], timeout=5) as out:
                accepted, _ = server.accept()
                with accepted:
                    out.sendall(b"ping")
                    accepted.settimeout(5)
                    received = accepted.recv(4)
    except OSError as error:
        fix = "ranks of one host meet there: allow it in the firewall or sandbox" if otherwise == "broken" else ""
        return Finding(name, otherwise, f"cannot listen and connect on {host}: {error}", fix)
    return Finding(name, "ok", f"listened and connected on {host} ({len(received)} bytes passed)")


def _memory_bytes() -> tuple[int, int]:
    """Total and available."""
    values = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return tuple(int(values[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))  # type: ignore[return-value]


def _cgroup_memory_bytes() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError):
            continue
    return None
