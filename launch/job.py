"""A job of ranks on this machine: start, watch, forward signals, end, clean up.

Guarantees
    * After a first failure the other ranks get ``grace_s`` to end by themselves, then TERM, then KILL; unless they go
      on without that rank.
    * When the job ends, in whatever way, none of its processes is left: whatever inherited the job's variable is found
      and killed, in a session of its own or not. A guardian process does the same when this process is killed.
Assumptions
    * One thread uses a LocalJob. Signals are handled only where that is the main thread.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

from intentpm.foundation.deadlines import call_s, wait_s
from intentpm.foundation.errors import ConfigError
from intentpm.foundation.losses import how_process_ended
from intentpm.launch.cores import usable_cores
from intentpm.launch.guardian import JOB_VARIABLE, kill_job
from intentpm.launch.inheritance import MARK_VARIABLE
from intentpm.launch.output import OutputPump
from intentpm.launch.rendezvous_server import RendezvousServer

TIMED_OUT = 124
TERM_S = 5.0
"""How long ranks get to end after SIGTERM, before SIGKILL."""
GRACE_BEYOND_PEER_TIMEOUT_S = 2.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_FORWARDED = (*_ENDING, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP, signal.SIGCONT)


class LocalJob:
    """``n`` ranks running ``argv``; a context manager. See ``intentpm.launch.local.run_local`` for the parameters.

    ``exit_codes[r]`` is None while rank r runs, then as in ``subprocess`` (-signal for one that was killed).
    """

    def __init__(
        self,
        n: int,
        argv: Sequence[str],
        *,
        transport: str | None = None,
        prefix: bool = True,
        env: Mapping[str, str] | None = None,
        grace_s: float | None = None,
        on_loss: str = "stop",
    ) -> None:
        if n < 1:
            raise ConfigError(f"n={n}: needs at least one rank")
        self.size = n
        self.exit_codes: list[int | None] = [None] * n
        self.name = os.urandom(12).hex()
        self.left_behind = 0  # processes the ranks had left when all of them had ended; they were killed
        environment = self._environment(env or {}, transport)
        self._continues = on_loss == "continue"
        self._grace_s = _default_grace_s(environment) if grace_s is None else wait_s(grace_s, "grace_s")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pidfds: list[int] = []
        self._first_failure: int | None = None  # rank
        self._steps: list[tuple[float, signal.Signals]] = []  # escalation: when to send what, in order of time
        self._endings_seen = 0
        self._is_output_broken = False
        self._is_closed = False
        self._signals: deque[int] = deque()  # appended by the signal handler, taken by wait()
        self._selector = selectors.DefaultSelector()
        self._wake_receiver, self._wake_sender = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ)
        self._pump = OutputPump(on_broken=self._break_output) if prefix else None
        self._server = RendezvousServer(n, environment["INTENTPM_SECRET"].encode())
        environment["INTENTPM_RENDEZVOUS"] = "{}:{}".format(*self._server.address)
        self._guardian = _start_guardian(self.name)
        try:
            for rank in range(n):
                self._start_rank(rank, argv, environment)
        except BaseException:
            self.close()
            raise
        if self._pump:
            self._pump.start()

    def __enter__(self) -> "LocalJob":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def told_to_end(self) -> bool:
        """By a signal to this process, or by a reader of its output that went away."""
        return self._endings_seen > 0 or self._is_output_broken

    def pid(self, rank: int) -> int:
        return self._processes[rank].pid

    def wait(self, timeout_s: float | None = None, began: float | None = None) -> int:
        """Waits for all ranks, until ``timeout_s`` after ``began`` (by ``time.monotonic``; None: now).

        Returns the job's exit code. See ``run_local``.
        """
        began = time.monotonic() if began is None else began
        end = float("inf") if timeout_s is None else began + wait_s(timeout_s, "timeout_s")
        with self._forward_signals():
            while self._running():
                if time.monotonic() >= end:
                    _say(f"the job took longer than {timeout_s:g} s: killing {self._named(self._running())}")
                    self.close()
                    return TIMED_OUT
                for key, _ in self._selector.select(self._sleep_s(end)):
                    if key.data is None:
                        self._drain_wakes()
                    else:
                        self._collect(key.data)
                self._handle_signals()
                self._escalate()
        self.left_behind = kill_job(self.name)
        if self._pump and not self._is_output_broken:
            # A reader may take its time (a pager): all that was written is shown, as if the ranks had written it there.
            self._pump.finish(None)
        self.close()
        return self._exit_code()

    def send_signal(self, number: int) -> None:
        """Sends a signal to the process group of every running rank."""
        for rank in self._running():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._processes[rank].pid, number)

    def close(self) -> None:
        """Kills what still runs, shows the last output, ends server and guardian. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self.send_signal(signal.SIGKILL)
        for rank in self._running():
            self.exit_codes[rank] = self._processes[rank].wait()
        kill_job(self.name)
        if self._pump:
            self._pump.finish(timeout_s=0.0 if self._is_output_broken else 2.0)
        self._server.close(timeout_s=0)
        self._selector.close()
        for descriptor in (*self._pidfds, self._wake_receiver, self._wake_sender):
            os.close(descriptor)
        _dismiss_guardian(self._guardian)

    # -- start ---------------------------------------------------------------------------------------------------------

    def _environment(self, extra: Mapping[str, str], transport: str | None) -> dict[str, str]:
        environment = {**os.environ, **extra}
        environment["INTENTPM_SIZE"] = str(self.size)
        environment[JOB_VARIABLE] = self.name
        environment.setdefault("INTENTPM_SECRET", os.urandom(32).hex())
        # Lines must show when they are printed, not when an 8 KiB buffer is full.
        environment.setdefault("PYTHONUNBUFFERED", "1")
        # Every rank would start a thread per core otherwise.
        environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // self.size)))
        for name in ("INTENTPM_LAUNCHER", "INTENTPM_LOCAL_RANKS", MARK_VARIABLE):
            environment.pop(name, None)
        if transport is not None:
            environment["INTENTPM_TRANSPORT"] = transport
        return environment

    def _start_rank(self, rank: int, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        outputs = self._pump.add_rank(rank, len(str(self.size - 1))) if self._pump else (None, None)
        try:
            process = subprocess.Popen(
                argv,
                env={**environment, "INTENTPM_RANK": str(rank)},
                stdin=None if rank == 0 and _is_stdin_readable() else subprocess.DEVNULL,
                stdout=outputs[0],
                stderr=outputs[1],
                process_group=0,
            )
        except OSError as error:
            raise ConfigError(f"cannot start {argv[0]}: {error.strerror}") from None
        finally:
            for descriptor in outputs:
                if descriptor is not None:
                    os.close(descriptor)
        self._processes.append(process)
        self._pidfds.append(os.pidfd_open(process.pid))
        self._selector.register(self._pidfds[-1], selectors.EVENT_READ, (rank,))

    # -- watch ---------------------------------------------------------------------------------------------------------

    def _running(self) -> list[int]:
        return [rank for rank in range(len(self._processes)) if self.exit_codes[rank] is None]

    def _sleep_s(self, end: float) -> float | None:
        at = min([end, *(when for when, _ in self._steps)])
        return None if at == float("inf") else call_s(at - time.monotonic())

    def _collect(self, ranks: tuple[int]) -> None:
        (rank,) = ranks
        self._selector.unregister(self._pidfds[rank])
        code = self.exit_codes[rank] = self._processes[rank].wait()
        self._server.fail_rank(rank, how_process_ended(code))
        if code != 0 and self._continues:
            _say(f"rank {rank} {how_process_ended(code)}; the others go on")
        if code != 0 and self._first_failure is None:
            self._first_failure = rank
            if self._continues:
                return
            others = self._running()
            wait = f"; {self._named(others)} may take {self._grace_s:g} s to end" if others else ""
            _say(f"rank {rank} {how_process_ended(code)}{wait}")
            self._plan_end(self._grace_s)

    def _named(self, ranks: list[int]) -> str:
        return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"

    def _exit_code(self) -> int:
        if self._is_output_broken:
            return 128 + signal.SIGPIPE
        if self._first_failure is None or (self._continues and 0 in self.exit_codes):
            return 0
        code = self.exit_codes[self._first_failure]
        assert code is not None
        return code if code > 0 else 128 - code

    # -- end -----------------------------------------------------------------------------------------------------------

    def _plan_end(self, grace_s: float) -> None:
        """TERM after ``grace_s``, KILL after that; never later than what is already planned."""
        now = time.monotonic()
        steps = [(now + grace_s, signal.SIGTERM), (now + grace_s + TERM_S, signal.SIGKILL)]
        if not self._steps or steps[0][0] < self._steps[0][0]:
            self._steps = steps

    def _escalate(self) -> None:
        while self._steps and time.monotonic() >= self._steps[0][0]:
            _, number = self._steps.pop(0)
            running = self._running()
            if running:
                _say(f"sending {number.name} to {self._named(running)}")
                self.send_signal(number)

    @contextlib.contextmanager
    def _forward_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._note_signal) for number in _FORWARDED}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        self._wake()

    def _break_output(self) -> None:
        self._is_output_broken = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: a wake is on its way; closed: the job has ended
            os.write(self._wake_sender, b"\0")

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_receiver, 4096)

    def _handle_signals(self) -> None:
        if self._is_output_broken and not self._steps:
            self._plan_end(0.0)
        while self._signals:
            number = self._signals.popleft()
            self.send_signal(number)
            if number == signal.SIGTSTP:
                os.kill(os.getpid(), signal.SIGSTOP)
            elif number in _ENDING:
                self._endings_seen += 1
                # Once: let them end. Again: soon. A third time: now.
                self._plan_end((self._grace_s, 0.0, -TERM_S)[min(self._endings_seen, 3) - 1])


