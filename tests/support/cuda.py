"""Whether tests that need a CUDA device can run here."""

import importlib.util
from functools import cache

import pytest

from intentpm.foundation.errors import DeviceError
from intentpm.gpu.cuda import CudaDevice


@cache
def why_no_cuda() -> str:
    """Empty: there is a device, and CuPy to compile for it."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    try:
        CudaDevice(0)
    except DeviceError as error:
        return str(error)
    return ""


def on_cuda(*values: object) -> object:
    """A parameter that needs one."""
    reason = why_no_cuda()
    return pytest.param(*values, marks=(pytest.mark.gpu, pytest.mark.skipif(bool(reason), reason=reason or "-")))
