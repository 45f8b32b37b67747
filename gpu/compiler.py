"""Kernels of ``kernels.cu`` by CuPy, which asks NVRTC for them when they are first needed and keeps them on disk."""

from collections.abc import Iterable
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.cu")


def compile_with_cupy(ordinal: int, names: Iterable[str]) -> dict[str, int]:
    """Compiles for the device of that number; returns the driver's handles. They are there as long as the process.

    Raises ImportError without CuPy, CuPy's CompileException for what NVRTC refuses.
    """
    import cupy

    names = list(names)
    with cupy.cuda.Device(ordinal):
        module = cupy.RawModule(
            code=SOURCE.read_text(), options=("--std=c++17", f"-I{SOURCE.parent}"), name_expressions=names
        )
        kernels = {name: module.get_function(name).kernel for name in names}
    _kept.append((module, kernels))
    return {name: kernel.ptr for name, kernel in kernels.items()}


_kept: list[object] = []
"""Modules: unloaded with their last object, while native code still has the handles."""
