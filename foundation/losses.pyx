"""Every loss as one sentence, the cause first: "rank 1 was killed by SIGKILL; rank 0 cannot go on without it: restart the job".

What goes on from "rank 1" is a *why*. Transports and the engine take theirs from the table in losses.hpp, launchers and the
parameter manager from the functions here; nobody else makes one.
"""

import signal

from intentpm.foundation.losses cimport LOSS_COUNT, loss_text

_LONGEST = 300
NOT_CONNECTED = "is not connected"
LEFT_RENDEZVOUS = "has closed its connection to the rendezvous"
STOPPED_LISTENING = "stopped listening: its process ended, or gave up"


def table() -> list:
    """The texts of losses.hpp, in its order."""
    return [loss_text(loss).decode() for loss in range(LOSS_COUNT)]


def sentence(rank: int, why: str, here: int) -> str:
    """What rank ``here`` raises about the loss of ``rank``."""
    if rank == here:
        return f"rank {rank} {why}; the job cannot go on: restart it"
    return f"rank {rank} {why}; rank {here} cannot go on without it: restart the job"


def during_start(rank: int, why: str, waiting: str) -> str:
    """The same before the ranks are connected. ``waiting``: which ranks waited, as text."""
    return f"rank {rank} {why}, while {waiting} waited for it to start"


def while_waiting(rank: int, why: str, what: str) -> str:
    """The same of one call that waited for ``what``."""
    return f"rank {rank} {why}, while {what} was waited for"


def how_connection_broke(problem) -> str:
    """The why of a rank whose connection to the rendezvous gave ``problem``: its end, the system's error, nonsense."""
    if isinstance(problem, (EOFError, ConnectionResetError, BrokenPipeError)):
        return "ended without a goodbye: it closed its connection to the rendezvous"
    if isinstance(problem, OSError):
        return f"lost its connection to the rendezvous: {problem.strerror or problem}"
    return str(problem)


def how_process_ended(code: int) -> str:
    """The why of a process that a launcher saw end; ``code`` as in subprocess (-9: killed by SIGKILL)."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def how_it_failed(problem) -> str:
    """The why of a rank that an exception ended. An exit that another exception led to names that one too."""
    if isinstance(problem, SystemExit):
        return how_it_exited(problem.code, problem.__cause__ or problem.__context__)
    if isinstance(problem, KeyboardInterrupt):
        return "was interrupted (KeyboardInterrupt)"
    return f"failed with {in_one_line(problem)}"


def how_it_exited(code, cause=None) -> str:
    """The why of a rank that called ``sys.exit(code)``, while it handled ``cause`` perhaps."""
    after = "" if cause is None else f" after {in_one_line(cause)}"
    return f"called sys.exit({in_one_line(code)}){after}"


def in_one_line(thing) -> str:
    """``repr(thing)`` on one line, cut where it is long; nothing that a repr does is an error here."""
    try:
        text = " ".join(repr(thing).split())
    except Exception as problem:
        text = f"{type(thing).__name__} (whose repr raises {type(problem).__name__})"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
