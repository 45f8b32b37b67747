"""Rows that a worker of a device has asked other ranks for, on their way to an array there."""

import threading
from typing import Any


class RowsToCome:
    """What ``DeviceWorker.pull_async`` returns: a future as ``Future``, for the worker's thread.

    ``wait`` and ``result`` raise Error while another thread uses the worker.
    """

    def __init__(self, worker: Any, rows: Any, left: Any, future: Any) -> None:
        """``rows``: DeviceArray [K, ...]; those at ``left`` (int32, ascending) are what ``future`` gives."""
        self._worker, self._rows, self._left, self._future = worker, rows, left, future
        self._delivering = threading.Lock()
        self._delivered = len(left) == 0  # guarded by: _delivering

    def done(self) -> bool:
        """Whether ``wait`` waits for no other rank."""
        return bool(self._future.done())

    def wait(self, timeout: float | None = None) -> None:
        """As ``Future.wait``."""
        self._future.wait(timeout)
        with self._delivering:
            if not self._delivered:
                self._worker._deliver_late(self._rows, self._left, self._future.result())
                self._delivered = True

    def result(self, timeout: float | None = None) -> Any:
        """As ``Future.result``: the array on the device."""
        self.wait(timeout)
        return self._rows.given
