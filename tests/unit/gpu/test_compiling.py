"""Every kernel compiles for the GPUs in use, by NVRTC's wheel, and touches memory as kernels.cu says it does."""

import re
from pathlib import Path

import pytest
from support import nvrtc

from intentpm.gpu.emulated import EmulatedDevice

KERNELS = Path(__file__).resolve().parents[3] / "gpu" / "kernels.cu"
SCOPE = "intentpm::gpu::"

pytestmark = pytest.mark.skipif(
    nvrtc.library() is None, reason="nvidia-cuda-nvrtc-cu12 is not installed (extra dev has it where there is a wheel)"
)


def body_of(ptx: str, mangled: str) -> str:
    found = re.search(rf"\.entry {re.escape(mangled)}\(.*?\n\}}", ptx, re.DOTALL)
    assert found is not None
    return found[0]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_every_kernel_compiles(architecture: str) -> None:
    names = EmulatedDevice.kernel_names()
    ptx, mangled = nvrtc.compile_ptx(KERNELS, names, architecture)
    assert len(names) > 70
    assert f".target {architecture}" in ptx
    for name in names:
        assert f".entry {mangled[name]}(" in ptx


def test_a_mistake_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "kernels.cu"
    broken.write_text("__global__ void f() { nonsense; }")
    with pytest.raises(nvrtc.CompileError, match="nonsense"):
        nvrtc.compile_ptx(broken, ["f"], "sm_90")


@pytest.mark.parametrize(
    ("name", "wanted", "times"),
    [
        ("gather_rows<16>", r"ld\.global\.(nc\.)?v4\.(b|u)32", 4),  # ROWS_AT_ONCE, before the first store
        ("gather_rows<16>", r"st\.global\.v4\.(b|u)32", 4),
        ("set_rows<16>", r"ld\.global\.(nc\.)?v4\.(b|u)32", 1),
        (f"add_rows<{SCOPE}Float32, 4>", r"red\.global\.add\.v4\.f32", 1),
        (f"add_to_sums<{SCOPE}Float32, 4>", r"ld\.global\.(nc\.)?v4\.f32", 1),
        (f"step_rows<{SCOPE}Sgd, {SCOPE}Float32, 4>", r"ld\.global\.(nc\.)?v4\.f32", 2),
        (f"step_rows<{SCOPE}Adam, {SCOPE}Float32, 4>", r"ld\.global\.(nc\.)?v4\.f32", 4),
        (f"step_rows<{SCOPE}Adam, {SCOPE}Float32, 4>", r"st\.global\.v4\.f32", 3),
        (f"step_rows<{SCOPE}Adam, {SCOPE}Bfloat16, 8>", r"st\.global\.v4\.f32", 4),
    ],
)
def test_rows_are_moved_by_16_bytes(name: str, wanted: str, times: int) -> None:
    ptx, mangled = nvrtc.compile_ptx(KERNELS, [SCOPE + name], "sm_90")
    assert len(re.findall(wanted, body_of(ptx, mangled[SCOPE + name]))) >= times


def test_loads_of_a_gather_are_under_way_together() -> None:
    ptx, mangled = nvrtc.compile_ptx(KERNELS, [SCOPE + "gather_rows<16>"], "sm_90")
    moves = re.findall(r"(ld|st)\.global\.(?:nc\.)?v4", body_of(ptx, mangled[SCOPE + "gather_rows<16>"]))
    assert moves == ["ld"] * 4 + ["st"] * 4
