"""How a rank ends, and what the others make of it: in order, or as a failure that they hear of at once."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(90)

TRANSPORTS = ["tcp", "auto"]

PROLOGUE = """
import builtins, contextlib, os, signal, sys, threading, time
import numpy as np
import intentpm

def work(pm, seconds=60.0):
    "Trains until the job fails, or for so long."
    worker = pm.worker()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        worker.pull(table, np.arange(100))
        time.sleep(0.001)

def ready(pm):
    global table
    table = pm.create_table("t", 100, 4)
    pm.barrier()
"""

INSIDE = """
with intentpm.init() as pm:
    ready(pm)
    if pm.rank == 0:
        work(pm, {others_s})
        print("rank 0 trained on", flush=True)
    else:
{leave}
"""

OUTSIDE = """
pm = intentpm.init()
ready(pm)
if pm.rank == 0:
    work(pm, {others_s})
    print("rank 0 trained on", flush=True)
else:
{leave}
"""


def run(
    folder: Path, form: str, leave: str, others_s: float, transport: str = "tcp"
) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    body = textwrap.indent(textwrap.dedent(leave).strip(), " " * 8)
    script.write_text(PROLOGUE + form.format(leave=body, others_s=others_s))
    command = [sys.executable, "-m", "intentpm", "run", "-n", "2", "--transport", transport, str(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=80, check=False)


ORDERLY = {
    "exit 0": "sys.exit(0)",
    "exit": "sys.exit()",
    "exit False": "sys.exit(False)",
    "quit": "quit()",
    "raise SystemExit": "raise SystemExit",
    "caught exit": """
        try:
            sys.exit(3)
        except SystemExit:
            pass
    """,
    "exit 0 after an exception": """
        try:
            raise ValueError
        except ValueError:
            sys.exit(0)
    """,
    "a signal handler": """
        signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(60)
    """,
    "a failed thread": """
        thread = threading.Thread(target=lambda: sys.exit(5))
        thread.start()
        thread.join()
    """,
}
FAILURES = {
    "exit 1": ("sys.exit(1)", "called sys.exit(1)"),
    "exit 256": ("sys.exit(256)", "called sys.exit(256)"),
    "exit text": ("sys.exit('no data')", "called sys.exit('no data')"),
    "exit of a number that is none": ("sys.exit(np.int64(0))", "called sys.exit("),
    "exit()": ("exit(2)", "called sys.exit(2)"),
    "a closed pipe": (
        """
        try:
            raise BrokenPipeError(32, "Broken pipe")
        except BrokenPipeError:
            sys.exit(1)
        """,
        "called sys.exit(1) after BrokenPipeError(32, 'Broken pipe')",
    ),
    "an exception": ("raise ValueError('a bad batch')", "failed with ValueError('a bad batch')"),
    "Ctrl-C": ("raise KeyboardInterrupt", "was interrupted (KeyboardInterrupt)"),
}


@pytest.mark.parametrize("form", [INSIDE, OUTSIDE], ids=["with", "without with"])
@pytest.mark.parametrize("how", ORDERLY)
def test_an_orderly_end_lets_the_others_go_on(tmp_path: Path, how: str, form: str) -> None:
    done = run(tmp_path, form, ORDERLY[how], others_s=0.5)
    assert "rank 0 trained on" in done.stdout
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("form", [INSIDE, OUTSIDE], ids=["with", "without with"])
@pytest.mark.parametrize("how", FAILURES)
def test_a_failure_is_heard_at_once_and_says_why(tmp_path: Path, how: str, form: str) -> None:
    leave, why = FAILURES[how]
    done = run(tmp_path, form, leave, others_s=60.0)
    assert "trained on" not in done.stdout
    assert f"PeerLostError: rank 1 {why}" in done.stderr
    assert "; rank 0 cannot go on without it: restart the job" in done.stderr
    assert done.returncode != 0


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("code", [0, 1])
def test_a_process_that_skips_every_end_is_lost(tmp_path: Path, transport: str, code: int) -> None:
    done = run(tmp_path, INSIDE, f"os._exit({code})", others_s=60.0, transport=transport)
    assert "PeerLostError: rank 1 ended without a goodbye: its " in done.stderr
    assert done.returncode == 1


def test_a_failed_main_thread_is_heard_although_others_of_its_process_train_on(tmp_path: Path) -> None:
    leave = """
        threading.Thread(target=work, args=(pm,)).start()
        sys.exit(1)
    """
    done = run(tmp_path, OUTSIDE, leave, others_s=60.0)
    assert "PeerLostError: rank 1 called sys.exit(1); rank 0" in done.stderr
    assert done.returncode == 1


def test_threads_train_to_their_end_after_an_orderly_exit(tmp_path: Path) -> None:
    leave = """
        threading.Thread(target=lambda: (work(pm, 0.5), print("rank 1 trained on", flush=True))).start()
        sys.exit(0)
    """
    done = run(tmp_path, OUTSIDE, leave, others_s=0.2)
    assert "rank 0 trained on" in done.stdout
    assert "rank 1 trained on" in done.stdout
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("again", [0, 7])
def test_a_signal_while_a_rank_waits_for_the_others_to_close(tmp_path: Path, again: int) -> None:
    leave = f"""
        signal.signal(signal.SIGALRM, lambda *_: sys.exit({again}))
        signal.setitimer(signal.ITIMER_REAL, 0.3)
    """
    done = run(tmp_path, INSIDE, leave, others_s=1.0 if again == 0 else 60.0)
    if again == 0:
        assert "rank 0 trained on" in done.stdout
        assert done.returncode == 0, done.stderr
    else:
        assert f"PeerLostError: rank 1 called sys.exit({again}); rank 0" in done.stderr


def test_a_generator_that_is_closed_ends_in_order(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        PROLOGUE
        + textwrap.dedent("""
        def batches():
            with intentpm.init() as pm:
                ready(pm)
                while True:
                    yield pm

        for pm in batches():
            work(pm, 0.5 if pm.rank == 0 else 0.0)
            break
        print("enough", flush=True)
    """)
    )
    done = subprocess.run(
        [sys.executable, "-m", "intentpm", "run", "-n", "2", str(script)], capture_output=True, text=True, timeout=80,
        check=False,
    )  # fmt: skip
    assert done.stdout.count("enough") == 2
    assert done.returncode == 0, done.stderr


def test_a_generator_that_is_closed_by_an_exception_fails_with_it(tmp_path: Path) -> None:
    leave = """
        def keep(pm):
            with pm:
                yield
        with contextlib.closing(keep(pm)) as kept:
            next(kept)
            raise ZeroDivisionError
    """
    done = run(tmp_path, OUTSIDE, leave, others_s=60.0)
    assert "PeerLostError: rank 1 failed with ZeroDivisionError()" in done.stderr


def test_exit_0_after_a_loss_keeps_its_exit_code(tmp_path: Path) -> None:
    leave = """
        try:
            work(pm)
        except intentpm.PeerLostError:
            print("saved", flush=True)
            sys.exit(0)
    """
    form = INSIDE.replace('print("rank 0 trained on", flush=True)', "os._exit(0)")
    done = run(tmp_path, form, leave, others_s=0.3)
    assert "saved" in done.stdout
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("form", [INSIDE, OUTSIDE], ids=["with", "without with"])
def test_under_mpirun(tmp_path: Path, form: str) -> None:
    pytest.importorskip("mpi4py")
    mpirun = Path(sys.executable).with_name("mpirun")
    if not mpirun.exists():
        pytest.skip("no mpirun")
    script = tmp_path / "script.py"
    for leave, others_s, expected in (
        ("sys.exit(0)", 0.3, "rank 0 trained on"),
        ("sys.exit(1)", 60.0, "called sys.exit(1)"),
    ):
        script.write_text(PROLOGUE + form.format(leave=" " * 8 + leave, others_s=others_s))
        done = subprocess.run(
            [mpirun, "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, script],
            capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "INTENTPM_TRANSPORT": "tcp"},
        )  # fmt: skip
        assert expected in done.stdout + done.stderr
        assert (done.returncode == 0) == (leave == "sys.exit(0)"), done.stderr


def test_every_rank_is_preempted_and_saves_at_its_own_pace(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        PROLOGUE
        + textwrap.dedent("""
        class Preempted(BaseException):
            pass

        def preempt(*_):
            raise Preempted

        with intentpm.init() as pm:
            ready(pm)
            worker = pm.worker()
            try:
                signal.signal(signal.SIGTERM, preempt)
                print("training", flush=True)
                time.sleep(60)
            except Preempted:
                time.sleep(0.3 * pm.rank)
                worker.pull(table, np.arange(100))
                print("saved", flush=True)
                sys.exit(0)
    """)
    )
    job = subprocess.Popen(
        [sys.executable, "-m", "intentpm", "run", "-n", "2", str(script)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert job.stdout is not None
    assert "training" in job.stdout.readline()
    assert "training" in job.stdout.readline()
    job.send_signal(signal.SIGTERM)
    out, err = job.communicate(timeout=60)
    assert out.count("saved") == 2
    assert job.returncode == 0, err
