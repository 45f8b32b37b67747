"""The world of ranks started by ``mpirun``, ``mpiexec`` or ``srun --mpi``; needs mpi4py.

MPI is used once, to exchange a few bytes, and then left alone: who initialised it finalises it. One thing stays: an
uncaught exception aborts the job (see ``_abort_on_uncaught_exceptions``).

Guarantees
    * Exchanges are non-blocking collectives on a communicator of our own, polled with a deadline: a rank that never
      comes is an error, not a hang, and no message of the program's own can be mistaken for ours.
Assumptions
    * ``find_world`` runs in a thread that may call MPI (checked).
"""

import faulthandler
import os
import struct
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from intentpm.foundation.deadlines import wait_s
from intentpm.foundation.errors import ConfigError, TransportError, WaitTimeoutError
from intentpm.launch.introduction import introduce
from intentpm.launch.launchers import mpi_size
from intentpm.runtime.config import Config

_abandoned: list[Any] = []
"""Requests that ran into their deadline, and their buffers: MPI may still write to these."""
_begun: list[Any] = []
"""The communicator, and the request for it, that a world was waiting for when it gave up: the next one goes on waiting,
as MPI joins the first duplication of each rank."""
_INSTALL = "install it with: pip install 'intentpm[mpi]'"


class MpiWorld:
    """Implements ``intentpm.runtime.types.World`` over ``MPI.COMM_WORLD``."""

    launcher = "mpi"

    def __init__(self, config: Config) -> None:
        self._mpi = _import_mpi(config.start_timeout)
        _check_thread(self._mpi)
        self.rank: int = self._mpi.COMM_WORLD.Get_rank()
        self.size: int = self._mpi.COMM_WORLD.Get_size()
        check_size(self.size, os.environ, self._mpi.Get_library_version())
        _abort_on_uncaught_exceptions(self._mpi)
        self._communicator = self._duplicate(config.start_timeout)
        self._has_failed = False
        # Comm.Split_type would count the ranks of this host too, but cannot be given a deadline.
        self.secret, self.local_ranks = introduce(self.allgather, self.rank, config.secret, config.start_timeout)

    def allgather(self, payload: bytes, timeout_s: float) -> list[bytes]:
        deadline = time.monotonic() + wait_s(timeout_s)
        counts = bytearray(8 * self.size)
        request = self._communicator.Iallgather(
            [struct.pack("=q", len(payload)), 8, self._mpi.BYTE], [counts, 8, self._mpi.BYTE]
        )
        self._wait(request, timeout_s, "an exchange of sizes", counts)
        sizes = struct.unpack(f"={self.size}q", counts)
        gathered = bytearray(max(1, sum(sizes)))
        request = self._communicator.Iallgatherv(
            [payload, len(payload), self._mpi.BYTE], [gathered, (sizes, None), self._mpi.BYTE]
        )
        self._wait(request, deadline - time.monotonic(), "an exchange of payloads", payload, gathered)
        ends = [sum(sizes[: rank + 1]) for rank in range(self.size)]
        return [bytes(gathered[end - size : end]) for end, size in zip(ends, sizes, strict=True)]

    def close(self) -> None:
        if self._communicator is None:
            return
        # With a collective still pending, or MPI ended by the program, freeing would be an error or wait for ever.
        if not self._has_failed and not self._mpi.Is_finalized():
            self._communicator.Free()
        self._communicator = None

    def _duplicate(self, timeout_s: float) -> Any:
        if not _begun:
            _begun.extend(self._mpi.COMM_WORLD.Idup())
        communicator, request = _begun
        self._wait(request, timeout_s, "the duplication of MPI_COMM_WORLD")
        _begun.clear()
        return communicator

    def _wait(self, request: Any, timeout_s: float, what: str, *buffers: bytes | bytearray) -> None:
        deadline = time.monotonic() + wait_s(timeout_s)
        pause_s = 0.0
        while not request.Test():
            if time.monotonic() >= deadline:
                self._has_failed = True
                _abandoned.append((request, buffers))
                raise WaitTimeoutError(
                    f"rank {self.rank}: not all {self.size} ranks came to {what} within {timeout_s:g} s: "
                    "has one of them not called intentpm.init(), or called it more often than the others? "
                    "(MPI does not say which)"
                )
            time.sleep(pause_s)
            pause_s = min(pause_s + 50e-6, 5e-3)


def check_size(size: int, environment: Mapping[str, str], library: str) -> None:
    """Raises ConfigError when mpi4py sees fewer ranks than the launcher started: they speak different MPIs."""
    launched = mpi_size(environment)
    if launched is not None and launched != size:
        raise ConfigError(
            f"the MPI launcher started {launched} ranks, but mpi4py sees a world of {size}: mpi4py uses another MPI "
            f"library ({library.splitlines()[0].strip()}) than mpirun. Start with the mpirun of that library, or point "
            "mpi4py at the launcher's with MPI4PY_LIBMPI=/path/to/libmpi.so, or use `intentpm run`"
        )


def _import_mpi(timeout_s: float) -> Any:
    """mpi4py.MPI, initialised."""
    try:
        import mpi4py
    except ImportError:
        raise ConfigError(
            f"this process was started by an MPI launcher ({_launcher_said()}), but mpi4py is not installed: "
            f"{_INSTALL} (or start the ranks with `intentpm run`)"
        ) from None
    if "mpi4py.MPI" not in sys.modules and mpi4py.rc.initialize:
        return _wait_for_all_ranks_in_mpi_init(timeout_s)
    from mpi4py import MPI

    if MPI.Is_finalized():
        raise ConfigError("MPI is already finalised: call intentpm.init() before MPI.Finalize()")
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    return MPI


def _wait_for_all_ranks_in_mpi_init(timeout_s: float) -> Any:
    # MPI_Init waits for all ranks, with no deadline, holding the GIL: only faulthandler's own thread can still act. It
    # prints this stack and ends the process, upon which mpirun ends the job.
    faulthandler.dump_traceback_later(timeout_s, exit=True, file=2)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ConfigError(f"mpi4py cannot load its MPI library ({error}): {_INSTALL}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()
    return MPI


def _abort_on_uncaught_exceptions(mpi: Any) -> None:
    """Makes an exception that ends this rank end the job, as ``python -m mpi4py`` does.

    mpi4py finalises MPI at exit, which waits for all ranks: a rank that dies of an exception would hang there for as
    long as another rank is stuck.
    """
    if mpi.COMM_WORLD.Get_size() == 1 or getattr(sys.excepthook, "aborts_mpi", False):
        return
    previous = sys.excepthook

    def report_and_abort(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        previous(kind, error, traceback)
        sys.stderr.flush()
        if not mpi.Is_finalized():
            mpi.COMM_WORLD.Abort(1)

    report_and_abort.aborts_mpi = True  # type: ignore[attr-defined]
    sys.excepthook = report_and_abort


def _check_thread(mpi: Any) -> None:
    if mpi.Query_thread() <= mpi.THREAD_FUNNELED and not mpi.Is_thread_main():
        raise TransportError(
            "MPI was initialised for calls from its main thread alone: call intentpm.init() there, "
            "or initialise MPI with THREAD_SERIALIZED or more"
        )


def _launcher_said() -> str:
    names = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
    return ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ) or "INTENTPM_LAUNCHER=mpi"
