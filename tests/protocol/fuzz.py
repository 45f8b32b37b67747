"""Runs random programs for many seeds: ``python -m tests.protocol.fuzz --seeds 10000``.

Prints the number of runs and the time; at a failure, the seed and the command that replays it.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.budgeted import run_budget_seed
from support.losses import run_loss_seed
from support.programs import DEVICES, MODES, run_seed
from support.saves import run_saving_seed

COLLECT_EVERY = 50


def fuzz(
    first: int,
    count: int,
    management: str | None,
    check_every: int,
    stop_after_s: float,
    ranks: int | None = None,
    saves: int = 0,
    devices: Sequence[str] = (),
    budgets: bool = False,
    deaths: int = 0,
) -> int:
    """Returns the exit status."""
    # Tasks hand over to each other all the time and one runs at any time: a second core would only have to be woken.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    gc.freeze()
    started = time.monotonic()
    done = 0
    for seed in range(first, first + count):
        try:
            if deaths:
                _run_losses(seed, management, saves, deaths)
            elif budgets:
                run_budget_seed(seed, management, ranks)
            elif saves:
                _run_saving(seed, management, saves, devices)
            else:
                run_seed(seed, management, check_every, ranks=ranks, devices=devices)
        except Exception:
            traceback.print_exc()
            print(
                f"FAILED: seed {seed}\n"
                f"replay: {replay_command(seed, management, ranks, saves, devices, budgets, deaths)}"
            )
            return 1
        done += 1
        if done % COLLECT_EVERY == 0:
            gc.collect()
        if time.monotonic() - started > stop_after_s:
            break
    seconds = time.monotonic() - started
    last = first + done - 1
    print(f"{done} seeds ({first} to {last}), 0 violations, {seconds:.1f} s ({1e3 * seconds / done:.1f} ms each)")
    return 0


def _run_losses(seed: int, management: str | None, saves: int, deaths: int) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        run_loss_seed(seed, deaths, management, folder=Path(folder) if saves else None)


def _run_saving(seed: int, management: str | None, saves: int, devices: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        run_saving_seed(seed, Path(folder), management, saves, devices=devices)


def replay_command(
    seed: int,
    management: str | None,
    ranks: int | None,
    saves: int,
    devices: Sequence[str],
    budgets: bool,
    deaths: int = 0,
) -> str:
    options = f" --management {management}" if management else ""
    options += f" --ranks {ranks}" if ranks else ""
    options += f" --saves {saves}" if saves else ""
    options += f" --devices {' '.join(devices)}" if devices else ""
    options += " --budgets" if budgets else ""
    options += f" --deaths {deaths}" if deaths else ""
    return f"python -m tests.protocol.fuzz --first {seed} --seeds 1 --check-every 1{options}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.protocol.fuzz", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--management", choices=MODES, default=None, help="default: drawn from the seed")
    parser.add_argument("--ranks", type=int, default=None, help="of each program; default: drawn from the seed, 2 to 8")
    parser.add_argument("--check-every", type=int, default=8, help="steps between two checks of the invariants")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="seconds after which no seed is begun")
    parser.add_argument("--saves", type=int, default=0, help="checkpoints made while a program runs, and checked")
    parser.add_argument(
        "--devices",
        nargs="*",
        choices=DEVICES,
        help="rows of some tables lie on emulated devices; how: default, either",
    )
    parser.add_argument("--budgets", action="store_true", help="ranks have little memory, now more and now less")
    parser.add_argument("--deaths", type=int, default=0, help="ranks that die, in programs of their own for it")
    options = parser.parse_args()
    return fuzz(
        options.first,
        options.seeds,
        options.management,
        options.check_every,
        options.stop_after,
        options.ranks,
        options.saves,
        DEVICES if options.devices == [] else options.devices or (),
        options.budgets,
        options.deaths,
    )


if __name__ == "__main__":
    sys.exit(main())
