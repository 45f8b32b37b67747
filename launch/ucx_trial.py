"""Tries UCX in a child process first, where its settings are such that it may kill the process that uses it.

``python -m intentpm.launch.ucx_trial``: two ends of UCX in this process send each other messages of all sizes.
"""

import os
import re
import sys
import threading
from collections.abc import Mapping
from typing import Any

from intentpm.foundation.losses import how_process_ended
from intentpm.launch.findings import last_line, run_tool

TRIAL_S = 30.0
LARGEST_BYTES = 4 << 20
_RISKY = re.compile(r"UCX_((MM|SM|POSIX|SYSV|XPMEM|SELF)_\w+|\w+_(SEG_SIZE|BUFS\w*|MAX_BUFS|FIFO\w*)|SEG_SIZE)")
"""Sizes of UCX's queues and buffers, which UCX does not check against each other: UCX_MM_SEG_SIZE=64k crashes 1.22."""


def risky_settings(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The ``UCX_*`` variables that make a trial worth its time (half a second)."""
    return sorted(f"{name}={value}" for name, value in environment.items() if _RISKY.fullmatch(name))


def why_trial_failed() -> str:
    """Runs the trial; "" when all messages arrived."""
    tried = run_tool([sys.executable, "-m", "intentpm.launch.ucx_trial"], TRIAL_S, PYTHONFAULTHANDLER="")
    if tried.returncode == 0:
        return ""
    settings = " ".join(risky_settings())
    if tried.returncode < 0:
        return f"with {settings}, UCX crashes: a process that tried it {how_process_ended(tried.returncode)}"
    return f"with {settings}, UCX does not work: {last_line(tried.stderr)}"


def main() -> None:
    from intentpm.transports.mailbox import Mailbox
    from intentpm.transports.ucx import UcxTransport

    secret = os.urandom(16)
    ends = [Mailbox(UcxTransport(rank, 2, secret)) for rank in (0, 1)]
    addresses = [end.transport.address() for end in ends]
    connecting = [threading.Thread(target=end.transport.connect, args=(addresses, TRIAL_S / 3)) for end in ends]
    for thread in connecting:
        thread.start()
    for thread in connecting:
        thread.join()
    size_bytes = 1
    while size_bytes <= LARGEST_BYTES:
        _exchange(ends, size_bytes)
        size_bytes *= 2
    for end in ends:
        end.close(1.0)


def _exchange(ends: list[Any], size_bytes: int) -> None:
    body = bytes(size_bytes)
    for source, target in ((0, 1), (1, 0)):
        handles = [ends[source].send(target, 1, b"", [body]) for _ in range(4)]
        while ends[target].pending < len(handles):
            for end in ends:
                end.progress()
        assert all(message.body == body for message in ends[target].receive_many(len(handles), 1.0))


if __name__ == "__main__":
    main()
