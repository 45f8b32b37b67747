"""The arguments of ``create_table``, checked and in one form before anything is made of them."""

import operator
import reprlib
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from intentpm.foundation.errors import ConfigError, DtypeError, Error, MemoryBudgetError, OptimizerError, ShapeError
from intentpm.runtime._native.slabs import stride_for
from intentpm.runtime._native.store import resolve_dtype, stored_bytes
from intentpm.runtime._native.tiered_rows import SEAT_BYTES_BESIDE
from intentpm.runtime.arguments import whole_number
from intentpm.runtime.config import Storage
from intentpm.runtime.initial_rows import Init, InitialRows
from intentpm.runtime.optimisers import RowOptimiser, check_optimizer
from intentpm.runtime.option_values import check_value

MAX_KEYS = 2**31 - 1
MAX_ROW_BYTES = 2**31 - 1
MAX_NAME_BYTES = 255
ADDRESS_SPACE_BYTES = 2**47


@dataclass(frozen=True)
class TableArguments:
    """What a table is to be."""

    name: str
    num_keys: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    init: InitialRows
    optimizer: RowOptimiser | None = None
    storage: Storage = "host"
    """Each rank's own: the others need not have a GPU."""
    device_memory: int | None = None
    """With storage="tiered": bytes; None: a share of what is free."""

    @property
    def stride_bytes(self) -> int:
        return stride_for(stored_bytes(self.dtype, self.row_shape, self.optimizer))

    def describe(self) -> dict[str, str]:
        """What all ranks must have passed alike."""
        return {
            "name": repr(self.name),
            "num_keys": repr(self.num_keys),
            "row_shape": repr(self.row_shape),
            "dtype": repr(self.dtype.name),
            "init": self.init.describe(),
            "optimizer": repr(self.optimizer),
        }


def check_table_arguments(
    name: str,
    num_keys: Any,
    row_shape: Any,
    dtype: npt.DTypeLike,
    init: Init,
    optimizer: RowOptimiser | None = None,
    storage: Storage = "host",
    device_memory: int | str | None = None,
    default_memory: int | None = None,
) -> tuple[TableArguments | None, Exception | None]:
    """The arguments, or what is wrong with them. default_memory: where no ``device_memory`` is given."""
    try:
        where = f"table {name!r}"
        keys = _num_keys(where, num_keys)
        shape = _row_shape(row_shape)
        resolved = _dtype(where, dtype)
        check_optimizer(where, optimizer)
        _check_size(where, keys, stored_bytes(resolved, shape, None), shape)
        _check_size(where, keys, stored_bytes(resolved, shape, optimizer), shape)
        rows = InitialRows(init, keys, shape, resolved, f"{where}: init")
        if storage not in get_args(Storage):
            raise ConfigError(f"{where}: storage={storage!r}: choose one of {', '.join(get_args(Storage))}")
        if optimizer is not None and storage != "host":
            _check_on_device(where, optimizer, storage)
        made = TableArguments(name, keys, shape, resolved, rows, optimizer, storage)
        memory = _device_memory(where, made, device_memory, default_memory)
        return replace(made, device_memory=memory), None
    except Exception as problem:  # an array-like of somebody else's may raise anything
        return None, problem


def _check_on_device(where: str, optimizer: RowOptimiser, storage: str) -> None:
    for given, needs in (
        (optimizer.rounds_at_random, 'rounding="stochastic"'),
        (optimizer.corrects_by_calls, 'bias_correction="global"'),
    ):
        if given:
            raise OptimizerError(f'{where}: {needs} needs storage="host", not {storage!r}')


def describe_unchecked(**passed: Any) -> dict[str, str]:
    """Of arguments that are wrong, for who reads what the ranks said to each other."""
    return {key: _short(value) for key, value in passed.items()}


def _short(value: Any) -> str:
    try:
        return reprlib.repr(value).encode("utf-8", "backslashreplace").decode()
    except Exception:
        return type(value).__name__


def check_name(name: Any) -> None:
    """Raises DtypeError, Error for what cannot be a table's name."""
    if not isinstance(name, str):
        raise DtypeError(f"table name {reprlib.repr(name)}: needs a str, not {type(name).__name__}")
    if not name.strip() or not name.isprintable():
        raise Error(f"table name {reprlib.repr(name)}: needs printable characters, and not only spaces")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise Error(f"table name {reprlib.repr(name)}: has {len(name.encode())} bytes, at most {MAX_NAME_BYTES} work")


def _num_keys(where: str, num_keys: Any) -> int:
    try:
        count = whole_number(num_keys, "num_keys")
    except DtypeError as error:
        raise ShapeError(f"{where}: {error}") from None
    if not 0 < count <= MAX_KEYS:
        raise ShapeError(f"{where}: num_keys={num_keys!r}: needs 1 to {MAX_KEYS}")
    return count


def _row_shape(row_shape: Any) -> tuple[int, ...]:
    try:
        lengths = (operator.index(row_shape),) if np.ndim(row_shape) == 0 else tuple(row_shape)
        shape = tuple(whole_number(length, "length") for length in lengths)
    except (DtypeError, TypeError, ValueError):
        raise ShapeError(f"row_shape={row_shape!r}: needs whole numbers above 0, as in row_shape=(8, 2)") from None
    if isinstance(row_shape, bool | np.bool_) or not all(length > 0 for length in shape):
        raise ShapeError(f"row_shape={row_shape!r}: needs lengths above 0")
    return shape


def _dtype(where: str, dtype: Any) -> np.dtype[Any]:
    if dtype is None:
        raise DtypeError(f"{where}: dtype=None: say which one")
    return resolve_dtype(str(dtype).removeprefix("torch.") if str(dtype).startswith("torch.") else dtype)


def _device_memory(where: str, table: TableArguments, given: int | str | None, default: int | None) -> int | None:
    if table.storage != "tiered":
        if given is not None:
            raise ConfigError(f"{where}: device_memory={given!r} needs storage='tiered', not {table.storage!r}")
        return None
    memory = check_value("device_memory", default if given is None else given)
    least = table.stride_bytes + SEAT_BYTES_BESIDE
    if memory is not None and memory < least:
        raise ConfigError(f"{where}: device_memory={memory}: one row takes {least} bytes on the device")
    return None if memory is None else int(memory)


def _check_size(where: str, num_keys: int, row_bytes: int, shape: tuple[int, ...]) -> None:
    if row_bytes > MAX_ROW_BYTES:
        raise ShapeError(f"{where}: row_shape={shape}: a row has {row_bytes} bytes, at most {MAX_ROW_BYTES} work")
    if num_keys * stride_for(row_bytes) > ADDRESS_SPACE_BYTES:
        raise MemoryBudgetError(
            f"{where}: {num_keys} rows of {row_bytes} bytes are more than a process can address: use fewer or "
            f"shorter rows"
        )
