"""What a rank is asked to save: what must be the same on every rank, and what it adds of its own."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from intentpm.checkpoint.manifest import RankEntry
from intentpm.checkpoint.storage import Location, RemotePath
from intentpm.foundation.errors import CheckpointError
from intentpm.runtime._native.store import Table

STALL_S = 120.0
"""Nothing that is done at once takes that long on a disk that works: a piece, a rename, what the cache holds back."""
SHORTEST_STALL_S = 1.0
"""Even where a caller waits for less."""
OF_TIMEOUT = 0.8
"""So that the others hear what the matter is before they have waited for too long."""


@dataclass(frozen=True, slots=True)
class SaveOrder:
    """What a rank was asked to save, and what it adds of its own."""

    folder: Location
    tables: Sequence[Table]
    keep: int | None
    incremental: bool
    mine: RankEntry
    timeout_s: float | None
    problem: str | None = None
    """What is wrong with what it was asked."""

    def identity(self) -> dict[str, Any]:
        """What must be the same on every rank."""
        tables = [table.name for table in self.tables]
        return {"folder": str(self.folder), "tables": tables, "keep": self.keep, "incremental": self.incremental}

    def longest_on_disk_s(self) -> float | None:
        """What is done at once there has so long; None: a store has deadlines of its own."""
        if isinstance(self.folder, RemotePath):
            return None
        if self.timeout_s is None:
            return STALL_S
        return min(max(OF_TIMEOUT * self.timeout_s, SHORTEST_STALL_S), STALL_S)

    def __str__(self) -> str:
        return f"save({str(self.folder)!r})"


def check_keep(keep: Any) -> int | None:
    """``keep`` of save. Raises CheckpointError."""
    if keep is not None and (not isinstance(keep, int) or isinstance(keep, bool) or keep < 1):
        raise CheckpointError(f"keep={keep!r}: needs a whole number of checkpoints from 1 on, or None for all")
    return keep


def plain(extra: Any) -> Any:
    """``extra`` of save, as it will be read again. Raises CheckpointError for what JSON cannot hold."""
    try:
        return json.loads(json.dumps(extra))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"extra: {error}: needs what JSON can hold") from None
