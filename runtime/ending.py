"""How a rank ends: in order, so that the others go on until their own end, or as a failure that all hear of at once.

In order: the end of the with block or of the program, ``sys.exit()``, ``sys.exit(0)``, and a generator that is closed
by whoever had enough of it. A failure: every other exception, ``sys.exit`` with any other code (also one that the
operating system cuts to 0, as 256), Ctrl-C. An exception in a thread other than the main one ends the thread alone, as
in Python.

A process that leaves without the end of a with block is judged when Python begins to shut down, before it waits for the
threads that still train. Python forgets an exit's code by then, so ``sys.exit``, ``exit`` and ``quit`` are noted from
the first parameter manager on. ``raise SystemExit(1)`` written out, outside a with block, cannot be: it ends in order.

Guarantees
    * A failure is told before Python waits for threads; an orderly end after they have ended.
Assumptions
    * ``watch``, ``forget`` and the ends of the process run under the GIL; nothing else guards what is kept here.
"""

import atexit
import builtins
import concurrent.futures.thread  # noqa: F401  its hook, which waits for its threads, is registered first and runs last
import dis
import functools
import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

from intentpm.foundation.losses import how_it_exited, how_it_failed

_open: weakref.WeakSet[Any] = weakref.WeakSet()  # parameter managers that were not closed
_last_exit: tuple[Any, BaseException | None] | None = None  # code, and what was being handled; of the main thread
_main_frame: FrameType | None = None  # of the program's outermost code; None: nothing is watched yet


def why_failed(problem: BaseException | None) -> str | None:
    """What the other ranks are told when ``problem`` ends this rank; None where it is an orderly end."""
    if problem is None or (isinstance(problem, SystemExit) and is_success(problem.code)):
        return None
    if isinstance(problem, GeneratorExit):
        # One that is closed because of another exception fails with that one.
        return None if problem.__context__ is None else how_it_failed(problem.__context__)
    return how_it_failed(problem)


def is_success(code: object) -> bool:
    """Whether ``sys.exit(code)`` reports success. Python takes integers as they are, all else is an error to print."""
    return code is None or (isinstance(code, int) and code == 0)


def watch(manager: Any) -> None:
    """Ends ``manager`` with the program, in order or not, unless ``forget`` comes first."""
    global _main_frame
    _open.add(manager)
    if _main_frame is not None:
        return
    _main_frame = _outermost_frame()
    sys.exit = _noting(sys.exit)
    quitter: Any = type(getattr(builtins, "exit", None))
    if quitter.__module__ == "_sitebuiltins":  # the class of both exit and quit
        quitter.__call__ = _noting_method(quitter.__call__)
    # Not public, but the only hook before Python waits for threads; concurrent.futures lives by it too.
    threading._register_atexit(_abort_after_failure)  # type: ignore[attr-defined]
    atexit.register(_end)


def forget(manager: Any) -> None:
    _open.discard(manager)


def _abort_after_failure() -> None:
    why = _why_process_failed()
    if why is not None:
        for manager in list(_open):
            manager.abort(why)


def _end() -> None:
    _abort_after_failure()
    for manager in list(_open):
        manager.close_at_exit()


def _why_process_failed() -> str | None:
    uncaught = getattr(sys, "last_value", None)
    if uncaught is not None and not hasattr(sys, "ps1"):  # at a prompt the program goes on after an exception
        return how_it_failed(uncaught)
    if _last_exit is None or is_success(_last_exit[0]) or not _was_left_by_exception():
        return None
    return how_it_exited(*_last_exit)


def _was_left_by_exception() -> bool:
    """Whether the program did not run to its end: an exit that was noted may have been caught."""
    if _main_frame is None:
        return False
    code = _main_frame.f_code.co_code
    return not dis.opname[code[_main_frame.f_lasti]].startswith("RETURN")


def _outermost_frame() -> FrameType | None:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _note_exit(code: object) -> None:
    global _last_exit
    if threading.current_thread() is threading.main_thread():
        _last_exit = code, sys.exception()


def _noting(leave: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(leave)
    def noted(status: object = None, /) -> Any:
        _note_exit(status)
        return leave(status)

    return noted


def _noting_method(leave: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(leave)
    def noted(self: object, code: object = None) -> Any:
        _note_exit(code)
        return leave(self, code)

    return noted
