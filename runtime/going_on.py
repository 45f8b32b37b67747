"""A rank's part in ``init(on_loss="continue")``: which workers were told of losses, and the thread that forms anew.

Of jobs with ``on_loss="stop"``, and of one rank, there is none of this. See docs/membership.md.
"""

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress

from intentpm.foundation.errors import ConfigError, RankLost
from intentpm.runtime._native.engine import Engine
from intentpm.runtime.initial_rows import InitialRows
from intentpm.runtime.reforming import Reformer
from intentpm.runtime.saving import Saves
from intentpm.runtime.table_arguments import TableArguments
from intentpm.runtime.workers_of_rank import WorkersOfRank
from intentpm.transports.base import Transport


class GoingOn:
    """Of one rank. Any thread, but for ``start`` and ``close``."""

    def __init__(
        self,
        engine: Engine,
        workers: WorkersOfRank,
        saves: Saves,
        forget: Callable[[bool], None],
        transport: Transport,
        peer_timeout_s: float,
    ) -> None:
        """forget: as ``Reformer``'s."""
        self._inits: dict[str, InitialRows] = {}
        transport.watch_processes()
        self.reformer = Reformer(engine, saves, self._inits, forget, transport.has_ended, peer_timeout_s)
        self._workers = workers
        self.told = 0
        """Of how many times that ranks formed anew somebody here was told: a new worker is told of the others."""
        self._thread: ReformingThread | None = None

    def start(self) -> None:
        """Where time is real; else somebody calls ``reformer.form``."""
        self._thread = ReformingThread(self.reformer)

    def close(self, timeout_s: float) -> None:
        if self._thread is not None:
            self._thread.stop(timeout_s)

    def check_table(self, arguments: TableArguments) -> None:
        """A table is about to be made. Raises ConfigError for one that could not be restored."""
        if arguments.storage != "host":
            raise ConfigError(
                f'on_loss="continue" does not go with storage={arguments.storage!r}: rows on a device are not restored'
            )
        self._inits[arguments.name] = arguments.init

    # -- telling -------------------------------------------------------------------------------------------------------

    def loss_between(self, told: int, formed: int) -> RankLost:
        """What a worker raises that has been told of the first ``told`` times that the ranks formed anew, and now is of
        ``formed``."""
        return self.reformer.loss_between(told, formed)

    def note_told(self) -> None:
        """A worker has been told, or a collective call."""
        formed = self.told = self.reformer.formed()
        if all(worker.is_told() for worker in list(self._workers.members)):
            self.reformer.all_told(formed)

    def tell_thread(self) -> None:
        """Raises RankLost where a worker of the calling thread has not been told, or nobody has: each is, then."""
        since = [self.told, *self.take_told()]
        if min(since) < self.told:
            raise self.loss_between(min(since), self.told)

    def take_told(self) -> list[int]:
        """The calling thread's workers count as told. Returns of how many times those were that were not."""
        mine = [worker for worker in list(self._workers.members) if worker.is_of_this_thread()]
        since = [worker.take_told() for worker in mine if not worker.is_told()]
        self.note_told()
        return since


class ReformingThread:
    """Runs a ``Reformer``, from the start."""

    def __init__(self, reformer: Reformer) -> None:
        self._reformer = reformer
        self._stopping = False
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake = select.poll()
        self._wake.register(self._wake_fd, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="intentpm-membership", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            os.close(self._wake_fd)
            raise
        reformer.wake_by(self._wake_fd)

    def stop(self, timeout_s: float) -> None:
        """Calls that it waits in must have ended, or be about to. After a fork there is no thread to wait for."""
        self._stopping = True
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._reformer.wake_by(-1)
            os.close(self._wake_fd)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.poll()
            os.eventfd_read(self._wake_fd)
            if not self._stopping:
                with suppress(Exception):  # the rank has failed with it: its calls say so
                    self._reformer.form()
