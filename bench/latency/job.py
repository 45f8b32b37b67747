"""The job behind ``pytest bench/latency``: rank 0 measures, the other ranks serve, whatever launched them.

A job of the parameter manager over tcp, beside the one that is measured, carries what rank 0 tells the others to do.

Guarantees
    * A rank that serves collects no test and prints nothing. It leaves with 0 when rank 0 ends, however that went, and
      with 1 when rank 0 is lost or a deadline has passed.
    * Each task of rank 0 is answered by every other rank, also one that failed; rank 0 raises what they answer.
Assumptions
    * Rank 0 gives tasks from one thread, one after the other.
    * Tasks are functions that every rank can import. Those that exchange do so equally often on every rank.
"""

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import intentpm
from intentpm.bench.links import Link
from intentpm.launch.launchers import detect_launcher

Task = Callable[..., Any]
"""Called with the ``Rank`` it runs on, then its arguments."""
END = b""
"""Instead of a task: the ranks that serve may leave."""
NEXT_TASK_S = 3600.0
"""Without a task for so long, a rank that serves gives up."""
ANSWER_S = 100.0


class Rank:
    """This process as a rank of the job; what is measured lives in ``pm`` and ``tables``."""

    def __init__(self, control: Any) -> None:
        self.rank: int = control.rank if control else 0
        self.size: int = control.size if control else 1
        self.pm: Any = None
        self.tables: dict[str, Any] = {}
        self.state: dict[str, Any] = {}
        """What a task leaves for the next."""
        self._control = control
        if control:
            self._flags = control.create_table("stop", num_keys=16 * self.size, row_shape=(1,), dtype="int32")
            self._worker, self._own = control.worker(), self._flags.owned_keys()[:1]

    def exchange(self, payload: bytes = b"", timeout_s: float = ANSWER_S) -> list[bytes]:
        """What every rank has given, in rank order. Collective. Raises intentpm.WaitTimeoutError, PeerLostError."""
        return list(self._control.allgather(payload, timeout_s)) if self._control else [payload]

    def stopped(self) -> bool:
        """Whether rank 0 has done its part of the task: those that work until then ask again and again."""
        return bool(self._worker.pull(self._flags, self._own)[0, 0])

    def close(self) -> None:
        """Leaves the job, together with all other ranks."""
        if self._control:
            self._control.close()


class ServingRank(Rank):
    """Any rank but 0."""

    def serve(self) -> int:
        """Does what rank 0 says until it ends; returns the exit code of this process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, all ranks get it: rank 0 ends the job
        try:
            while (said := self.exchange(timeout_s=NEXT_TASK_S)[0]) != END:
                self.exchange(self._answer(said), NEXT_TASK_S)
            self.close()
        except intentpm.Error as error:
            print(f"rank {self.rank} serves no longer: {error}", file=sys.stderr)
            return 1
        return 0

    def _answer(self, said: bytes) -> bytes:
        try:
            task, arguments = pickle.loads(said)
            return pickle.dumps((task(self, *arguments), None))
        except Exception:
            return pickle.dumps((None, traceback.format_exc()))


class MeasuringRank(Rank):
    """Rank 0."""

    @contextmanager
    def others(self, task: Task, *arguments: Any) -> Iterator[list[Any]]:
        """Every other rank runs the task while the block runs here; in the end their results are in the list."""
        results: list[Any] = []
        if self.size == 1:
            yield results
            return
        self._flag(0)
        self.exchange(pickle.dumps((task, arguments)))
        try:
            yield results
        finally:
            self._flag(1)
            answers = [pickle.loads(answer) for answer in self.exchange(pickle.dumps((None, None)))[1:]]
            for rank, (_, failure) in enumerate(answers, 1):
                if failure:
                    raise RuntimeError(f"rank {rank} failed:\n{failure}")
            results += [result for result, _ in answers]

    def everywhere(self, task: Task, *arguments: Any) -> list[Any]:
        """Runs the task on all ranks; returns their results in rank order."""
        with self.others(task, *arguments) as results:
            own = task(self, *arguments)
        return [own, *results]

    def end(self) -> None:
        """Lets the others go. Whatever happens here, they do not wait."""
        if self._control is None:
            return
        try:
            self.exchange(END)
            self.close()
        except BaseException as error:
            self._control.abort(f"rank 0 could not end the job: {error}")
            raise

    def _flag(self, value: int) -> None:
        keys = np.arange(self._flags.num_keys)
        self._worker.set(self._flags, keys, np.full((len(keys), 1), value, np.int32))


def join() -> MeasuringRank | ServingRank:
    """This process's place in its job: of one rank where no launcher started it. Collective."""
    control = None if detect_launcher(os.environ) == "alone" else intentpm.init("tcp")
    return ServingRank(control) if control and control.rank else MeasuringRank(control)


# -- tasks -------------------------------------------------------------------------------------------------------------


def open_link(here: Rank, link: Link) -> None:
    """Starts the job that is measured, over ``link``."""
    before = os.environ.get("UCX_TLS")
    os.environ.update(link.env)
    try:
        here.pm = intentpm.init(link.transport)
    finally:
        if link.env:
            os.environ.pop("UCX_TLS") if before is None else os.environ.update(UCX_TLS=before)


def close_link(here: Rank) -> None:
    """Ends it."""
    here.tables.clear()
    here.pm.close()
    here.pm = None


def create_table(here: Rank, name: str, num_keys: int, dim: int) -> None:
    """A table of float32 ones, ``tables[name]``."""
    here.tables[name] = here.pm.create_table(name, num_keys, (dim,), dtype="float32", init=1.0)
