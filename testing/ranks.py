"""``run_ranks``: a function on N ranks of this process, a thread or a simulated task each.

Guarantees
    * What is raised is the first failure in time, not the PeerLostError that it caused elsewhere.
    * It returns or raises within ``timeout`` and a second, whatever the function does; ranks that do not come back are
      named with the place where they stand.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from intentpm.foundation.deadlines import wait_s
from intentpm.foundation.errors import PeerLostError, WaitTimeoutError
from intentpm.runtime.config import Config
from intentpm.runtime.manager import ParameterManager
from intentpm.testing.in_process_world import InProcessWorld
from intentpm.transports import registry
from intentpm.transports.base import Transport
from intentpm.transports.loopback import LoopbackNetwork
from intentpm.transports.sim import SimNetwork
from intentpm.transports.sim_model import NetworkModel

T = TypeVar("T")

ABORT_GRACE_S = 1.0
MAX_EVENTS = 50_000_000
"""Of a simulated run: some minutes of real time."""


def run_ranks(
    n: int,
    function: Callable[[ParameterManager], T],
    transport: Literal["loopback", "sim", "tcp", "ucx"] = "loopback",
    *,
    seed: int | None = None,
    timeout: float = 60.0,
    model: NetworkModel | None = None,
    **options: Any,
) -> list[T]:
    """Runs ``function(pm)`` on ``n`` ranks of one job in this process; returns what each returned, in rank order.

    Parameters
        transport: "loopback": threads and memory, fast. "tcp" (over 127.0.0.1), "ucx": threads and that network. "sim":
            virtual time; the order of messages and of the ranks' steps is drawn from ``seed``, and the same seed gives
            the same run. There a rank may wait in calls of intentpm alone, and starts no threads of its own.
        seed: of sampling, as in ``init``; with "sim" of the whole run (None: 0).
        timeout: real seconds for all of it.
        model: latency, bandwidth and disorder of the "sim" network. Default: drawn from the seed, and disorderly.
        options: of ``intentpm.init``, the same for each rank. ``INTENTPM_*`` variables are not looked at.
    Raises
        What a rank's function raised first, with a note that names the rank and, with "sim", the seed; the other ranks
            have got a PeerLostError by then.
        WaitTimeoutError: not all ranks came back within ``timeout``; names them and where they stand.
        ConfigError, TransportUnavailableError: nothing was started.
    Threads: any; ranks run on threads of their own, which have ended when it returns.
    """
    if n < 1:
        raise ValueError(f"run_ranks({n}, ...): needs at least 1 rank")
    job = _Job(n, function, transport, f", seed {seed or 0}" if transport == "sim" else "")
    if transport == "sim":
        _simulate(job, Config(transport="loopback", seed=seed or 0, **options), seed or 0, model, timeout)
    else:
        _run_threads(job, Config(transport=transport, seed=seed, **options), timeout)
    return job.results


class _Job:
    """What became of each rank. ``failures`` is guarded by: lock; the rest is written by the rank's own thread."""

    def __init__(self, size: int, function: Callable[[ParameterManager], Any], transport: str, replay: str) -> None:
        self.size, self.function, self.transport, self.replay = size, function, transport, replay
        self.results: list[Any] = [None] * size
        self.failures: list[tuple[int, BaseException]] = []
        self.lock = threading.Lock()
        self.managers: list[ParameterManager] = []
        self.thread_ids: dict[int, int] = {}
        self.ended: set[int] = set()

    def run_rank(self, rank: int, start: Callable[[], ParameterManager]) -> None:
        """The life of a rank; keeps what it raises."""
        self.thread_ids[rank] = threading.get_ident()
        try:
            with start() as manager:
                self.managers.append(manager)
                try:
                    self.results[rank] = self.function(manager)
                except BaseException as problem:
                    self.note_failure(rank, problem)  # before the block ends and the other ranks fail from it
                    raise
        except BaseException as problem:
            self.note_failure(rank, problem)
        finally:
            self.ended.add(rank)

    def note_failure(self, rank: int, problem: BaseException) -> None:
        with self.lock:
            if all(problem is not known for _, known in self.failures):
                self.failures.append((rank, problem))

    def raise_failure(self) -> None:
        with self.lock:
            failures = list(self.failures)
        if not failures:
            return
        rank, first = failures[0]
        first.add_note(f"raised on rank {rank} of {self.size} (transport {self.transport}{self.replay})")
        for other, problem in failures[1:]:
            if not isinstance(problem, PeerLostError):
                first.add_note(f"rank {other} raised too: {problem!r}")
        raise first

    def raise_stuck(self, timeout_s: float) -> None:
        """Some ranks did not come back: ends the job for them, says where they stand."""
        stuck = [rank for rank in range(self.size) if rank not in self.ended]
        stacks = "".join(f"rank {rank} stands in:\n{self._stack_of(rank)}" for rank in stuck)
        why = f"ranks {stuck} did not return within {timeout_s:g} s"
        aborts = [
            threading.Thread(target=manager.abort, args=(why,), daemon=True) for manager in list(self.managers)
        ]  # threads, because whoever is stuck may hold what they need
        for abort in aborts:
            abort.start()
        _join(aborts, ABORT_GRACE_S)
        raise WaitTimeoutError(f"{why}, of {self.size}{self.replay}\n{stacks}")

    def _stack_of(self, rank: int) -> str:
        frame = sys._current_frames().get(self.thread_ids.get(rank, 0))
        return "".join(traceback.format_stack(frame)) if frame is not None else "  nothing yet: it was not started\n"


