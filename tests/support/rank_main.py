"""What one rank of ``spawn_world`` runs: calls the target and leaves its outcome in a file for the parent.

Usage: python rank_main.py FOLDER, as a rank of a LocalJob.
"""

import faulthandler
import gc
import importlib.util
import os
import pickle
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

LEAK_WAIT_S = 2.0


def main(folder: Path) -> int:
    call = pickle.loads((folder / "call.pkl").read_bytes())
    # Until the process has ended: the parent shows where a rank stood that it had to kill.
    faulthandler.dump_traceback_later(
        call["show_stacks_s"], file=(folder / f"{os.environ['INTENTPM_RANK']}.stacks").open("w")
    )
    sys.path[:0] = call["path"]
    try:
        target = _load(call["file"], call["module"], call["name"])
        before = _open_things()
        value = target(*call["args"], **call["kwargs"])
        leaks = _leaks(before) if call["check_leaks"] else ""
        outcome = {"value": value, "error": None, "traceback": ""}
        if leaks:
            outcome = {"value": None, "error": None, "traceback": f"the target returned, but left open: {leaks}"}
    except BaseException as error:
        outcome = {"value": None, "error": _picklable(error), "traceback": traceback.format_exc()}
    temporary = folder / f"{os.environ['INTENTPM_RANK']}.tmp"
    temporary.write_bytes(pickle.dumps(outcome))
    temporary.rename(temporary.with_suffix(".pkl"))
    return 1 if outcome["traceback"] else 0


def _load(file: str, module_name: str, name: str) -> object:
    """``name`` (dots for nesting) from the test module at ``file``, which is in no importable package."""
    spec = importlib.util.spec_from_file_location(module_name, file)
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target = module
    for part in name.split("."):
        target = getattr(target, part)
    return target


def _open_things() -> Counter[str]:
    """Counts of what a rank must give back: sockets, event descriptors, shared memory and threads (native ones too)."""
    things: Counter[str] = Counter(threads=len(os.listdir("/proc/self/task")))
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            kind = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if kind.startswith(("socket:", "anon_inode:", "/dev/shm", "/memfd")):
            things[kind.partition(":[")[0]] += 1
    return things


def _leaks(before: Counter[str]) -> str:
    gc.collect()  # a manager and its workers refer to each other
    deadline = time.monotonic() + LEAK_WAIT_S
    while more := _open_things() - before:
        if time.monotonic() >= deadline:
            threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
            return f"{dict(more)}; Python threads: {threads}"
        time.sleep(0.02)
    return ""


def _picklable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    # os._exit would skip what a real rank does at exit (atexit handlers, daemon threads): end as a script does.
    sys.exit(main(Path(sys.argv[1])))
