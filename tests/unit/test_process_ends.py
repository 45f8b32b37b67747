"""That a process of this host has ended is known, and not taken from anything else."""

import os
import subprocess
import sys
import time

from intentpm.transports.process_ends import ProcessEnds


def test_an_end_is_known_also_while_nobody_has_waited_for_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        ends = ProcessEnds({3: child.pid, 4: os.getpid()})
        assert not ends.has_ended(3)
        child.kill()
        end_s = time.monotonic() + 60.0
        while not ends.has_ended(3):
            assert time.monotonic() < end_s, "its end was not seen"
            time.sleep(0.001)
        assert not ends.has_ended(4)
        assert not ends.has_ended(5), "nothing is known of it"
        ends.close()
        assert not ends.has_ended(3)


def test_a_process_that_had_ended_before_is_not_known_to() -> None:
    """Its number may be another's by now."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    ends = ProcessEnds({0: child.pid})
    assert not ends.has_ended(0)
    ends.close()
