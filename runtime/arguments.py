"""What people pass as keys, rows and numbers, as what the store takes: NumPy arrays of its dtypes, and whole numbers.

Accepted: NumPy arrays (memory maps too), torch tensors in host memory, nested lists, numbers, whatever else NumPy can
read. Refused, never bent: values that the dtype cannot hold, bools, text, a mask's holes, a float where a whole number
is meant. The data path comes here only with what it cannot use as it is.
"""

import operator
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from intentpm.foundation.errors import DtypeError, KeyRangeError, ShapeError

Array = npt.NDArray[Any]

MOST_KEYS = 2**31 - 1
"""In one call."""


class UnfitError(DtypeError):
    """A value that the dtype cannot hold; ``position`` is its row."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(message)
        self.position = position


def as_keys(keys: Any) -> npt.NDArray[np.int64]:
    """``keys`` as int64 [K], contiguous, whatever integers they are. Raises ShapeError, DtypeError, KeyRangeError."""
    try:
        array = as_array(keys, "keys", "iuf")
    except DtypeError:
        if isinstance(keys, list | tuple) and keys and all(type(key) is int for key in keys):
            raise KeyRangeError(f"key {max(keys, key=abs)} does not fit in int64") from None
        raise
    if array.ndim != 1:
        raise ShapeError(f"keys have shape {array.shape}: pass a one-dimensional array")
    if array.size and array.dtype.kind not in "iu":
        raise DtypeError(f"keys have dtype {array.dtype}: pass integers (int64)")
    if array.size > MOST_KEYS:
        raise ShapeError(f"{array.size} keys in one call: pass at most {MOST_KEYS}")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise KeyRangeError(f"key {array.max()} does not fit in int64")
    return np.ascontiguousarray(array, dtype=np.int64)


def as_rows(values: Any, dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> Array:
    """``values`` as contiguous rows of ``dtype`` and ``shape``. What has a dtype must have this one; lists are
    converted.

    Raises ShapeError, DtypeError; ``what`` names the argument and the table.
    """
    array = as_array(values, what)
    if hasattr(values, "dtype"):
        if array.dtype != dtype:
            raise DtypeError(f"{what} have dtype {array.dtype}, the table has {dtype}")
    elif array.size == 0 == shape[0]:
        array = np.empty(shape, dtype)
    if array.shape != shape:
        raise ShapeError(f"{what} have shape {array.shape}, expected {shape}")
    try:
        return np.ascontiguousarray(cast(array, dtype, what))
    except UnfitError as error:
        raise DtypeError(f"{error} (row {error.position})") from None


def as_out(out: Any, dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> Array:
    """``out`` as an array on the same memory: of ``dtype`` and ``shape``, C-contiguous, aligned and writable."""
    if is_tensor(out) and out.requires_grad:
        raise DtypeError(f"{what} is a tensor that requires grad: pass out=tensor.detach()")
    if isinstance(out, np.ma.MaskedArray):
        raise DtypeError(f"{what} is a masked array, whose mask would hide what is read: pass out=array.data")
    if not is_tensor(out) and not isinstance(out, np.ndarray):
        raise DtypeError(f"{what} must be a NumPy array or a torch tensor, not {type(out).__name__}")
    array = as_array(out, what)
    if array.dtype != dtype:
        raise DtypeError(f"{what} has dtype {array.dtype}, the table has {dtype}")
    if array.shape != shape:
        raise ShapeError(f"{what} has shape {array.shape}, expected {shape}")
    if not array.flags.carray:
        raise ShapeError(f"{what} must be C-contiguous, aligned and writable")
    return array


def as_array(value: Any, what: str, kinds: str = "iufV") -> Array:
    """``value`` as an array of numbers, without a copy where that is possible. Raises ShapeError, DtypeError."""
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            raise DtypeError(f"{what}: {int(np.sum(value.mask))} elements are masked: fill them (array.filled(...))")
        value = value.data
    if is_tensor(value):
        value = _tensor_memory(value, what)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{what}: {error}") from None
    except Exception as error:
        raise DtypeError(f"{what}: NumPy cannot read {type(value).__name__}: {error}") from None
    kind = array.dtype.kind
    if kind not in kinds or (kind == "V" and array.dtype.name != "bfloat16"):
        hints = {"b": " (.astype(...) makes numbers of bools)", "O": ", of at most 64 bits"}
        raise DtypeError(f"{what}: {type(value).__name__} of dtype {array.dtype}: pass numbers{hints.get(kind, '')}")
    return array


def cast(array: Array, dtype: np.dtype[Any], what: str) -> Array:
    """``array`` as ``dtype``. Floats may be rounded to floats; nothing else may change.

    Raises DtypeError for floats where integers are meant; UnfitError, with the first row at fault, for values beyond
    the dtype's range and integers that it cannot hold exactly.
    """
    if array.dtype == dtype:
        return array
    if is_integer(dtype) and not is_integer(array.dtype):
        raise DtypeError(f"{what}: dtype {array.dtype}, the table has {dtype}: round first, with .astype({dtype})")
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
        fits = _fits(array, converted)
    if not fits.all():
        first = np.unravel_index(int(np.argmin(fits)), array.shape) if array.ndim else ()
        raise UnfitError(int(first[0]) if first else 0, f"{what}: {array[first]!s}, which {dtype} cannot hold")
    return converted


def _fits(array: Array, converted: Array) -> npt.NDArray[np.bool_]:
    """Which elements survived."""
    if not is_integer(array.dtype):
        return np.asarray(np.isfinite(converted) | ~np.isfinite(array))
    if is_integer(converted.dtype):
        return np.asarray((converted == array) & ((converted < 0) == (array < 0)))
    # Back to integers is exact below the power of two that they end at, and undefined from there on.
    limit = float(2 ** (8 * array.dtype.itemsize - (array.dtype.kind == "i")))
    wide = converted.astype(np.float64)
    return np.asarray((np.abs(wide) <= limit) & (wide < limit) & (wide.astype(array.dtype) == array))


def as_number(value: Any, dtype: np.dtype[Any], what: str) -> Array:
    """A number as a 0-dimensional array of ``dtype``; a float that is whole may become an integer."""
    array = as_array(value, what)
    if is_integer(dtype) and not is_integer(array.dtype):
        number = float(array)
        if not number.is_integer():
            raise DtypeError(f"{what}: {number}, which {dtype} cannot hold")
        array = np.asarray(int(number))
        if array.dtype == object:
            raise DtypeError(f"{what}: {number}, which {dtype} cannot hold")
    return cast(array, dtype, what)


def whole_number(value: Any, name: str) -> int:
    """``value`` as an int: a Python or NumPy integer. Raises DtypeError, naming the argument, for bools and floats
    too."""
    if not isinstance(value, bool | np.bool_):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise DtypeError(f"{name}={value!r}: needs a whole number, not {type(value).__name__}")


def is_integer(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iu"


def is_tensor(value: Any) -> bool:
    """A torch tensor; torch is not imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _tensor_memory(tensor: Any, what: str) -> Any:
    """A tensor's own memory, as an array."""
    import torch

    if tensor.device.type != "cpu":
        raise DtypeError(f"{what}: a tensor on device {tensor.device}: pass tensor.cpu()")
    if tensor.layout is not torch.strided:
        raise DtypeError(f"{what}: a tensor of layout {tensor.layout}: pass tensor.to_dense()")
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype is not torch.bfloat16:
        return tensor.numpy()
    try:
        import ml_dtypes
    except ImportError:
        return tensor.float().numpy()
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
