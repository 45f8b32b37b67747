"""A rank whose process is there, but does not answer: the others say so, and not that it has died."""

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import intentpm

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(120)]


def stop_rank_1(what: str, folder: str) -> str:
    """Rank 0 waits for rank 1, which is stopped; returns what it is told."""
    pm = intentpm.init(peer_timeout=2.0)
    table = pm.create_table("t", 1000)
    pids = [int(pid) for pid in pm.allgather(str(os.getpid()).encode())]
    if pm.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    _wait_until_stopped(pids[1])
    try:
        _wait(pm, table, what, folder)
    except intentpm.PeerLostError as error:
        os.kill(pids[1], signal.SIGKILL)
        return f"{error.rank}: {error}"
    raise AssertionError("rank 1 answered")


def _wait_until_stopped(pid: int) -> None:
    end = time.monotonic() + 30.0
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < end, "rank 1 did not stop"
        time.sleep(0.01)


def _wait(pm: Any, table: Any, what: str, folder: str) -> None:
    if what == "barrier":
        pm.barrier()
    elif what == "access":
        pm.worker().pull(table, range(1000))
    else:
        pm.save(folder)


@pytest.mark.parametrize("what", ["barrier", "access", "save"])
def test_a_stopped_rank_is_told_from_one_that_died(spawn_world, tmp_path: Path, what: str) -> None:
    outcomes = spawn_world.outcomes(2, stop_rank_1, what, str(tmp_path), transport="tcp", check_leaks=False)
    assert outcomes[0].traceback == ""
    assert re.match(
        r"1: rank 1 gave no sign of life to rank 0 for \d+\.\d s \(peer_timeout 2\.0 s\)", outcomes[0].value
    )
    said = "it is stopped, hangs or is cut off; the last that came from it was its part of a collective call"
    assert said in outcomes[0].value
