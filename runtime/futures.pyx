"""What asynchronous calls return.

Guarantees
    * The rows of a pull are written until the future is done, waited for with an error, or dropped; never afterwards.
    * Dropping the future of a write does not cancel the write: its worker keeps it until it is done.
"""

cimport cython

from intentpm.foundation.deadlines cimport FOREVER_NS
from intentpm.foundation.primitives cimport load_acquire
from intentpm.runtime._native.requests cimport OPERATION_ABANDONED, end_operation

from types import GenericAlias

from intentpm.foundation.deadlines import wait_ns
from intentpm.foundation.errors import ClosedError
from intentpm.foundation.handles import refuse_to_cross


cdef class OpenWrites:
    pass


# A cycle of garbage must not take ``engine`` away before __dealloc__, which ends the engine's interest in this memory.
@cython.no_gc_clear
cdef class Future:
    """The outcome of an asynchronous call. Made by a worker's ``pull_async``, ``push_async``, ``set_async`` and
    ``wait_sync_async``; any thread may wait for it.

    In annotations ``Future[T]``: T is what ``result`` returns.
    """

    def __init__(self):
        raise TypeError("futures are made by a worker's pull_async, push_async and set_async")

    @classmethod
    def __class_getitem__(cls, result):
        return GenericAlias(cls, result)

    def done(self) -> bool:
        """True when ``wait`` would return (or raise) at once. Does not wait."""
        return load_acquire(&self.operation.done) != 0

    def wait(self, timeout=None) -> None:
        """Waits until the call is finished; the GIL is released meanwhile.

        timeout: seconds; None waits as long as the ranks asked are alive.
        Raises PeerLostError; WaitTimeoutError (the call is given up: a write may or may not be applied). With
        init(on_loss="continue") RankLost, when a rank was lost meanwhile: likewise.
        """
        self.engine.calls.wait_operation(
            &self.operation, FOREVER_NS if timeout is None else wait_ns(timeout), self._describe)
        if self.operation.status == OPERATION_ABANDONED:
            raise ClosedError("this call was given up by an earlier wait that timed out or was interrupted")

    def result(self, timeout=None):
        """Waits, then returns the rows: ``out`` or an ndarray [K, *row_shape] for a pull, None for all else.

        Raises as ``wait``.
        """
        self.wait(timeout)
        return self.answer

    def __reduce_ex__(self, protocol):
        refuse_to_cross(self, "wait here, and pass its result() on")

    def _describe(self) -> str:
        return f"an asynchronous call on {self.table!r}"

    def __dealloc__(self):
        if self.engine is None:
            return
        if not load_acquire(&self.operation.done):
            with nogil:                  # the engine may hold its lock for a while
                self.engine.calls.abandon(&self.operation)
        end_operation(&self.operation)
