"""Which processes of this host have ended, as the system knows.

That a connection ended, or that nothing comes any more, says nothing of a process: it may be cut off, or stopped.
"""

import os
import select
from collections.abc import Mapping
from contextlib import suppress

from intentpm.transports.process_watch import process_table


def processes_here() -> str:
    """Names the process table of this process: equal for two that may watch each other. "": nobody may."""
    try:
        return process_table().decode()
    except OSError:
        return ""


class ProcessEnds:
    """Of peers. Where there is no pidfd (Linux before 5.3, some sandboxes) none is known to have ended."""

    def __init__(self, processes: Mapping[int, int]) -> None:
        """processes: rank -> its process. One that has ended already is never known to: its number may be another's."""
        self._pidfds: dict[int, int] = {}
        for rank, process in processes.items():
            with suppress(OSError):
                self._pidfds[rank] = os.pidfd_open(process)

    def has_ended(self, rank: int) -> bool:
        """Also while nobody has waited for it. Does not wait."""
        if rank not in self._pidfds:
            return False
        looked_at = select.poll()
        looked_at.register(self._pidfds[rank], select.POLLIN)
        return bool(looked_at.poll(0))

    def close(self) -> None:
        for pidfd in self._pidfds.values():
            os.close(pidfd)
        self._pidfds = {}
