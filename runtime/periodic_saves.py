"""``ParameterManager.periodic_saves``: a checkpoint every so often, made while training goes on.

Rank 0 looks at the time, and calls the others: each makes its cut at its next step. So ranks need not be in step with
each other, and none waits. All come to the same number of saves: who missed the last calls makes them in ``finish``.
A call says its number alone. So until ``finish`` nothing else may save, or what rank 0 has called for could be taken
for that: ``Saves.called_by`` says who may call.
Where ranks are lost and the others go on, "rank 0" is the first that is left; a save that was under way is not made.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from intentpm.checkpoint.storage import Location
from intentpm.foundation.errors import SaveInterruptedError
from intentpm.runtime.save_order import SaveOrder
from intentpm.runtime.saving import Saves, Saving

Extra = Callable[[], Any]


class PeriodicSaves:
    """Saves of one folder; made by ``ParameterManager.periodic_saves`` on every rank. One thread at a time.

    Attributes: ``last``, the ``Saving`` begun last, or None.
    """

    def __init__(
        self,
        what: str,
        saves: Saves,
        order: Callable[[Any], SaveOrder],
        gather: Callable[[bytes], list[bytes]],
        every_s: float,
    ) -> None:
        """what: these saves as people write them. Raises CheckpointError: others have not been finished."""
        self._what, self._saves, self._order, self._gather, self._every_s = what, saves, order, gather, every_s
        saves.let_call(what, self)
        self._due_s = time.monotonic() + every_s
        self.last: Saving | None = None

    def step(self, extra: Extra) -> None:
        """To be called often, between two accesses. Begins a save if one is due, and goes on at once.

        extra: what ``save(extra=)`` is to have of this rank; called when it saves.
        Raises CheckpointError when the save before has failed, or other periodic saves have not been finished.
        """
        self._saves.let_call(self._what, self)
        formed = self._saves.formed()
        if self._saves.is_first() and time.monotonic() >= self._due_s and (self.last is None or self.last.done()):
            self._due_s = time.monotonic() + self._every_s
            self._saves.snapshot.call(self._saves.snapshot.made() + 1)
        if self._saves.snapshot.called() > self._saves.snapshot.made():
            self._save(extra, formed)

    def finish(self, extra: Extra) -> None:
        """Collective: makes the saves that were called for, and waits for the last. Raises as ``step``."""
        self._saves.let_call(self._what, self)
        formed = self._saves.formed()
        called = int(self._gather(str(self._saves.snapshot.called()).encode())[0])
        while self._saves.formed() == formed and self._saves.snapshot.made() < called:
            self._save(extra, formed)
        self._saves.called_by = None
        self._end_last()

    def save_now(self, extra: Extra) -> Location:
        """Collective: one more checkpoint, now. Raises as ``ParameterManager.save``."""
        self.finish(extra)
        self._begin(extra, None)
        assert self.last is not None
        return self.last.result()

    def _save(self, extra: Extra, formed: int) -> None:
        """formed: when it was called for."""
        self._end_last()
        try:
            self._begin(extra, formed)
        except SaveInterruptedError:  # RankLost tells of it; the next is made by those that are left
            self._saves.wait_until_formed()

    def _begin(self, extra: Extra, formed: int | None) -> None:
        self.last = self._saves.begin(self._order(extra()), self._saves.start_thread, formed)

    def _end_last(self) -> None:
        """Waits for it. What failed is told once; the next is made all the same."""
        last, self.last = self.last, None
        if last is not None:
            with suppress(SaveInterruptedError):
                last.result()
