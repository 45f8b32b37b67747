"""``intentpm run``: exit codes, output, signals, and that nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from intentpm.launch.guardian import find_processes
from intentpm.launch.local import run_local

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(60)]

RUN = [sys.executable, "-m", "intentpm", "run"]


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "script.py"
        path.write_text(f"import os, sys, time, signal, subprocess\nrank = int(os.environ['INTENTPM_RANK'])\n{text}\n")
        return str(path)

    return write


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``intentpm run`` in the background; whatever still runs after the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*args: str, **options: object) -> subprocess.Popen[str]:
        # A job that a shell put into the background ignores SIGINT, and its children inherit that.
        process = subprocess.Popen(
            [*RUN, *args], stdout=-1, stderr=-1, text=True, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=20)


def run(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *args], capture_output=True, text=True, timeout=40, check=False, **options)


def await_true(what: str, condition: Callable[[], object], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids_in(folder: Path, count: int) -> list[int]:
    """The process ids that ``count`` processes of a script have written to files, once all have."""
    await_true(f"{count} files with process ids", lambda: len(list(folder.glob("*.pid"))) == count)
    return [int(path.read_text()) for path in folder.glob("*.pid")]


NOTE_PID = """
def note(name, pid):
    with open(f'{name}.tmp', 'w') as file:
        file.write(str(pid))
    os.rename(f'{name}.tmp', f'{name}.pid')
