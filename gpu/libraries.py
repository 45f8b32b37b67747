"""The libraries that programs have arrays on a GPU with: their current streams, and arrays of theirs."""

import sys
from typing import Any

import numpy as np

from intentpm.foundation.errors import DeviceError, DtypeError

LEGACY_STREAM = 0
"""On which whatever names no stream works."""


def stream_of(array: Any, ordinal: int) -> int:
    """The stream on which the library of ``array`` has this thread work on the device of that number, as the driver
    knows it. ``None``: CuPy's where it is loaded, else PyTorch's, else the legacy stream.
    """
    library = type(array).__module__.partition(".")[0]
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and (library == "torch" or (cupy is None and torch.cuda.is_initialized())):
        return int(torch.cuda.current_stream(ordinal).cuda_stream)
    if cupy is not None:
        with cupy.cuda.Device(ordinal):
            return int(cupy.cuda.get_current_stream().ptr)
    return LEGACY_STREAM


def new_array(ordinal: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """A CuPy array of garbage. Raises DeviceError without CuPy, DtypeError for bfloat16, which it has no arrays of."""
    try:
        import cupy
    except ImportError:
        raise DeviceError("results on a GPU are CuPy's arrays, and CuPy is not installed: pass out=") from None
    if dtype.kind not in "iuf":
        raise DtypeError(f"CuPy has no arrays of {dtype}: pass out=, a torch tensor")
    with cupy.cuda.Device(ordinal):
        return cupy.empty(shape, dtype)
