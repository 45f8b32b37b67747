"""Every loss is one sentence, the cause first."""

import re
import signal
import subprocess

import pytest

from intentpm.foundation import losses
from intentpm.testing import run_ranks

FORMATS = {"%u": "0", "%s": "what it said", "%.1f": "2.5"}


def filled(text: str) -> str:
    for placeholder, value in FORMATS.items():
        text = text.replace(placeholder, value)
    return text


def whys() -> list[str]:
    made = [losses.how_process_ended(code) for code in (0, 3, -signal.SIGKILL, -64)]
    broken = (EOFError(), ConnectionResetError(104, "reset"), OSError(5, "I/O"), ValueError("sent a frame of 5 bytes"))
    made += [losses.how_connection_broke(error) for error in broken]
    made += [losses.how_it_failed(error) for error in (ValueError("a bad batch"), KeyboardInterrupt(), SystemExit(3))]
    made += [losses.NOT_CONNECTED, losses.LEFT_RENDEZVOUS, losses.STOPPED_LISTENING]
    return [*map(filled, losses.table()), *made]


@pytest.mark.parametrize("why", whys())
def test_every_loss_reads_as_one_sentence_the_cause_first(why: str) -> None:
    assert "%" not in why
    said = losses.sentence(1, why, 0)
    assert said == f"rank 1 {why}; rank 0 cannot go on without it: restart the job"
    # It goes on from "rank 1" with a verb, is no second sentence, and needs no "which" and no "it".
    verbs = "ended was is has cannot gave sent ran failed called stopped lost"
    assert why.split()[0] in verbs.split()
    assert "\n" not in why
    assert not re.search(r"[.!?] [A-Z]|this rank|other (side|rank)", why)


def test_an_exit_names_what_led_to_it() -> None:
    def as_command_lines_do() -> None:
        try:
            raise BrokenPipeError(32, "Broken pipe")
        except BrokenPipeError:
            raise SystemExit(1)  # noqa: B904

    with pytest.raises(SystemExit) as caught:
        as_command_lines_do()
    assert losses.how_it_failed(caught.value) == "called sys.exit(1) after BrokenPipeError(32, 'Broken pipe')"


def test_no_exception_can_break_its_own_report() -> None:
    class BrokenError(Exception):
        def __repr__(self) -> str:
            raise RuntimeError

    assert losses.how_it_failed(BrokenError()) == "failed with BrokenError (whose repr raises RuntimeError)"
    assert losses.how_it_failed(ValueError("x" * 10**6)).endswith("...")
    assert "\n" not in losses.how_it_failed(subprocess.CalledProcessError(1, "a\nb"))


def test_the_other_ranks_read_it(capfd: pytest.CaptureFixture[str]) -> None:
    class LongError(Exception):
        def __repr__(self) -> str:
            return "two\nlines and \ud800 half a character"

    heard: list[str] = []

    def rank_main(pm) -> None:
        if pm.rank == 1:
            raise LongError
        try:
            pm.barrier()
        except Exception as error:
            heard.append(str(error))
            raise

    with pytest.raises(LongError):
        run_ranks(3, rank_main)
    assert len(heard) == 2
    for said in heard:
        assert re.fullmatch(
            r"rank 1 failed with two lines and \? half a character; rank [02] cannot go on without it: restart the job",
            said,
        )


def test_a_rank_reads_of_its_own_end() -> None:
    assert losses.sentence(1, "ran out of data", 1) == "rank 1 ran out of data; the job cannot go on: restart it"


def test_the_start_says_it_too() -> None:
    assert losses.during_start(2, "was killed by SIGKILL", "rank 0") == (
        "rank 2 was killed by SIGKILL, while rank 0 waited for it to start"
    )