note(rank, os.getpid())
"""


def test_every_line_has_its_rank_and_keeps_its_stream(script: Callable[[str], str]) -> None:
    done = run("-n", "3", script("print('out', rank)\nprint('one\\ntwo', file=sys.stderr)"))
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["[0] out 0", "[1] out 1", "[2] out 2"]
    assert sorted(done.stderr.splitlines()) == [f"[{rank}] {word}" for rank in range(3) for word in ("one", "two")]


def test_lines_never_mix(script: Callable[[str], str]) -> None:
    text = "for i in range(2000): sys.stdout.write(chr(97 + rank) * 50); sys.stdout.write(chr(97 + rank) * 50 + '\\n')"
    done = run("-n", "3", script(text))
    lines = done.stdout.splitlines()
    assert len(lines) == 6000
    assert set(lines) == {f"[{rank}] {chr(97 + rank) * 100}" for rank in range(3)}


def test_partial_line_is_shown_before_its_rank_ends(
    script: Callable[[str], str], launch: Callable[..., subprocess.Popen[str]]
) -> None:
    process = launch("-n", "1", script("print('name?', end='', flush=True)\ntime.sleep(60)"))
    assert process.stdout is not None
    started = time.monotonic()
    assert process.stdout.read(9) == "[0] name?"
    assert time.monotonic() - started < 20


def test_last_line_without_newline_and_no_prefix(script: Callable[[str], str]) -> None:
    path = script("sys.stdout.write('end')")
    assert run("-n", "1", path).stdout == "[0] end\n"
    assert run("-n", "1", "--no-prefix", path).stdout == "end"


def test_output_is_complete_for_a_slow_reader(
    script: Callable[[str], str], launch: Callable[..., subprocess.Popen[str]]
) -> None:
    process = launch("-n", "2", script("print('x' * 999_999)"))
    time.sleep(1.5)
    out, _ = process.communicate(timeout=20)
    assert sorted(map(len, out.splitlines())) == [1_000_003, 1_000_003]
    assert process.returncode == 0


def test_a_reader_that_leaves_ends_the_job(script: Callable[[str], str], tmp_path: Path) -> None:
    path = script(NOTE_PID + "while not os.path.exists(f'{1 - rank}.pid'): pass\nwhile True: print('y' * 1000)")
    command = f"{' '.join(RUN)} -n 2 {path} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], timeout=40, capture_output=True, cwd=tmp_path, check=False)
    assert done.returncode == 128 + signal.SIGPIPE
    assert not any(is_running(pid) for pid in pids_in(tmp_path, 2))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(3 if rank == 1 else 0)", 3),
        ("raise ValueError('no')", 1),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else None", 137),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139),
        ("time.sleep(0.5 * (1 - rank)); sys.exit(5 + rank)", 6),  # rank 1 is the first
    ],
)
def test_exit_code_is_that_of_the_first_failure(script: Callable[[str], str], text: str, expected: int) -> None:
    assert run("-n", "2", script(text)).returncode == expected


def test_the_others_get_a_grace_time_then_are_ended(script: Callable[[str], str]) -> None:
    text = "signal.signal(signal.SIGTERM, lambda *_: (print('told'), sys.exit(0)))\n"
    text += "sys.exit(7) if rank else time.sleep(50)"
    started = time.monotonic()
    done = run("-n", "2", "--grace", "0.5", script(text))
    assert done.returncode == 7
    assert "[0] told" in done.stdout
    assert "rank 1 ended with exit code 7" in done.stderr
    assert time.monotonic() - started < 15


def test_timeout_kills_what_ignores_everything(script: Callable[[str], str]) -> None:
    done = run("-n", "2", "--timeout", "1", script("signal.signal(15, signal.SIG_IGN)\ntime.sleep(50)"))
    assert done.returncode == 124
    assert "longer than 1 s" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_ranks(
    script: Callable[[str], str], launch: Callable[..., subprocess.Popen[str]], number: signal.Signals, tmp_path: Path
) -> None:
    text = f"signal.signal({int(number)}, lambda *_: sys.exit(40 + rank))\n" + NOTE_PID + "time.sleep(50)"
    process = launch("-n", "2", script(text), cwd=tmp_path)
    ranks = pids_in(tmp_path, 2)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode in (40, 41)
    assert not any(is_running(pid) for pid in ranks)


def test_terminal_interrupt_is_130(
    script: Callable[[str], str], launch: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = launch("-n", "2", script(NOTE_PID + "time.sleep(50)"), cwd=tmp_path)
    pids_in(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err


def test_grandchildren_are_ended_too(script: Callable[[str], str], tmp_path: Path) -> None:
    text = NOTE_PID + "note('child%d' % rank, subprocess.Popen(['sleep', '60'], start_new_session=True).pid)"
    assert run("-n", "2", script(text), cwd=tmp_path).returncode == 0
    assert not any(is_running(pid) for pid in pids_in(tmp_path, 4))


def test_kill_9_of_the_launcher_leaves_nothing(
    script: Callable[[str], str], launch: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    text = NOTE_PID + "note('child%d' % rank, subprocess.Popen(['sleep', '60'], start_new_session=True).pid)\n"
    process = launch("-n", "2", script(text + "time.sleep(60)"), cwd=tmp_path)
    pids = pids_in(tmp_path, 4)
    children = psutil.Process(process.pid).children(recursive=True)
    assert {*pids} < {child.pid for child in children}, "the guardian is a child as well"
    process.kill()
    process.communicate(timeout=20)
    await_true("ranks, grandchildren and guardian end", lambda: not any(is_running(child.pid) for child in children))


def test_nested_jobs_end_with_the_outer_launcher(
    script: Callable[[str], str], launch: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    path = script(NOTE_PID + "time.sleep(60)")
    process = launch("-n", "1", *RUN, "-n", "2", path, cwd=tmp_path)
    pids = pids_in(tmp_path, 2)
    process.kill()
    process.communicate(timeout=20)
    await_true("the inner ranks end", lambda: not any(is_running(pid) for pid in pids))


def test_ranks_see_their_environment(script: Callable[[str], str]) -> None:
    text = "print(rank, os.environ['INTENTPM_SIZE'], os.environ['INTENTPM_TRANSPORT'], os.environ['OMP_NUM_THREADS'], "
    done = run("-n", "2", "--transport", "tcp", script(text + "*sys.argv[1:])"), "-n", "--flag", "x y")
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert sorted(done.stdout.splitlines()) == [f"[{rank}] {rank} 2 tcp {threads} -n --flag x y" for rank in range(2)]


def test_own_thread_count_and_secret_are_kept(script: Callable[[str], str]) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "7", "INTENTPM_SECRET": "my own secret of the job"}
    done = run("-n", "1", script("print(os.environ['OMP_NUM_THREADS'], os.environ['INTENTPM_SECRET'])"), env=env)
    assert done.stdout == "[0] 7 my own secret of the job\n"


def test_modules_and_commands(tmp_path: Path) -> None:
    (tmp_path / "some_module.py").write_text("import sys; print(__name__, sys.argv[1:])")
    assert run("-n", "1", "-m", "some_module", "-m", "1", cwd=tmp_path).stdout == "[0] __main__ ['-m', '1']\n"
    assert run("-n", "1", "echo", "hello").stdout == "[0] hello\n"
    missing = run("-n", "1", "no_such_thing.py")
    assert missing.returncode == 1
    assert "no_such_thing.py: no such script or command" in missing.stderr


def test_rank_0_reads_standard_input(script: Callable[[str], str]) -> None:
    assert "[0] got hello" in run("-n", "2", script("print('got', sys.stdin.read())"), input="hello").stdout


def test_run_local_from_another_thread_and_with_its_own_environment(script: Callable[[str], str]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    argv = [sys.executable, script("sys.exit(int(os.environ['CODE']) + rank)")]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run_local, 1, argv, env={"CODE": "9"}, timeout_s=30).result(timeout=40) == 9


def test_a_command_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    not_a_program = tmp_path / "program"
    not_a_program.write_text("")
    with pytest.raises(Exception, match="cannot start"):
        run_local(2, [str(not_a_program)])


def test_processes_of_a_job_are_found_by_name_alone() -> None:
    assert find_processes("no such job") == []
