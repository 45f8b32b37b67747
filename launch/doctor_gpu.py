"""Checks of GPUs, and of the ways for their memory into the network, each on its own: none hides another."""

import sys
from pathlib import Path

from intentpm.launch.findings import Finding, last_line, run_tool, version_of

_CUPY_PACKAGES = ("cupy-cuda12x", "cupy-cuda13x", "cupy")
_TRY_CUPY = "import cupy; a = cupy.arange(10); print('sum', int(a.sum()))"
# Which devices reach each other's memory, and CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED of each.
_ASK_DRIVER = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
count, value = ctypes.c_int(), ctypes.c_int()
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
for a in range(count.value):
    assert cuda.cuDeviceGetAttribute(ctypes.byref(value), 124, a) == 0
    print("dma-buf", a, value.value)
    for b in range(count.value):
        if a != b and cuda.cuDeviceCanAccessPeer(ctypes.byref(value), a, b) == 0:
            print("peer", a, b, value.value)
"""
# What a rank loads: MPI where there is some, then the UCX of the transport.
_LOAD_UCX = """
try:
    from mpi4py import MPI
except ImportError:
    pass
from intentpm.transports.ucx_library import load_library
try:
    load_library()
except Exception as error:
    print("not loaded:", error)
for line in open("/proc/self/maps"):
    path = line.split(maxsplit=5)[-1].strip()
    if path.rpartition("/")[2].startswith("libucp"):
        print("libucp", path)
"""


def check_gpu() -> list[Finding]:
    """The driver, its devices, CuPy; then what moves device memory between devices and into the network."""
    findings = [_check_devices()]
    if findings[0].verdict != "missing":
        findings += [*_check_driver_answers(), _check_bar1(), _check_peermem(), _check_ucx_build()]
    return [*findings, _check_libucp()]


def _check_devices() -> Finding:
    driver = Path("/proc/driver/nvidia/version")
    cupy = version_of(*_CUPY_PACKAGES)
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
    tried = run_tool([sys.executable, "-c", _TRY_CUPY], 60)
    if tried.stdout.strip() != "sum 45":
        fix = "install the CuPy that fits the driver's CUDA (cupy-cuda12x, cupy-cuda13x)"
        return Finding("GPU", "warn", f"{'; '.join(gpus)}; CuPy {cupy} fails: {last_line(tried.stderr)}", fix, facts)
    return Finding("GPU", "ok", f"{'; '.join(gpus)}; CuPy {cupy} works", facts=facts)


def _check_driver_answers() -> list[Finding]:
    said = run_tool([sys.executable, "-c", _ASK_DRIVER], 60)
    if said.returncode:
        fix = "is libcuda.so.1 of the driver that runs?"
        return [Finding("GPU driver", "warn", f"does not answer: {last_line(said.stderr)}", fix)]
    return list(read_driver_answers(said.stdout))


def read_driver_answers(answers: str) -> tuple[Finding, Finding]:
    """What _ASK_DRIVER printed, as findings on peer access and dma-buf."""
    lines = [line.split() for line in answers.splitlines()]
    pairs = {f"{a}-{b}": ok == "1" for kind, a, b, *rest in (line for line in lines if len(line) == 4) for ok in rest}
    exports = {line[1]: line[2] == "1" for line in lines if line and line[0] == "dma-buf"}
    apart = [pair for pair, reach in pairs.items() if not reach]
    if not pairs:
        peers = Finding("GPU peer access", "ok", "one device: nothing to reach", facts={"pairs": pairs})
    elif apart:
        fix = "devices under different PCIe roots, or a virtual machine without it: their rows go through the host"
        peers = Finding("GPU peer access", "warn", f"not between {', '.join(apart)}", fix, {"pairs": pairs})
    else:
        peers = Finding("GPU peer access", "ok", f"between all {len(exports)} devices", facts={"pairs": pairs})
    if all(exports.values()):
        dma = Finding("GPU dma-buf", "ok", "the driver exports device memory", facts={"devices": exports})
    else:
        fix = "needs the open kernel modules of the driver and Linux 5.12; else nvidia-peermem does it"
        dma = Finding("GPU dma-buf", "warn", "the driver does not export device memory", fix, {"devices": exports})
    return peers, dma


def _check_bar1() -> Finding:
    return read_bar1(run_tool(["nvidia-smi", "-q", "-d", "MEMORY"], 20).stdout)


def read_bar1(listing: str) -> Finding:
    """How much of a device's memory others on the bus can reach at once: BAR1 beside the memory, in MiB."""
    section, totals = "", {"FB": 0, "BAR1": 0}
    for line in listing.splitlines():
        name, _, value = line.partition(":")
        if not value and name.strip().endswith("Memory Usage"):
            section = name.split()[0]
        elif name.strip() == "Total" and section in totals and value.split()[0].isdecimal():
            totals[section] = totals[section] or int(value.split()[0])
    facts = {"memory_mib": totals["FB"], "bar1_mib": totals["BAR1"]}
    found = f"{totals['BAR1']} MiB of {totals['FB']} MiB"
    if totals["BAR1"] == 0:
        return Finding("GPU BAR1", "warn", "nvidia-smi does not say", "nvidia-smi -q -d MEMORY", facts)
    if totals["BAR1"] < totals["FB"]:
        fix = "slabs larger than it cannot be registered for RDMA whole: enable resizable BAR, or above-4G decoding"
        return Finding("GPU BAR1", "warn", found, fix, facts)
    return Finding("GPU BAR1", "ok", found, facts=facts)


def _check_peermem(modules: str = "/sys/module") -> Finding:
    loaded = [name for name in ("nvidia_peermem", "nv_peer_mem") if Path(modules, name).exists()]
    if loaded:
        return Finding("GPU nvidia-peermem", "ok", f"{loaded[0]} is loaded", facts={"modules": loaded})
    fix = "for RDMA where dma-buf lacks: modprobe nvidia-peermem"
    return Finding("GPU nvidia-peermem", "missing", "not loaded", fix)


def _check_ucx_build() -> Finding:
    from intentpm.launch.doctor_software import ucx_devices

    transports = [name for name in ucx_devices() if name.startswith(("cuda", "gdr"))]
    if transports:
        return Finding("UCX and CUDA", "ok", f"{', '.join(transports)}", facts={"transports": transports})
    fix = "messages of rows on a device are staged in host memory; a UCX built with CUDA moves them itself"
    return Finding("UCX and CUDA", "warn", "this UCX has no CUDA, or no device for it", fix, {"transports": []})


def _check_libucp() -> Finding:
    return read_maps(run_tool([sys.executable, "-c", _LOAD_UCX], 60).stdout)


def read_maps(said: str) -> Finding:
    """Every libucp in the maps of a process that loaded what a rank loads."""
    paths = sorted({line.partition(" ")[2] for line in said.splitlines() if line.startswith("libucp ")})
    facts = {"paths": paths}
    if not paths:
        return Finding("libucp in a rank", "missing", "none is loaded", facts=facts)
    if len(paths) > 1:
        fix = "two fight over memory hooks and signals: use one (INTENTPM_UCX_LIBRARY=system, or an MPI without UCX)"
        return Finding("libucp in a rank", "warn", f"{len(paths)}: {', '.join(paths)}", fix, facts)
    return Finding("libucp in a rank", "ok", paths[0], facts=facts)
