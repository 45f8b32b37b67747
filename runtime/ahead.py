"""How far ahead of their use a loader announces batches.

An intent helps if it is signalled before its key has to be asked for. The action timer measures how many clocks that
takes, from "due" to "local": its horizon. Farther ahead, batches take memory and gain nothing.
"""

from threading import Lock
from typing import Any

from intentpm.foundation.errors import ConfigError

MIN_BATCHES = 4
MARGIN_BATCHES = 2
"""A batch is announced when the one before it is asked for: up to this much later than it was read."""
MAX_BATCHES = 4096
MEMORY_BYTES = 256 << 20
"""What batches that are read ahead may take."""
LOOK_EVERY, LOOK_EVERY_LATE = 16, 2
"""How often it is asked between two looks at the action timer; where keys come late."""
LATE_SHARE = 0.01
"""Of the keys whose windows have begun: with more late than these, the horizon is not trusted, and doubled."""


class Ahead:
    """Of one loader. Threads: any may prepare batches, one asks how many.

    Parameters
        batches: how many, or "auto": as many as management needs to act in time, as long as they fit in 256 MB.
        manager: anything with the ``stats()`` of a ParameterManager.

    Raises ConfigError.
    """

    def __init__(self, batches: int | str, manager: Any) -> None:
        if batches != "auto" and not (isinstance(batches, int) and batches >= 0):
            raise ConfigError(f"ahead={batches!r}: needs a number of batches or 'auto'")
        self._given = batches
        self._manager = manager
        self._guard = Lock()
        self._largest_bytes = 1  # guarded by: _guard; the rest is of the thread that asks
        self._batches = MIN_BATCHES
        self._until_look = 0
        self._begun = self._late = 0

    @property
    def announces(self) -> bool:
        """Whether anything is announced at all."""
        return self._given != 0

    def prepared(self, nbytes: int) -> None:
        """A batch takes ``nbytes``."""
        with self._guard:
            self._largest_bytes = max(self._largest_bytes, nbytes)

    def batches(self) -> int:
        """How many batches beyond the one in use to have announced now. To be asked before each is prepared."""
        if self._given != "auto":
            return int(self._given)
        if self._until_look <= 0:
            self._look(self._manager.stats())
        self._until_look -= 1
        with self._guard:
            return max(1, min(self._batches, MEMORY_BYTES // self._largest_bytes))

    def _look(self, stats: dict[str, Any]) -> None:
        intents = stats["intents"]
        late, begun = intents["late"], intents["late"] + intents["in_time"]
        is_late = late - self._late > LATE_SHARE * (begun - self._begun)
        self._late, self._begun = late, begun
        # Of all workers of the rank: they are not told apart, and reading further than needed costs memory alone.
        horizon_clocks = max((timer["horizon_clocks"] for timer in stats["workers"]), default=0)
        needed = (horizon_clocks + MARGIN_BATCHES) * (2 if is_late else 1)
        self._batches = min(max(MIN_BATCHES, needed), MAX_BATCHES)
        self._until_look = LOOK_EVERY_LATE if is_late else LOOK_EVERY