def _default_grace_s(environment: Mapping[str, str]) -> float:
    """Long enough for the other ranks to notice the loss and raise PeerLostError themselves."""
    try:
        peer_timeout_s = wait_s(float(environment.get("INTENTPM_PEER_TIMEOUT") or 10.0))
        return peer_timeout_s + GRACE_BEYOND_PEER_TIMEOUT_S
    except ValueError:
        return 10.0 + GRACE_BEYOND_PEER_TIMEOUT_S  # the ranks will say what is wrong with the variable


def _is_stdin_readable() -> bool:
    """Rank 0 gets our standard input, unless it is a terminal: ranks are in the background there and would stop."""
    try:
        return not os.isatty(0)
    except OSError:
        return False


def _say(message: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"intentpm run: {message}\n".encode())


def _start_guardian(job: str) -> subprocess.Popen[bytes]:
    # Without the variable of an enclosing job: it must outlive a launcher that is itself a rank, to clean up after it.
    environment = {name: value for name, value in os.environ.items() if name != JOB_VARIABLE}
    guardian = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("guardian.py"))],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert guardian.stdin is not None
    guardian.stdin.write(job.encode() + b"\n")
    guardian.stdin.flush()
    return guardian


def _dismiss_guardian(guardian: subprocess.Popen[bytes]) -> None:
    assert guardian.stdin is not None
    with contextlib.suppress(OSError):
        guardian.stdin.write(b"done")
        guardian.stdin.close()
    guardian.wait()
