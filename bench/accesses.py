"""Pull, push and set of K rows by several means: the parameter manager, NumPy, PyTorch, and a plain copy."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.benchmarks import SUBJECT

MEANS = {
    "pull": (SUBJECT, "np.take", "torch index_select", "memcpy"),
    "push": (SUBJECT, "np.add.at", "torch index_add_", "np.add in place"),
    "set": (SUBJECT, "np indexed store", "memcpy"),
}
"""Of each operation; the last moves as many bytes without looking anything up."""


def access(operation: str, by: str, worker: Any, table: Any, array: Any, rows: Any) -> Callable[[Any], object]:
    """Does ``operation`` with the keys that it is given (of ``keys_for``).

    Parameters: ``array``, float32 (num_keys, D): what the others access instead of ``table``. ``rows``, float32 (K, D):
    where pulls go and pushes come from. Raises ModuleNotFoundError: PyTorch is not installed.
    """
    if by.startswith("torch"):
        torch = one_thread_torch()
        tensor, moved = torch.from_numpy(array), torch.from_numpy(rows)
        if operation == "pull":
            return lambda keys: torch.index_select(tensor, 0, keys, out=moved)
        return lambda keys: tensor.index_add_(0, keys, moved)
    other = np.ones_like(rows)
    return {
        ("pull", SUBJECT): lambda keys: worker.pull(table, keys, rows),
        ("push", SUBJECT): lambda keys: worker.push(table, keys, rows),
        ("set", SUBJECT): lambda keys: worker.set(table, keys, rows),
        ("pull", "np.take"): lambda keys: np.take(array, keys, axis=0, out=rows, mode="clip"),
        ("push", "np.add.at"): lambda keys: np.add.at(array, keys, rows),
        ("set", "np indexed store"): lambda keys: array.__setitem__(keys, rows),
        ("pull", "memcpy"): lambda keys: np.copyto(rows, other),
        ("set", "memcpy"): lambda keys: np.copyto(other, rows),
        ("push", "np.add in place"): lambda keys: np.add(other, rows, out=other),
    }[operation, by]


def keys_for(by: str, keys: NDArray[np.int64]) -> Any:
    """``keys`` as that means takes them."""
    return one_thread_torch().from_numpy(keys) if by.startswith("torch") else keys


def one_thread_torch() -> Any:
    """PyTorch, held to one thread of its own. Raises ModuleNotFoundError."""
    import torch

    torch.set_num_threads(1)
    return torch
