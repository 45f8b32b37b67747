"""Memory budgets that are just enough."""

from collections.abc import Sequence
from typing import Any

from intentpm.runtime._native.store import Table


def need_of(num_keys: int, row_shape: Any, rank: int = 0, size: int = 1, copies: int = 0, **options: Any) -> int:
    """Bytes that a rank needs for its share of a table and so many copies of rows of others."""
    shape = (row_shape,) if isinstance(row_shape, int) else row_shape
    table = Table("t", 0, num_keys, shape, options.pop("dtype", "float32"), rank, size, **options)
    need = table.need()
    state_bytes = need["row"] + table.copy_bytes()
    return need["all"] + copies * state_bytes


def budget_of(needs: Sequence[int]) -> int:
    """Tables may have three quarters of a budget."""
    return -(-sum(needs) * 4 // 3)
