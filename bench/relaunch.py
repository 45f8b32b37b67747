"""Starting ranks of the running command: ``intentpm train ... -n 3`` on a plain shell becomes three ranks."""

import os
import sys


def is_rank() -> bool:
    """Whether a launcher (``intentpm run``, mpirun, srun, torchrun) started this process as a rank of a job."""
    from intentpm.launch.launchers import detect_launcher

    return detect_launcher(os.environ) != "alone"


def shows_on_terminal() -> bool:
    """Whether this process writes to the user's own terminal or file: not through a launcher's pipes or terminals."""
    from intentpm.launch.launchers import detect_launcher

    return detect_launcher(os.environ) in ("alone", "local")


def run_ranks(n: int, transport: str) -> int:
    """Runs this process's own command line as ``n`` ranks of this machine; returns the exit code."""
    from intentpm.launch.local import run_local

    argv = [sys.executable, "-m", "intentpm", *sys.argv[1:]]
    return run_local(n, argv, transport=transport, prefix=False)
