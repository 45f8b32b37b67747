"""An hour of everything at once: ``make soak MINUTES=60``, or ``python -m tests.soak.soak --minutes 10``.

Four ranks (``rank.py``), each on a host of its own (a network namespace; that needs root, else they share this one and
no link is unplugged), push at random under a tight memory budget, save every 10 s and check every sum. Meanwhile, one
every 20 s, in turn:

    a rank is stopped for 3 s, by SIGSTOP       nothing may come of it
    a link is unplugged for 2 s                 nothing may come of it
    a rank is killed, or a link unplugged       the others end within 40 s, and the job is started anew: from the newest
    for good                                    checkpoint, whose every row is checked

A line every 5 s says where the ranks are. The verdict is the last line, and the exit code: 0 only if every value was
right, no rank hung, none ended without cause, and all that was started is gone.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from intentpm.bench.hosts import Host, make_hosts, why_unavailable

RANKS = 4
FAULT_EVERY_S, TELL_EVERY_S = 20.0, 5.0
PAUSE_S, UNPLUGGED_S = 3.0, 2.0
END_S = 40.0
"""After a rank is lost the others end within this: peer_timeout, and what a loaded machine needs."""
SILENT_S = 300.0
"""A rank that tells nothing for so long hangs."""
WRONG, LOST = 3, 75
FIRST_PORT = 29600
RANK_PROGRAM = Path(__file__).with_name("rank.py")


class FailedError(Exception):
    """The soak has found something."""


class Life:
    """The ranks from a start of the job to its end; what they tell is counted in ``told``."""

    def __init__(self, number: int, hosts: list[Host], folder: Path, told: "Counter[str]") -> None:
        self.told, self.last = told, {}  # type: dict[int, dict[str, Any]]
        self.wrong: list[str] = []
        self.heard_s = [time.monotonic()] * RANKS
        self.ranks: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []
        meeting = {
            "WORLD_SIZE": str(RANKS), "MASTER_ADDR": hosts[0].address4 if hosts else "127.0.0.1",
            "MASTER_PORT": str(FIRST_PORT + number % 300), "INTENTPM_LAUNCHER": "torchrun",
            "TORCH_CPP_LOG_LEVEL": "ERROR", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        for rank in range(RANKS):
            own = {"RANK": str(rank), "LOCAL_RANK": "0" if hosts else str(rank)}
            prefix = hosts[rank].prefix if hosts else []
            argv = [*prefix, sys.executable, str(RANK_PROGRAM), str(folder / "checkpoints"), str(folder / "stop")]
            errors = (folder / f"rank-{rank}.err").open("a")
            process = subprocess.Popen(
                argv, env={**os.environ, **meeting, **own}, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            errors.close()
            self.ranks.append(process)
            thread = threading.Thread(target=self._listen, args=(rank, process), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _listen(self, rank: int, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                said = json.loads(line)
                self.heard_s[rank] = time.monotonic()
                self.told[said["what"]] += 1
                self.last[rank] = said
                if said["what"] == "wrong":
                    self.wrong.append(f"rank {rank}: {said['why']}")

    def codes(self) -> list[int | None]:
        return [process.poll() for process in self.ranks]

    def look(self) -> None:
        """Raises FailedError for a wrong value, a rank that hangs, and an end that nobody caused."""
        if self.wrong or WRONG in self.codes():
            raise FailedError("; ".join(self.wrong) or "a rank has found a wrong value")
        for rank, heard in enumerate(self.heard_s):
            if self.codes()[rank] is None and time.monotonic() - heard > SILENT_S:
                self.show_stacks()
                raise FailedError(f"rank {rank} has told nothing for {SILENT_S:g} s")
        if any(code is not None for code in self.codes()) and self.told["ended"] == 0:
            why = [said for said in self.last.values() if said["what"] == "lost"]
            raise FailedError(f"ranks ended with {self.codes()}, and nobody had harmed them: {why[:1]}")

    def end(self, within_s: float) -> list[int]:
        """Waits for all. Raises FailedError when some go on."""
        deadline = time.monotonic() + within_s
        while None in self.codes() and time.monotonic() < deadline:
            time.sleep(0.05)
        if None in self.codes():
            self.show_stacks()
            raise FailedError(f"within {within_s:g} s not all ranks ended: {self.codes()}")
        for thread in self._threads:
            thread.join(5)
        if self.wrong or WRONG in self.codes():
            raise FailedError("; ".join(self.wrong) or "a rank has found a wrong value")
        return [process.returncode for process in self.ranks]

    def show_stacks(self) -> None:
        for process in self.ranks:
            if process.poll() is None:
                process.send_signal(signal.SIGUSR2)
        time.sleep(1.0)

    def close(self) -> None:
        for process in self.ranks:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


class Soak:
    """One run of the program."""

    def __init__(self, hosts: list[Host], folder: Path, minutes: float, seed: int) -> None:
        self.hosts, self.folder, self.draw = hosts, folder, random.Random(seed)
        self.ends_s = time.monotonic() + 60 * minutes
        self.began_s = self.told_s = time.monotonic()
        self.told: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.restarts_s: list[float] = []
        self.lives = 0
        self.most_mib = 0.0

    def run(self) -> None:
        (self.folder / "journals").mkdir()
        while time.monotonic() < self.ends_s:
            with self._life() as life:
                self._live(life)
        with self._life() as life:
            (self.folder / "stop").touch()
            codes = life.end(2 * SILENT_S)
        if codes != [0] * RANKS:
            raise FailedError(f"the last life ended with {codes}")

    @contextlib.contextmanager
    def _life(self) -> Iterator[Life]:
        life = Life(self.lives, self.hosts, self.folder, self.told)
        self.lives += 1
        try:
            yield life
        finally:
            life.close()
            for host in self.hosts:
                host.plug_in()

    def _live(self, life: Life) -> None:
        """Until a rank is killed, or the time is over."""
        self._wait_for_checks(life)
        for fault in ("stop", "unplug", "kill"):
            self._watch(life, min(FAULT_EVERY_S, max(0.0, self.ends_s - time.monotonic())))
            if time.monotonic() >= self.ends_s:
                self._harm(life, "kill")
                return
            if fault != "unplug" or self.hosts:
                self._harm(life, fault)

    def _wait_for_checks(self, life: Life) -> None:
        begun, before = time.monotonic(), self.told["checked"]
        while self.told["checked"] < before + RANKS:
            self._watch(life, 0.1)
        self.restarts_s.append(time.monotonic() - begun)

    def _watch(self, life: Life, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            life.look()
            if time.monotonic() - self.told_s > TELL_EVERY_S:
                self._tell(life)
            time.sleep(0.05)

    def _harm(self, life: Life, fault: str) -> None:
        rank = self.draw.randrange(RANKS)
        if fault == "stop":
            life.ranks[rank].send_signal(signal.SIGSTOP)
            time.sleep(PAUSE_S)
            life.ranks[rank].send_signal(signal.SIGCONT)
        elif fault == "unplug":
            self.hosts[rank].unplug()
            time.sleep(UNPLUGGED_S)
            self.hosts[rank].plug_in()
        elif self.hosts and self.draw.random() < 0.25:
            fault = "unplug for good"
            self.hosts[rank].unplug()
            life.end(END_S)
        else:
            life.ranks[rank].kill()
            codes = life.end(END_S)
            if sorted(codes) not in ([-9] + [LOST] * (RANKS - 1), [-9, -9] + [LOST] * (RANKS - 2)):
                raise FailedError(f"after rank {rank} was killed the ranks ended with {codes}")
        self.faults[fault] += 1

    def _tell(self, life: Life) -> None:
        self.told_s = time.monotonic()
        checked = [said for said in life.last.values() if "mib" in said]
        self.most_mib = max([self.most_mib, *(said["mib"] for said in checked)])
        counts = ", ".join(f"{count} {what}" for what, count in sorted((self.told + self.faults).items()))
        print(
            f"{time.monotonic() - self.began_s:6.0f} s  life {self.lives}: {counts}; most {self.most_mib} MiB",
            flush=True,
        )

    def report(self) -> str:
        restarts = sorted(self.restarts_s)
        middle = restarts[len(restarts) // 2] if restarts else 0.0
        checks, restores, cuts = (self.told[what] // RANKS for what in ("checked", "restored", "cut"))
        return (
            f"{time.monotonic() - self.began_s:.0f} s, {self.lives} lives, {checks} checks of all sums, {restores} "
            f"restores, {cuts} cuts, faults {dict(self.faults)}; from a start to its first check {middle:.1f} s "
            f"(median); most {self.most_mib} MiB in a rank"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves no rank and no host behind
    reason = why_unavailable()
    if reason:
        print(f"no link is unplugged: {reason}", flush=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="intentpm-soak-")))
        hosts = [] if reason else stack.enter_context(make_hosts(RANKS))
        soak = Soak(hosts, folder, options.minutes, options.seed)
        try:
            soak.run()
        except (FailedError, KeyboardInterrupt) as failure:
            for file in sorted(folder.glob("rank-*.err")):
                print(f"--- {file.name}\n{file.read_text()[-3000:]}", flush=True)
            print(f"FAILED: {failure!r}; {soak.report()}")
            return 1
        print(f"PASSED: {soak.report()}")
        return 0


if __name__ == "__main__":
    sys.exit(main())
