"""Ids of a data set as keys of a table: numbered from 0 without gaps, so that no row is made that nothing uses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Names = Sequence[Any] | NDArray[Any]
"""By key: the name, or id, it has in the source."""

MAX_KEYS = 2**31
FEW_GAPS = 8
"""Up to so many possible ids per id given, the ids in use are marked in an array of them all; else they are sorted."""


def number_densely(ids: NDArray[np.integer]) -> tuple[NDArray[np.int32], Names]:
    """Keys for ``ids`` (any shape, not negative, at least one), in the order of the ids; and by key its id."""
    highest = int(ids.max())
    if highest >= FEW_GAPS * ids.size + FEW_GAPS:
        names, positions = np.unique(ids, return_inverse=True)
        return positions.reshape(ids.shape).astype(np.int32), names
    used = np.zeros(highest + 1, bool)
    used[ids] = True
    if used.all():
        return ids.astype(np.int32), range(highest + 1)
    keys = np.cumsum(used, dtype=np.int32) - 1
    return keys[ids], np.flatnonzero(used)


def gaps(what: str, names: Names) -> list[str]:
    """The line that says that there are ids that nothing has; none if there are none."""
    if int(names[-1]) - int(names[0]) < len(names):
        return []
    return [f"{len(names):,} {what} have ids from {int(names[0]):,} to {int(names[-1]):,}: numbered without gaps"]
