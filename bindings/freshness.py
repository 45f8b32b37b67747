"""How old the copies of values may get that a worker uses all the time: the layers of a model, as it were.

Workers that step from copies which have not heard of each other's steps add them up: each goes the whole way, and the
sum goes as many times too far as there are processes. How often copies are synchronised depends on the network and on
who gets a core. So a worker that said it will use keys for ever has a synchronisation (``wait_sync``) under way from
clock to clock, and does not read on when it is late.

Guarantees
    * A pull of such values reads what main copies held at most 3 of the worker's clocks ago, or 0.2 s where that is
      longer; what this process did since then is on top.
Assumption: one thread at a time, as the worker.
"""

import time
from typing import Any

FOR_EVER_CLOCKS = 2**31
"""The shortest window that means for ever."""
GAP_S = 0.05
"""From the begin of one synchronisation to that of the next, at least: clocks may be short, and each sends all news."""
PATIENCE_S = 0.05
"""For which one may be under way, whatever the clock says."""


class Freshness:
    """Of one worker. ``worker``: of the parameter manager."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._tables: set[int] = set()
        self._sync: Any = None  # the future of the last one
        self._began_s = 0.0
        self._began_clock = 0

    def keep(self, table_id: int) -> None:
        """The worker intends keys of this table for ever."""
        self._tables.add(table_id)

    def advance(self) -> None:
        """The clock has advanced."""
        if not self._tables or not self._is_over():
            return
        now_s = time.monotonic()
        if now_s - self._began_s >= GAP_S:
            self._sync = self._worker.wait_sync_async()
            self._began_s, self._began_clock = now_s, self._worker.clock

    def before_pull(self, table_id: int) -> None:
        """Waits if the copies in this table may be too old. Raises PeerLostError."""
        if table_id not in self._tables or self._is_over():
            return
        is_late = time.monotonic() - self._began_s > PATIENCE_S
        if is_late and self._worker.clock > self._began_clock:
            self._sync.wait()

    def _is_over(self) -> bool:
        return self._sync is None or bool(self._sync.done())
