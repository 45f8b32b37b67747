"""Compiles CUDA C++ by NVIDIA's run-time compiler, from the wheel ``nvidia-cuda-nvrtc-cu12``; needs no GPU."""

import ctypes
import importlib.util
from functools import cache
from pathlib import Path


class CompileError(Exception):
    """The compiler's log."""


@cache
def library() -> ctypes.CDLL | None:
    """None: the wheel is not installed."""
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations or [] if found is not None else []:
        for path in Path(folder).glob("cu*/**/libnvrtc.so.*"):
            return ctypes.CDLL(str(path))
    return None


def compile_ptx(source: Path, names: list[str], architecture: str) -> tuple[str, dict[str, str]]:
    """PTX for ``architecture`` ("sm_90"), and the name in it of each of the kernels that ``names`` ask for.

    Raises CompileError.
    """
    nvrtc = library()
    assert nvrtc is not None
    program = ctypes.c_void_p()
    _check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), b"kernels.cu", 0, None, None))
    for name in names:
        _check(nvrtc, nvrtc.nvrtcAddNameExpression(program, name.encode()))
    options = [f"--gpu-architecture=compute_{architecture[3:]}", "--std=c++17", f"-I{source.parent}"]
    failed = nvrtc.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    )
    if failed:
        raise CompileError(_text(nvrtc, program, "nvrtcGetProgramLog"))
    lowered = {}
    for name in names:
        mangled = ctypes.c_char_p()
        _check(nvrtc, nvrtc.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(mangled)))
        assert mangled.value is not None
        lowered[name] = mangled.value.decode()
    ptx = _text(nvrtc, program, "nvrtcGetPTX")
    _check(nvrtc, nvrtc.nvrtcDestroyProgram(ctypes.byref(program)))
    return ptx, lowered


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    _check(nvrtc, getattr(nvrtc, what + "Size")(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _check(nvrtc, getattr(nvrtc, what)(program, text))
    return text.value.decode()


def _check(nvrtc: ctypes.CDLL, status: int) -> None:
    if status:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise CompileError(nvrtc.nvrtcGetErrorString(status).decode())
