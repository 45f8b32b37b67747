"""The libraries that programs have arrays on a GPU with: the streams they work on, and arrays of theirs.

PyTorch, CuPy        say on which stream the calling thread works: ours is ordered with it by events
any other, by        makes the legacy stream wait for what it has to do with an array when it is asked for it
DLPack               (``producer_stream``); on which stream the array is used next nobody knows: the host waits for us
by the interface     names the stream, or has waited; as above
"""

import sys
from typing import Any

import numpy as np

from intentpm.foundation.errors import DeviceError, DtypeError

LEGACY_STREAM = 1
"""On which whatever names no stream works: CU_STREAM_LEGACY, to the driver and to DLPack."""

NO_WAIT = -1
"""To DLPack: who asks sees to the order."""


def is_ordered_by_streams(array: Any) -> bool:
    """Whether its library works on its current stream, which ``stream_of`` gives. None: one that is made for a call."""
    if array is None or type(array).__module__.partition(".")[0] == "intentpm":  # of an emulated device
        return True
    return any(isinstance(array, kind) for kind in _kinds_with_streams())


def _kinds_with_streams() -> list[Any]:
    names = {"torch": "Tensor", "cupy": "ndarray"}
    kinds = [getattr(sys.modules[module], name, None) for module, name in names.items() if module in sys.modules]
    return [kind for kind in kinds if kind is not None]  # None: another thread is importing it


def count_change(array: Any) -> None:
    """Of what is in it, by us, which its library does not see: autograd looks for changes, and so does who knows what
    keys an array holds. Arrays of libraries that count none are left as they are.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, getattr(torch, "Tensor", ())):
        torch.autograd.graph.increment_version(array)
    elif hasattr(array, "_version"):  # of an emulated device
        array._version += 1


def stream_of_other(array: Any) -> int:
    """Of an array that is not ``is_ordered_by_streams``: the stream after whose work it may be used."""
    if hasattr(array, "__dlpack_device__"):
        return LEGACY_STREAM
    named = array.__cuda_array_interface__.get("stream")
    return LEGACY_STREAM if named is None else int(named)  # None: there is nothing to wait for


def producer_stream(array: Any) -> int:
    """What ``array.__dlpack__(stream=...)`` is to be called with: which stream waits for its library."""
    return NO_WAIT if is_ordered_by_streams(array) else LEGACY_STREAM


def stream_of(array: Any, ordinal: int) -> int:
    """The stream on which the library of ``array`` has this thread work on the device of that number, as the driver
    knows it. ``None``: CuPy's where it is loaded, else PyTorch's, else the legacy stream.
    """
    if not is_ordered_by_streams(array):
        return stream_of_other(array)
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    by_torch = isinstance(array, torch.Tensor) if torch is not None else False
    if torch is not None and (by_torch or (cupy is None and torch.cuda.is_initialized())):
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