def _run_threads(job: _Job, config: Config, timeout_s: float) -> None:
    transports = _make_transports(job.transport, job.size, config)
    addresses = [transport.address() for transport in transports]

    def start(rank: int) -> ParameterManager:
        transports[rank].connect(addresses, timeout_s / 2)
        return ParameterManager(config, InProcessWorld(rank, job.size), transports[rank])

    threads = [
        threading.Thread(
            target=job.run_rank, args=(rank, lambda rank=rank: start(rank)), name=f"rank {rank}", daemon=True
        )
        for rank in range(job.size)
    ]
    _run_until(job, threads, timeout_s)
    job.raise_failure()


def _simulate(job: _Job, config: Config, seed: int, model: NetworkModel | None, timeout_s: float) -> None:
    network = SimNetwork(job.size, seed, model or NetworkModel.disorderly(seed), max_events=MAX_EVENTS)
    managers = [
        ParameterManager(config, InProcessWorld(rank, job.size, "sim"), network.transport(rank))
        for rank in range(job.size)
    ]

    def spawn(rank: int, manager: ParameterManager) -> None:
        network.spawn(lambda: job.run_rank(rank, lambda: manager), rank, f"rank {rank}")

    for rank, manager in enumerate(managers):
        spawn(rank, manager)
    problems: list[BaseException] = []

    def run() -> None:
        try:
            network.run()
        except BaseException as problem:
            problems.append(problem)

    _run_until(job, [threading.Thread(target=run, name="the simulation", daemon=True)], timeout_s)
    for manager in managers:
        manager.abort("the simulation failed")
    network.close()
    job.raise_failure()
    if problems:
        raise problems[0]


def _run_until(job: _Job, threads: list[threading.Thread], timeout_s: float) -> None:
    for thread in threads:
        thread.start()
    _join(threads, timeout_s)
    if any(thread.is_alive() for thread in threads):
        job.raise_stuck(timeout_s)


def _join(threads: list[threading.Thread], timeout_s: float) -> None:
    deadline = time.monotonic() + wait_s(timeout_s)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _make_transports(name: str, size: int, config: Config) -> list[Transport]:
    """Transports of all ranks, not connected yet. Raises ConfigError, TransportUnavailableError."""
    if name == "loopback":
        network = LoopbackNetwork(size)
        return [network.transport(rank) for rank in range(size)]
    options = {"host": "127.0.0.1"} if name == "tcp" else {}
    secret = os.urandom(32)
    make = registry.load(name)
    return [make(rank, size, secret, peer_timeout_s=config.peer_timeout, **options) for rank in range(size)]
