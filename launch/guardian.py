"""Ends what is left of a job when its launcher is gone, even by ``kill -9``. Run as a script, with no imports of ours.

The launcher holds the other end of this process's standard input and writes "done" when it has cleaned up itself. The
end of the stream without that word means that the launcher died. A job's processes are found by the variable that all
of them inherit, so that grandchildren and processes that made a session of their own are found too.
"""

import contextlib
import os
import signal
import sys
import time

JOB_VARIABLE = "INTENTPM_JOB"


def find_processes(job: str) -> list[int]:
    """Process ids of all (not yet ended) processes of this user that inherited ``INTENTPM_JOB=job``."""
    wanted = f"{JOB_VARIABLE}={job}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if wanted in file.read().split(b"\0"):
                    found.append(int(name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def kill_job(job: str, rounds: int = 20) -> int:
    """Kills every process of ``job``, again until none is left (one may fork meanwhile); returns how many were seen."""
    seen: set[int] = set()
    for _ in range(rounds):
        found = find_processes(job)
        if not found:
            break
        seen.update(found)
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return len(seen)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    # The name travels here and not on the command line, so that it is in no process listing.
    job, _, end = sys.stdin.read().partition("\n")
    if job and end.strip() != "done":
        kill_job(job)


if __name__ == "__main__":
    main()
