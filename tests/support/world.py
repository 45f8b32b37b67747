"""``spawn_world``: run a function of a test module in several real rank processes.

    def add(a, b):
        return a + b

    def test_add(spawn_world):
        assert spawn_world(3, add, 1, 2) == [3, 3, 3]

The ranks are started as ``intentpm run`` starts them, so ``intentpm.init()`` and ``find_world`` work in the target.
Arguments and results are pickled; results must not be classes of the test module.
"""

import inspect
import os
import pickle
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from intentpm.launch.job import TIMED_OUT, LocalJob

DEFAULT_TIMEOUT_S = 60.0
SHOW_STACKS_AT = 0.9
"""Of the time that ranks have, after which each writes where it stands."""


@dataclass(frozen=True)
class Outcome:
    """How one rank ended."""

    rank: int
    exit_code: int
    """As in subprocess: -9 for a rank that was killed by SIGKILL."""
    value: Any = None
    error: BaseException | None = None
    traceback: str = ""

    @property
    def failed(self) -> bool:
        return self.exit_code != 0 or bool(self.traceback)


class RankFailedError(AssertionError):
    """Some ranks did not end well; shows each one's traceback."""

    def __init__(self, outcomes: list[Outcome], note: str = "") -> None:
        self.outcomes = outcomes
        lines = [note] if note else []
        for outcome in outcomes:
            if outcome.failed:
                why = outcome.traceback or "(no traceback: it was killed or left without one)"
                lines.append(f"rank {outcome.rank} of {len(outcomes)} failed (exit code {outcome.exit_code}):\n{why}")
        super().__init__("\n".join(lines))


class SpawnedWorld:
    """Ranks that are running; made by ``spawn_world.start``."""

    def __init__(
        self, n: int, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> None:
        self._timeout_s = options.pop("timeout_s", DEFAULT_TIMEOUT_S)
        self._allow_leftovers = options.pop("allow_leftovers", False)
        check_leaks = options.pop("check_leaks", True)
        self._folder = tempfile.TemporaryDirectory(prefix="intentpm-test-")
        call = {
            "file": inspect.getsourcefile(target),
            "module": target.__module__,
            "name": target.__qualname__,
            "args": args,
            "kwargs": kwargs,
            "path": [str(Path(__file__).parents[1])],
            "check_leaks": check_leaks,
            "show_stacks_s": SHOW_STACKS_AT * self._timeout_s,
        }
        (Path(self._folder.name) / "call.pkl").write_bytes(pickle.dumps(call))
        argv = [sys.executable, str(Path(__file__).with_name("rank_main.py")), self._folder.name]
        self.job = LocalJob(n, argv, **options)

    def kill(self, rank: int, number: int) -> None:
        """Sends signal ``number`` to one rank."""
        os.kill(self.job.pid(rank), number)

    def wait(self) -> list[Outcome]:
        """Waits for all ranks, until the deadline; what still runs then is killed, and RankFailedError raised."""
        exit_code = self.job.wait(self._timeout_s)
        outcomes = [self._outcome(rank) for rank in range(self.job.size)]
        if exit_code == TIMED_OUT:
            raise RankFailedError(outcomes, f"the ranks did not end within {self._timeout_s:g} s")
        if self.job.left_behind and not self._allow_leftovers:
            raise RankFailedError(outcomes, f"the ranks left {self.job.left_behind} processes of theirs behind")
        return outcomes

    def close(self) -> None:
        self.job.close()
        self._folder.cleanup()

    def _outcome(self, rank: int) -> Outcome:
        exit_code = self.job.exit_codes[rank]
        assert exit_code is not None
        file = Path(self._folder.name) / f"{rank}.pkl"
        said = pickle.loads(file.read_bytes()) if file.exists() else {}
        stacks = file.with_suffix(".stacks")
        if exit_code != 0 and not said.get("traceback") and stacks.exists() and (text := stacks.read_text()):
            said["traceback"] = f"the target {'returned' if said else 'did not return'}; near the deadline:\n{text}"
        return Outcome(rank, exit_code, **said)


class WorldSpawner:
    """What the ``spawn_world`` fixture is.

    Options of every method: ``timeout_s`` (one deadline for all ranks), ``env``, ``transport``, ``grace_s``,
    ``check_leaks`` (sockets, event descriptors and threads the target leaves open fail the test), ``allow_leftovers``
    (processes the ranks leave behind do not). ``kwargs`` go to the target.
    """

    def __init__(self) -> None:
        self._worlds: list[SpawnedWorld] = []

    def __call__(
        self, n: int, target: Callable[..., Any], *args: Any, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> list[Any]:
        """What ``target(*args)`` returned on each rank. Raises RankFailedError when it raised on any."""
        outcomes = self.outcomes(n, target, *args, kwargs=kwargs, **options)
        if any(outcome.failed for outcome in outcomes):
            raise RankFailedError(outcomes)
        return [outcome.value for outcome in outcomes]

    def outcomes(
        self, n: int, target: Callable[..., Any], *args: Any, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> list[Outcome]:
        """How each rank ended, whether well or not; for tests of failures."""
        return self.start(n, target, *args, kwargs=kwargs, **options).wait()

    def start(
        self, n: int, target: Callable[..., Any], *args: Any, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> SpawnedWorld:
        """Starts the ranks and returns at once; call ``wait`` on the result."""
        world = SpawnedWorld(n, target, args, dict(kwargs or {}), options)
        self._worlds.append(world)
        return world

    def close(self) -> None:
        for world in self._worlds:
            world.close()


@pytest.fixture
def spawn_world() -> Iterator[WorldSpawner]:
    before = _open_here()
    spawner = WorldSpawner()
    yield spawner
    spawner.close()
    deadline = time.monotonic() + 5.0
    while (after := _open_here()) != before and time.monotonic() < deadline:
        if all(count <= before[kind] for kind, count in after.items()):
            break
        time.sleep(0.02)
    else:
        assert after == before, f"spawn_world left descriptors or threads open in the test process: {before} -> {after}"


def _open_here() -> dict[str, int]:
    return {"descriptors": len(os.listdir("/proc/self/fd")), "threads": threading.active_count()}
